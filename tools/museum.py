"""Train the small networks that notebook 09 shows: one that is right, and others with one bug each.

    python tools/museum.py                  all of them, some six minutes on one core
    python tools/museum.py right sigmoid    these alone; what is known of the others stays

Each learns the built-in shapes at 16 x 16 pixels. Losses and samples go to notebooks/data/09_trained.json; the samples
are bytes, (8, 3, 16, 16), in base64.
"""

import argparse
import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_utils import unet
from ddpm_utils.data import shapes, to_float, to_uint8
from ddpm_utils.diffusion import DDPM, linear_betas, posterior_variances
from ddpm_utils.sampling import last, noise_model, sample_ddpm, start_noise
from ddpm_utils.training import EMA
from ddpm_utils.unet import UNet, UNetConfig

FILE = Path(__file__).resolve().parent.parent / "notebooks" / "data" / "09_trained.json"
CONFIG = UNetConfig(16, (1, 2), blocks=1, attention=(False, True), groups=1, dropout=0.0, num_classes=10)
NO_LABEL = CONFIG.num_classes
BATCH, LR = 32, 3e-3
STEPS = dict.fromkeys(("sigmoid", "no zero init", "lost skip", "backward of the loss"), 500)  # the start tells enough
MOST_STEPS = 1500
LOOKS = (100, 500, MOST_STEPS)  # steps after which the right network is looked at
TS = (0, 5, 20, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)


def no_time(t: Tensor, dim: int) -> Tensor:
    return torch.zeros(len(t), dim)


def without_zero_init(model: UNet) -> None:
    for name, module in model.named_modules():
        if name.endswith(("conv2", "attention.out", "conv_out")):
            module.reset_parameters()


def with_sigmoid(model: UNet) -> None:
    model.register_forward_hook(lambda module, inputs, output: output.sigmoid())


def with_a_lost_skip(model: UNet) -> None:
    """The first block of the last level gets zeros for the skip that was meant for it."""
    width = CONFIG.channels

    def lose(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, emb = inputs
        return torch.cat([x[:, :-width], torch.zeros_like(x[:, -width:])], dim=1), emb

    model.up[3].register_forward_pre_hook(lose)


BUGS: dict[str, Callable[[UNet], None]] = {
    "sigmoid": with_sigmoid,
    "no zero init": without_zero_init,
    "lost skip": with_a_lost_skip,
}
NAMES = ("right", *BUGS, "no time", "backward of the loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(NAMES)}")
    parser.add_argument("--steps", type=int, default=MOST_STEPS, help="most training steps; fewer for a trial")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    for name in args.names or NAMES:
        with patch.object(unet, "sinusoidal_embedding", no_time if name == "no time" else unet.sinusoidal_embedding):
            found = train(name, min(args.steps, STEPS.get(name, args.steps)))
        known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(known | {name: found}, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: mean loss of the last 100 steps {sum(found['loss'][-5:]) / 5:.3f}", flush=True)


def train(name: str, steps: int) -> dict:
    """Losses, means of 20 steps each, and samples of the network that has this bug."""
    torch.manual_seed(0)
    ddpm, model = DDPM(linear_betas()), UNet(CONFIG)
    BUGS.get(name, lambda model: None)(model)
    drawings = shapes(5000)
    images, labels = small(drawings.images), drawings.labels
    averages = {decay: EMA(model, decay) for decay in (0.5, 0.998)}
    slow = copy.deepcopy(averages[0.998])  # without a warm-up of the decay
    optimizer = torch.optim.Adam(model.parameters(), LR)
    losses, found = [], {}
    for step in range(steps):
        rows = torch.randint(len(images), (BATCH,))
        t, eps = torch.randint(ddpm.T, (BATCH,)), torch.randn(BATCH, 3, 16, 16)
        y = torch.where(torch.rand(BATCH) < 0.15, NO_LABEL, labels[rows])
        loss = ddpm.loss(lambda xt, t, y=y: model(xt, t, y), images[rows], t, eps).mean()
        optimizer.zero_grad()
        loss.backward(loss.detach() if name == "backward of the loss" else None)
        optimizer.step()
        losses.append(loss.item())
        for average in averages.values():
            average.update(model, step)
        with torch.no_grad():
            for mean, parameter in zip(slow.model.parameters(), model.parameters(), strict=True):
                mean.lerp_(parameter, 1 - 0.9995)
        if name == "right" and step + 1 in LOOKS:
            look = averages[0.998].model
            found[f"after {step + 1}"] = {"loss by t": loss_by_t(ddpm, look), "samples": draw(ddpm, look)}
    found["loss"] = [round(sum(losses[i : i + 20]) / 20, 4) for i in range(0, steps - 19, 20)]
    found["samples"] = draw(ddpm, averages[0.998].model)
    if name == "right":
        found |= {"raw": draw(ddpm, model), "short": draw(ddpm, averages[0.5].model), "long": draw(ddpm, slow.model)}
    return found


def small(images: Tensor) -> Tensor:
    """(N, 3, 32, 32) bytes -> (N, 3, 16, 16) in [-1, 1]."""
    return F.avg_pool2d(to_float(images), 2)


@torch.no_grad()
def loss_by_t(ddpm: DDPM, model: UNet) -> list[float]:
    """The mean loss on 200 drawings that no network has seen, at each of TS."""
    drawings = shapes(200, seed=1)
    x0, g = small(drawings.images), torch.Generator().manual_seed(0)
    losses = []
    for t in TS:
        eps = torch.randn(x0.shape, generator=g)
        loss = ddpm.loss(lambda xt, t: model(xt, t, drawings.labels), x0, torch.full((len(x0),), t), eps)
        losses.append(round(loss.mean().item(), 5))
    return losses


def draw(ddpm: DDPM, model: UNet) -> str:
    x_T, generator = start_noise(8, seed=0, size=16)
    eps_model = noise_model(copy.deepcopy(model).eval(), torch.arange(8))
    walk = sample_ddpm(eps_model, ddpm, x_T, steps=50, variances=posterior_variances, generator=generator)
    return base64.b64encode(to_uint8(last(walk)).numpy().tobytes()).decode()


if __name__ == "__main__":
    main()
