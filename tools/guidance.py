"""Fidelity against diversity, for notebook 07: samples of the shipped model at several scales of guidance.

    python tools/guidance.py --data FOLDER                   600 images per row: about 225,000 passes of one image
    python tools/guidance.py --data FOLDER --number 80       a quick trial, in an eighth of that

On two cores the first took 17 minutes. Rows: scale 0 (no label) to 6, and two scales applied in a part of the
chain only. Each row that is finished is in the file, notebooks/data/07_guidance.json, at once.

Of every row, with one standard error: the share of samples that the classifier takes for the class they were drawn
with; the Frechet distance of its features to the real images'; recall, variety and the spread of features within a
class, each the mean of four groups of samples, recall with as many real images; how strong the colours are, and the
share of channels that are full or empty. Ancestral sampling, posterior variance. The row "real": other real images.
"""

import argparse
import hashlib
import json
import time
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_utils.checkpoint import PRETRAINED, Trained, load_model
from ddpm_utils.data import load_images, to_float
from ddpm_utils.diffusion import posterior_variances
from ddpm_utils.evaluation import frechet, load_classifier, look_at, mean_of, random_order, share
from ddpm_utils.hardware import Setup, best_device, fastest, measure_setups
from ddpm_utils.sampling import NoiseModel, last, noise_model, sample_ddpm, start_noise
from notebooks import write

OUTPUT = Path(__file__).resolve().parent.parent / "notebooks" / "data" / "07_guidance.json"
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SCALES_IN_PART = (3.0, 6.0)
GROUPS = 4
SATURATED = 0.98  # |x| above which a channel counts as full or empty: the outermost three of 256 levels at each end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(PRETRAINED), help="by default the model that ships with the module")
    parser.add_argument("--data", default="auto", help="real images to compare with, as load_images takes them")
    parser.add_argument("--number", type=int, default=600, help="images per row, a multiple of 40")
    parser.add_argument("--steps", type=int, default=25, help="of the sampler")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(200, 700), help="timesteps of guidance in a part: from, to"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the start noises")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the figures go")
    args = parser.parse_args()
    if args.number % (10 * GROUPS) or args.number < 20 * GROUPS:
        parser.error(f"--number must be a multiple of {10 * GROUPS}, and at least {20 * GROUPS}")
    trained = load_model(args.checkpoint, best_device())
    setup = fastest(measure_setups(trained.model))
    classifier, _ = load_classifier()
    train, test = load_images(args.data), load_images(args.data, "test")
    reference = look_at(classifier, train.images).features
    others = random_order(len(reference))

    def measured(images: Tensor, labels: Tensor) -> dict:
        """images: (N, 3, 32, 32), uint8 or floats in [-1, 1]; labels: (N,) of classes that take turns."""
        x = to_float(images) if images.dtype == torch.uint8 else images
        seen = look_at(classifier, x)
        real = reference[others[: len(x)]].chunk(GROUPS)
        groups = [*zip(x.chunk(GROUPS), seen.features.chunk(GROUPS), labels.chunk(GROUPS), real, strict=True)]
        return {
            "recognised": share(seen.labels == labels),
            "frechet": frechet(seen.features[random_order(len(x))], reference),
            "recall": mean_of(torch.stack([covered(r, features) for _, features, _, r in groups])),
            "spread": mean_of(torch.stack([spread(features, y).mean() for _, features, y, _ in groups])),
            "variety": mean_of(torch.stack([variety(part, y).mean() for part, _, y, _ in groups])),
            "colour": mean_of(colour(x)),
            "saturated": mean_of((x.abs() > SATURATED).flatten(1).double().mean(1)),
        }

    results = {
        "date": date.today().isoformat(),
        "sha256": hashlib.sha256(Path(args.checkpoint).read_bytes()).hexdigest(),
        "options": {"number": args.number, "steps": args.steps, "part": list(args.part), "seed": args.seed},
        "data": [train.source, len(train), len(test)],
        "rows": [],
    }
    real = in_turn(test.labels, args.number)
    results["real"] = {"number": len(real), **measured(test.images[real], test.labels[real])}
    plan = [(w, None) for w in SCALES] + [(w, list(args.part)) for w in SCALES_IN_PART]
    for w, part in plan:
        start = time.perf_counter()
        images, labels = drawn(trained, setup, w, part, args)
        row = {"guidance": w, "part": part, **measured(images, labels)}
        results["rows"].append(row)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write(args.output, json.dumps(results, indent=1) + "\n")
        name = f"{w:g}" + (f" in {part[0]}...{part[1] - 1}" if part else "")
        print(f"{name}: {time.perf_counter() - start:.0f} s, recognised {row['recognised']:.3f}", flush=True)


