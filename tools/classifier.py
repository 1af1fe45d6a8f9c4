"""Train the small classifier that ddpm_utils.evaluation measures samples with.

    python tools/classifier.py data/cifar10-jpeg data/cifar10-lossless --epochs 10

Trains on the train splits of all folders given, tests on the last one's test split, and writes the weights in half
precision. Some 10 minutes on two cores with bfloat16.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_utils.checkpoint import save_checkpoint
from ddpm_utils.data import load_images, random_flip, to_float
from ddpm_utils.evaluation import CLASSIFIER, Classifier, load_classifier, look_at
from ddpm_utils.training import batch_indices

WIDTHS = (32, 64, 128, 192)  # 1.1 million weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders, as load_images takes them")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.2, help="peak rate of SGD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=CLASSIFIER)
    options = parser.parse_args()

    sets = [load_images(folder) for folder in options.data]
    images, labels = torch.cat([s.images for s in sets]), torch.cat([s.labels for s in sets])
    torch.manual_seed(options.seed)  # the initial weights
    model = Classifier(WIDTHS).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), options.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = round(options.epochs * len(images) / options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, steps, pct_start=0.2)
    start = time.perf_counter()
    for step in range(steps):
        chosen = batch_indices(len(images), options.batch_size, step, options.seed)
        x = augment(to_float(images[chosen]), torch.Generator().manual_seed(options.seed * steps + step))
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            logits = model(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"{step + 1}/{steps}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)

    info = {
        "widths": list(WIDTHS),
        "class_names": list(sets[-1].class_names),
        "data": [[s.source, len(s)] for s in sets],
        "epochs": options.epochs,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - start),
    }
    weights = {f"classifier.{k}": v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_checkpoint(options.output, weights, info)
    saved, _ = load_classifier(options.output)  # what is measured is what ships, half precision included
    for folder in options.data:
        test = load_images(folder, "test")
        right = (look_at(saved, test.images).labels == test.labels).float().mean()
        print(f"{test.source}: {right:.1%} of {len(test):,} test images right")


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored at random, and moved by up to 4 pixels: one move for the whole batch, which is faster."""
    dy, dx = torch.randint(9, (2,), generator=generator).tolist()
    return F.pad(random_flip(x, generator), (4, 4, 4, 4), mode="reflect")[:, :, dy : dy + 32, dx : dx + 32]


if __name__ == "__main__":
    main()
