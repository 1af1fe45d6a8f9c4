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
from safetensors.torch import save
from torch import Tensor

from .diffusion import DDPM
from .guards import _check_tensor
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

    @property
    def images_seen(self) -> int:
        """How many images its training has used, each time anew (older files tell steps and batch size only)."""
        return self.info.get("images_seen", self.info.get("step", 0) * self.info.get("train", {}).get("batch_size", 0))


def save_checkpoint(path: str | Path, tensors: dict[str, Tensor], info: dict) -> None:
    """Write tensors and a JSON-able info, atomically. Raises OSError, with the previous file intact."""
    path = Path(path)
    _check_tensors(tensors)
    if not isinstance(info, dict):
        raise TypeError(f"info must be a dict, not {type(info).__name__}.")
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    text = _to_json({**info, "format": FORMAT, "sha256": _sha256(tensors)})
    metadata = {"ddpm_utils": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:  # save_file makes a temporary file of its own, which a kill leaves behind
            file.write(save(tensors, metadata=metadata))
            file.flush()
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
    text = metadata["ddpm_utils"]
    info = _from_json(text)
    if not {"format", "sha256"} <= info.keys() or not isinstance(info["format"], int):
        raise ValueError(f"{path} is damaged: what it says of itself is not complete.")
    if info["format"] > FORMAT:
        raise ValueError(f"{path} was written by a newer version (format {info['format']}, this one reads {FORMAT}).")
    # the text's own hash came later than the tensors': the first files have none
    of_text = {"sha256": hashlib.sha256(text.encode()).hexdigest()} if len(metadata) > 1 else {}
    if info.pop("sha256") != _sha256(tensors) or metadata != {"ddpm_utils": text, **of_text}:
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
        ddpm, class_names = DDPM(tensors["betas"]), tuple(info["class_names"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a complete model ({error}).") from error
    return Trained(model.eval().requires_grad_(False).to(device), ddpm, class_names, info)


def load_pretrained(device: torch.device | str = "cpu") -> Trained:
    """The CIFAR-10 model that ships with this module; weights/README.md is its model card. Needs no network."""
    return load_model(PRETRAINED, device)


def unet_config(info: dict) -> UNetConfig:
    """The UNetConfig in a checkpoint's info (JSON knows lists only, the config wants tuples)."""
    if not isinstance(info, dict) or not isinstance(info.get("unet"), dict):
        raise ValueError('info must be a dict with the U-Net\'s settings as its "unet".')
    return UNetConfig(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in info["unet"].items()}
    )


def weights_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The float32 tensors whose names begin with prefix, without it."""
    _check_tensors(tensors)
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a word, not {prefix!r}.")
    return {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}


def _to_json(info: dict) -> str:
    try:
        return json.dumps(info)
    except (TypeError, ValueError) as error:
        raise TypeError(f"info must hold nothing but what JSON can ({error}).") from error


def _from_json(text: str) -> dict:
    """The info; {} where the text is damaged."""
    with contextlib.suppress(ValueError, RecursionError):
        info = json.loads(text)
        return info if isinstance(info, dict) else {}
    return {}


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    if not isinstance(tensors, dict):
        raise TypeError(f"tensors must be a dict of tensors by name, not {type(tensors).__name__}.")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise TypeError(f"tensors must have words for names, not {name!r}.")
        _check_tensor(f"tensors[{name!r}]", tensor)
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"tensors[{name!r}] must be an ordinary tensor, with its numbers in memory.")


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
