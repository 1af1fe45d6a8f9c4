"""Chapter 01: telling a network which timestep it is looking at."""

import math

import torch
from torch import Tensor

from .guards import _check_int, _check_number, _check_tensor


def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Embed timesteps as sines and cosines of geometrically spaced frequencies.

    t: (B,) timesteps, any real dtype, in units of steps (0...T-1, not 0...1).
    dim: even, at least 4. max_period: the slowest wave has the period 2 pi max_period steps.
    Returns (B, dim) float32: dim/2 sines, then dim/2 cosines.
    Raises ValueError where t is not one-dimensional and finite, or dim is odd or too small; TypeError for other kinds.

    Source: Vaswani et al. 2017, section 3.5, in the form of Ho et al. 2020: the frequencies run
    from 1 down to exactly 1/max_period (division by half - 1), sines stand before cosines.
    Trained weights are tied to both choices.
    """
    _check_tensor("t", t)
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"t must hold real numbers, not {t.dtype}.")
    if t.ndim != 1 or not torch.isfinite(t).all():
        raise ValueError(f"t must be a one-dimensional tensor of finite timesteps, not of shape {tuple(t.shape)}.")
    _check_int("dim", dim)
    _check_number("max_period", max_period, low=1.0)
    if dim < 4 or dim % 2:
        raise ValueError(f"dim must be an even number of at least 4, not {dim}.")
    half = dim // 2
    exponents = torch.arange(half, device=t.device) / (half - 1)  # (half,): 0 ... 1
    frequencies = torch.exp(-math.log(max_period) * exponents)  # (half,): 1 ... 1/max_period
    angles = t[:, None].float() * frequencies[None, :]  # (B, half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, dim)