def drawn(
    trained: Trained, setup: Setup, w: float, part: list[int] | None, args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """args.number images, (N, 3, 32, 32) in [-1, 1], and their labels, (N,): the classes in turn."""
    model = setup.arrange(trained.model)
    device = next(model.parameters()).device
    x_T, generator = start_noise(args.number, args.seed)
    labels = torch.arange(args.number) % len(trained.class_names)
    images = []
    for noise, y in zip(x_T.split(64), labels.to(device).split(64), strict=True):
        eps_model = noise_model(model, y, w, setup) if w else noise_model(model, setup=setup)
        if part:
            eps_model = in_part(*part, eps_model, noise_model(model, y, setup=setup))
        steps = sample_ddpm(
            eps_model,
            trained.ddpm,
            noise.to(device),
            steps=args.steps,
            variances=posterior_variances,
            generator=generator,
        )
        images.append(last(steps).cpu())
    return torch.cat(images), labels


def in_part(low: int, high: int, guided: NoiseModel, plain: NoiseModel) -> NoiseModel:
    """guided at the timesteps low...high - 1, plain at the others."""
    return lambda xt, t: (guided if low <= t[0] < high else plain)(xt, t)


def covered(queries: Tensor, points: Tensor, k: int = 3) -> Tensor:
    """The share of queries, (M, D), in a ball around any of points, (N, D), that reaches its k-th nearest other point.

    Of real images around samples it is the recall of Kynkaanniemi et al. 2019 (arXiv:1904.06991).
    """
    reach = torch.cdist(points, points).topk(k + 1, largest=False).values[:, k]
    return (torch.cdist(queries, points) <= reach).any(1).double().mean()


def spread(features: Tensor, labels: Tensor) -> Tensor:
    """(classes,): the variance of features, (N, D), within each class of labels, (N,), summed over the features."""
    return torch.stack([features[labels == c].var(0).sum() for c in labels.unique()])


def variety(x: Tensor, labels: Tensor) -> Tensor:
    """(classes,): 1 minus the mean correlation of two images, (N, 3, 32, 32), of a class, both reduced to 8x8."""
    small = F.avg_pool2d(x, 4).flatten(1).double()  # (N, 192)
    small = F.normalize(small - small.mean(1, keepdim=True), dim=1)  # products of rows are correlations now
    values = []
    for c in labels.unique():
        of_class = small[labels == c]
        n = len(of_class)
        values.append(1 - (of_class.sum(0).square().sum() - n) / (n * (n - 1)))
    return torch.stack(values)


def colour(x: Tensor) -> Tensor:
    """(N,): how far apart the channels of a pixel lie, 0 (grey) to 1, on average over an image: x is (N, 3, H, W)."""
    return ((x.amax(1) - x.amin(1)) / 2).flatten(1).double().mean(1)


def in_turn(labels: Tensor, number: int) -> Tensor:
    """Indices of at most number images, as many of each class in labels, (N,), the classes taking turns."""
    classes = labels.unique()
    each = min(number // len(classes), int(labels.bincount().min()))
    each -= each % GROUPS
    return torch.stack([(labels == c).nonzero()[:each, 0] for c in classes], 1).flatten()


if __name__ == "__main__":
    main()
