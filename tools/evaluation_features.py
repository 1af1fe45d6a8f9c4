"""Store the classifier's features of samples and of real images, for notebook 08 to compute with.

    python main.py evaluate ... --features build/features.safetensors
    python tools/evaluation_features.py build/features.safetensors

The samples' features are those that `main.py evaluate` measured and kept, in its order, so that the notebook finds the
figures of the model card again. Its real images are looked at here. Written are features, means of 192 activations
over a whole image, and labels; no pixel can be had back from them.

A feature f >= 0 is kept as one byte, round(255 sqrt(f / largest f of its column)): the root makes the steps small
where features are. The Frechet distance that the rounding alone makes is printed.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_utils.checkpoint import load_checkpoint, save_checkpoint
from ddpm_utils.data import load_images, to_float
from ddpm_utils.evaluation import frechet_distance, load_classifier, look_at, look_shuffled, random_order

ROOT = Path(__file__).resolve().parent.parent
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="the file that main.py evaluate --features wrote")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the features go")
    args = parser.parse_args()
    measured, about = load_checkpoint(args.measured)
    classifier, _ = load_classifier()
    train, test = (load_images(about["options"]["data"], split) for split in ("train", "test"))
    reference = look_at(classifier, train.images).features

    features = {name: measured[f"{name}.features"] for name in ("unguided", "guided")}
    labels = {name: measured[f"{name}.labels"] for name in features}
    for name, real in (("real", test), ("train", train)):
        seen, labels[name] = look_shuffled(classifier, real.images, real.labels)
        features[name] = seen.features
    features = {name: features[name][:number] for name, number in KEPT.items()}
    labels = {f"{name}.labels": labels[name][:number].to(torch.uint8) for name, number in KEPT.items()}
    originals = to_float(train.images[random_order(len(train))[:COPIED]])
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
        "options": about["options"],
        "weights_sha256": about["weights_sha256"],
        "reference": [train.source, len(train)],
        "class_names": list(train.class_names),
    }
    save_checkpoint(args.output, tensors, info)
    size = args.output.stat().st_size
    print(f"{args.output.name}: {size:,} bytes")
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
