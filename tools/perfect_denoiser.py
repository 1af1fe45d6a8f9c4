"""Measure what notebook 10 shows and is too long for it: networks beside the perfect denoiser of their training images.

    python tools/perfect_denoiser.py memorise                         TINY on few and on many small shapes
    python tools/perfect_denoiser.py shipped data/cifar10-jpeg        the shipped model on its training and test images

Each writes a small JSON file under notebooks/data, which the notebook draws. Each takes four to five
minutes on two cores.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_utils.checkpoint import PRETRAINED, load_pretrained
from ddpm_utils.data import ImageSet, load_images, shapes, to_float
from ddpm_utils.diffusion import DDPM, linear_betas, posterior_variances
from ddpm_utils.sampling import NoiseModel, last, noise_model, sample_ddpm, start_noise
from ddpm_utils.training import Run, TrainConfig, train
from ddpm_utils.unet import TINY, UNet

FOLDER = Path(__file__).resolve().parent.parent / "notebooks" / "data"
TS = (2, 10, 28, 60, 105, 160, 220, 280, 340, 400, 465, 540, 620, 705, 800, 935)  # chapter 04's, thinned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("memorise", help="train TINY on shapes of 8 x 8 pixels")
    command.add_argument("--sizes", type=int, nargs="+", default=[32, 2048], help="numbers of training images")
    command.add_argument("--steps", type=int, default=1600, help="training steps of 32 images, for each size")
    command = commands.add_parser("shipped", help="the model that ships with ddpm_utils, on the images it learned from")
    command.add_argument("data", help="folder with train/ and test/, as load_images takes it")
    command.add_argument("--number", type=int, default=128, help="images of each split")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.command == "memorise":
        results = {"steps": args.steps, "runs": [memorise(n, args.steps) for n in args.sizes]}
    else:
        results = shipped(load_images(args.data), load_images(args.data, "test"), args.number)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"10_{args.command}.json"
    path.write_text(json.dumps({"ts": TS, **results}) + "\n", encoding="utf-8")
    print(f"{path.name} is written.")


def memorise(n: int, steps: int) -> dict:
    """Loss per timestep on the n training images and on fresh ones, and copies among samples, as training goes on."""
    ddpm, data = DDPM(linear_betas()), small_shapes(n, seed=0)
    own, fresh = to_float(data.images), to_float(small_shapes(256, seed=1).images)
    torch.manual_seed(0)
    run = Run(UNet(TINY), TrainConfig(steps=steps, batch_size=32, lr=2e-3, warmup_steps=30, flip=False, ema_decay=0.99))
    snapshots, marks = [], {steps // 4**k for k in range(4)}
    for progress in train(run, ddpm, data):
        if progress.step in marks:
            eps_model = noise_model(run.ema.model)
            x_T, generator = start_noise(64, seed=0, size=8)
            walk = sample_ddpm(eps_model, ddpm, x_T, steps=100, variances=posterior_variances, generator=generator)
            snapshots.append(
                {
                    "step": progress.step,
                    "own": loss_per_t(eps_model, ddpm, own[:256]),
                    "fresh": loss_per_t(eps_model, ddpm, fresh),
                    "distance": rounded(to_nearest(last(walk), own)),
                }
            )
    return {"n": n, "snapshots": snapshots, "fresh_distance": rounded(to_nearest(fresh[:64], own))}


def small_shapes(n: int, seed: int) -> ImageSet:
    """The built-in shapes at 8 x 8 pixels: means of 4 x 4."""
    drawn = shapes(n, seed)
    images = F.avg_pool2d(drawn.images.float(), 4).round().to(torch.uint8)
    return ImageSet(images, drawn.labels, drawn.class_names, "small shapes")


def shipped(train_set: ImageSet, test_set: ImageSet, number: int) -> dict:
    """Loss per timestep of the shipped model, and of the perfect denoiser of all its training images (mirrored ones
    too), on images of both splits."""
    trained = load_pretrained()
    eps_model, ddpm = noise_model(trained.model), trained.ddpm
    everything = to_float(train_set.images)
    flat = torch.cat([everything, everything.flip(-1)]).flatten(1)  # (2 N, 3072)
    norms = flat.square().sum(1)

    def perfect(xt: Tensor, t: Tensor) -> Tensor:
        alpha_bar = ddpm.alpha_bars[t].float()[:, None]  # (B, 1)
        logits = (alpha_bar.sqrt() * (xt.flatten(1) @ flat.T) - alpha_bar * norms / 2) / (1 - alpha_bar)
        return ddpm.predict_eps(xt, t, (logits.softmax(1) @ flat).view_as(xt))

    weights = hashlib.sha256(PRETRAINED.read_bytes()).hexdigest()
    results = {"sha256": weights, "images": len(everything), "number": number}
    for name, images in (("train", train_set), ("test", test_set)):
        chosen = torch.arange(number) * len(images) // number  # folders come class by class
        x0 = to_float(images.images[chosen])
        results[name] = {
            "network": loss_per_t(eps_model, ddpm, x0),
            "perfect": loss_per_t(perfect, ddpm, x0),
        }
    return results


def loss_per_t(eps_model: NoiseModel, ddpm: DDPM, x0: Tensor) -> list[list[float]]:
    """For each of TS the mean loss and its standard error; the noise is the same for every model."""
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    rows = []
    for t in TS:
        parts = zip(x0.split(32), eps.split(32), strict=True)
        losses = torch.cat([ddpm.loss(eps_model, x, torch.full((len(x),), t), e) for x, e in parts])
        rows.append(rounded(torch.stack([losses.mean(), losses.std() / len(losses) ** 0.5])))
    return rows


def to_nearest(x: Tensor, images: Tensor) -> Tensor:
    """(B,): root mean square difference per pixel value to the nearest of images."""
    return torch.cdist(x.flatten(1), images.flatten(1)).min(1).values / x[0].numel() ** 0.5


def rounded(values: Tensor) -> list[float]:
    return [float(f"{v:.4g}") for v in values.tolist()]


if __name__ == "__main__":
    main()
