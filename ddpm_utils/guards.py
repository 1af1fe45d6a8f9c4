"""What a function asks before it computes: could this argument be right? If not: which one, and why not.

No chapter teaches this file. Each check raises TypeError (the wrong kind) or ValueError (the wrong value) with the
argument's name. None reads the pixels of an image, which would cost time at every step: a NaN there stays a NaN in
that image and no other, and `train_step` stops at it.
"""

import math
from collections.abc import Callable
from numbers import Integral, Real

import torch
from torch import Tensor


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}.")


def _check_floats(name: str, x: Tensor) -> None:
    """Whole numbers among them: arithmetic would round the result to whole numbers, too."""
    _check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} must hold floats, not {x.dtype}.")


def _check_int(name: str, value: int, low: int | None = None) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}.")
    if low is not None and value < low:
        raise ValueError(f"{name} must be at least {low}, not {value}.")


def _check_number(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    if not (math.isfinite(value) and low <= value <= high):
        limits = f" from {low:g} to {high:g}" if math.isfinite(high) else f" of at least {low:g}" if low > -9e9 else ""
        raise ValueError(f"{name} must be a finite number{limits}, not {value}.")


def _check_fields(check: Callable[[str, object], None], config: object, *names: str) -> None:
    for name in names:
        check(name, getattr(config, name))


def _check_tuple(name: str, value: tuple, kind: type) -> None:
    if not isinstance(value, tuple) or any(type(entry) is not kind for entry in value):
        raise TypeError(f"{name} must be a tuple of {kind.__name__}, not {value!r}.")


def _check_seed(name: str, seed: int) -> None:
    _check_int(name, seed)
    if abs(seed) >= 2**40:
        raise ValueError(f"{name} must lie between -2^40 and 2^40, not be {seed}.")


def _check_generator(name: str, generator: torch.Generator | None, or_none: bool = False) -> None:
    if not isinstance(generator, torch.Generator) and not (or_none and generator is None):
        raise TypeError(f"{name} must be a torch.Generator, not {type(generator).__name__}.")


def _check_device(name: str, a: Tensor, other: str, b: Tensor) -> None:
    if a.device != b.device:
        raise ValueError(f"{name} must be on the device of {other}, {b.device}, not on {a.device}.")


def _check_features(name: str, x: Tensor, channels: int, weight: Tensor) -> None:
    """Feature maps (B, channels, H, W), as a layer with that weight takes them."""
    _check_floats(name, x)
    if x.ndim != 4 or x.shape[1] != channels or not min(x.shape[2:]):
        raise ValueError(f"{name} must have the shape (B, {channels}, H, W), not {tuple(x.shape)}.")
    _check_weights_dtype(name, x, weight)


def _check_weights_dtype(name: str, x: Tensor, weight: Tensor) -> None:
    """On the weights' device, and of their dtype, unless autocast brings the dtypes together."""
    _check_floats(name, x)
    _check_device(name, x, "the weights", weight)
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{name} must be {weight.dtype}, as the weights are, not {x.dtype}.")
