"""Store the classifier's features of samples and of real images, for notebook 08 to compute with.

    python tools/evaluation_features.py --data data/cifar10-lossless --trained-on data/cifar10-jpeg

The options are those of `main.py evaluate`, given as they were given there: the same samples are drawn, and kept in the
order in which it measures them, so that the notebook finds the figures of the model card again. Written are features,
means of 192 activations over a whole image, and labels; no pixel can be had back from them.

A feature f >= 0 is kept as one byte, round(255 sqrt(f / largest f of its column)): the root makes the steps small
where features are. The Frechet distance that the rounding alone makes is printed.
"""

import hashlib
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for main

from ddpm_utils.checkpoint import PRETRAINED, load_model, save_checkpoint  # noqa: E402
from ddpm_utils.data import load_images, to_float  # noqa: E402
from ddpm_utils.evaluation import frechet_distance, load_classifier, look_at, random_order  # noqa: E402
from ddpm_utils.hardware import fastest, measure_setups  # noqa: E402
from main import EvaluateOptions, Parser, SampleOptions, add_options, draw_images, pick_device  # noqa: E402

OUTPUT = ROOT / "notebooks" / "data" / "08_features.safetensors"
LARGEST = 1_500_000  # bytes
KEPT = {"unguided": 2000, "guided": 2000, "real": 1500, "train": 1000}  # images of each set, at most
STEPS = 255
COPIED = 20  # training images that are copied with each of the changes, in the notebook's words and order
CHANGES = {
    "mirror": lambda x: x.flip(-1),
    "moved": lambda x: F.pad(x, (1, 0, 1, 0), mode="reflect")[..., :32, :32],
    "bright": lambda x: (x + 0.2).clamp(-1, 1),
    "noise": lambda x: (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1),
}


def main() -> None:
    parser = Parser(description=__doc__)
    add_options(parser, EvaluateOptions)
    parser.set_defaults(output=str(OUTPUT))
    options = EvaluateOptions(**vars(parser.parse_args()))
    path = Path(options.checkpoint or PRETRAINED)
    trained = load_model(path, pick_device(options.device))
    setup = fastest(measure_setups(trained.model))
    classifier, _ = load_classifier()

    train, test = load_images(options.data), load_images(options.data, "test")
    reference = look_at(classifier, train.images).features
    sets = {"real": (test.images, test.labels), "train": (train.images, train.labels)}
    for name, guidance in (("unguided", 1.0), ("guided", options.guidance)):
        wish = SampleOptions(
            number=options.number, sampler=options.sampler, steps=options.steps, guidance=guidance, seed=options.seed
        )
        sets[name] = draw_images(trained, wish, setup)

    features, labels = {}, {}
    for name, (images, intended) in sets.items():
        order = random_order(len(images))[: KEPT[name]]  # as Judge does
        features[name] = look_at(classifier, images[order]).features
        labels[f"{name}.labels"] = intended[order].to(torch.uint8)
        if name == "train":
            originals = to_float(images[order[:COPIED]])
            copies = torch.cat([change(originals) for change in CHANGES.values()])  # (4 x 20, 3, 32, 32), by change
            features["copies"] = look_at(classifier, copies).features
    scale = torch.cat([reference, *features.values()]).max(0).values  # (192,)
    codes = {name: encode(values, scale) for name, values in features.items()}
    for name, values in features.items():
        rounding = frechet_distance(decode(codes[name], scale), values)
        print(f"{name}: {len(values)} images; Frechet distance of the rounded features to the exact: {rounding:.1e}")

    tensors = {
        **{f"{name}.codes": code for name, code in codes.items()},
        **labels,
        "scale": scale,
        "reference.mean": reference.double().mean(0).float(),
        "reference.cov": torch.cov(reference.double().T).float(),
    }
    info = {
        "options": {k: v for k, v in vars(options).items() if k not in ("output", "device")},
        "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "reference": [train.source, len(train)],
        "class_names": list(train.class_names),
    }
    save_checkpoint(options.output, tensors, info)
    size = Path(options.output).stat().st_size
    print(f"{Path(options.output).name}: {size:,} bytes")
    if size > LARGEST:
        raise SystemExit(f"more than {LARGEST:,} bytes; keep fewer images.")


def encode(features: Tensor, scale: Tensor) -> Tensor:
    """(N, D) features, none negative -> (N, D) uint8. scale: (D,) the largest of each column."""
    return ((features / scale.clamp(min=1e-12)).sqrt() * STEPS).round().to(torch.uint8)


def decode(codes: Tensor, scale: Tensor) -> Tensor:
    """(N, D) uint8 -> (N, D) float32, what encode was given to within half a step."""
    return (codes.float() / STEPS).square() * scale


if __name__ == "__main__":
    main()
