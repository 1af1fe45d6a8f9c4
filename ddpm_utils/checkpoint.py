"""Chapter 04: weights on disk, as safetensors: no code is ever loaded, only tensors and text.

A checkpoint is one file: tensors, and a JSON text that says what they are. It is written beside its
place and moved there when complete, so a crash or a full disk leaves the previous one intact.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .diffusion import DDPM
from .unet import UNet, UNetConfig

FORMAT = 1  # raised when a file written today could no longer be read by the code of yesterday
WEIGHTS = Path(__file__).parent / "weights"
PRETRAINED = WEIGHTS / "cifar10.safetensors"
# one training, stopped after 7,232 images, after 111,168, and at its end: load_model reads each
STAGES = (WEIGHTS / "cifar10-7k.safetensors", WEIGHTS / "cifar10-111k.safetensors", PRETRAINED)


@dataclass(frozen=True)
class Trained:
    """A model ready to sample, with what belongs to it."""

    model: UNet
    ddpm: DDPM
    class_names: tuple[str, ...]
    info: dict  # steps, data and whatever else was noted when it was saved


def save_checkpoint(path: str | Path, tensors: dict[str, Tensor], info: dict) -> None:
    """Write tensors and a JSON-able info, atomically. Raises OSError, with the previous file intact."""
    path = Path(path)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    text = json.dumps({**info, "format": FORMAT, "sha256": _sha256(tensors)})
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={"ddpm_utils": text})
        partial.chmod(0o644)  # safetensors makes files that only their owner may read
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())  # the content must be on the disk before the name points to it
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OSError(f"{path} could not be saved ({error}). What stood there before is unchanged.") from error


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the info of a checkpoint. Raises FileNotFoundError or ValueError, saying what is wrong."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a checkpoint ({error}).") from error
    if "ddpm_utils" not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not a checkpoint of this project.")
    info = json.loads(metadata["ddpm_utils"])
    if info["format"] > FORMAT:
        raise ValueError(f"{path} was written by a newer version (format {info['format']}, this one reads {FORMAT}).")
    if info.pop("sha256") != _sha256(tensors):
        raise ValueError(f"{path} is damaged: its content does not match its hash.")
    return tensors, info


def model_info(model: UNet, class_names: tuple[str, ...]) -> dict:
    """What a checkpoint must say for its model to be built again."""
    return {"unet": asdict(model.config), "class_names": list(class_names)}


def export_model(source: str | Path, target: str | Path) -> None:
    """From a training checkpoint, keep what sampling needs: the EMA weights, in half precision, and the betas."""
    tensors, info = load_checkpoint(source)
    slim = {name: value.half() for name, value in tensors.items() if name.startswith("ema.")}
    save_checkpoint(target, {**slim, "betas": tensors["betas"]}, info)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Trained:
    """The EMA model of a checkpoint, in evaluation mode, with its DDPM and class names."""
    tensors, info = load_checkpoint(path)
    try:
        model = UNet(unet_config(info))
        model.load_state_dict(weights_of(tensors, "ema."))
        ddpm = DDPM(tensors["betas"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a complete model ({error}).") from error
    return Trained(model.eval().requires_grad_(False).to(device), ddpm, tuple(info["class_names"]), info)


def load_pretrained(device: torch.device | str = "cpu") -> Trained:
    """The CIFAR-10 model that ships with this module; weights/README.md is its model card. Needs no network."""
    return load_model(PRETRAINED, device)


def unet_config(info: dict) -> UNetConfig:
    """The UNetConfig in a checkpoint's info (JSON knows lists only, the config wants tuples)."""
    return UNetConfig(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in info["unet"].items()}
    )


def weights_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The float32 tensors whose names begin with prefix, without it."""
    return {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
