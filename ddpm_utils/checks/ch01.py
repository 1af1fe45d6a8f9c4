"""Exercises of chapter 01: the sinusoidal time embedding."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ddpm_utils.checks import Exercise, close
from ddpm_utils.embedding import sinusoidal_embedding

# ---- 1.1 the embedding itself ---------------------------------------------------------------------------------------


def _times() -> list[tuple]:
    t = torch.tensor([0, 1, 10, 500, 999])
    return [(t, 8), (t, 32), (t[:3], 32, 100.0)]


def _angles(t: Tensor, dim: int, max_period: float = 10_000.0, shift: int = 1) -> Tensor:
    half = dim // 2
    return t[:, None].float() * torch.exp(-math.log(max_period) * torch.arange(half) / (half - shift))


def _waves(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The embedding with its angles changed."""

    def embed(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
        angles = change(_angles(t, dim, max_period))
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    return embed


def _by_half(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    angles = _angles(t, dim, max_period, shift=0)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _cosines_first(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    angles = _angles(t, dim, max_period)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _interleaved(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    angles = _angles(t, dim, max_period)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def _growing(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    angles = _angles(t, dim, 1 / max_period)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _evenly_spaced(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    angles = t[:, None].float() * torch.linspace(1, 1 / max_period, dim // 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


embedding = Exercise(
    "embedding",
    reference=sinusoidal_embedding,
    cases=_times,
    mistakes={
        "the exponent runs over i / half; eq. 1.3 divides by half - 1.": _by_half,
        "the cosines stand before the sines; here the sines come first.": _cosines_first,
        "sines and cosines take turns; here all the sines come first, then all the cosines.": _interleaved,
        "the frequencies grow; the exponent wants a minus sign.": _growing,
        "the frequencies are evenly spaced; eq. 1.3 wants neighbours with the same ratio.": _evenly_spaced,
        "each angle has an extra factor 2 pi; a frequency here is in radians per step.": _waves(
            lambda angles: 2 * math.pi * angles
        ),
        "the angles are turned from degrees to radians; they are radians already.": _waves(torch.deg2rad),
        "t is divided by 1000 first; it stays in units of steps.": _waves(lambda angles: angles / 1000),
    },
    # float32 angles near 1000 are only good to about 1e-4, whichever way the frequencies were computed
    compare=partial(close, atol=1e-3),
    note="This is the embedding of the series.",
)

# ---- 1.2 a shift is a matrix ----------------------------------------------------------------------------------------


def _blocks(k: float, frequencies: Tensor, signs: tuple[int, int, int, int] = (1, 1, -1, 1)) -> Tensor:
    cos, sin = ((k * frequencies).cos().diag(), (k * frequencies).sin().diag())
    a, b, c, d = signs
    return torch.cat([torch.cat([a * cos, b * sin], 1), torch.cat([c * sin, d * cos], 1)], 0)


def _pair_by_pair(k: float, frequencies: Tensor) -> Tensor:
    return torch.block_diag(*[_blocks(k, frequency[None]) for frequency in frequencies])


def _shifts() -> list[tuple]:
    frequencies = torch.tensor([1.0, 0.3, 0.09])
    return [(1, frequencies), (5, frequencies), (-2, frequencies[:2])]


shift_matrix = Exercise(
    "shift_matrix",
    reference=_blocks,
    cases=_shifts,
    mistakes={
        "this turns the hands back, from t + k to t. Check the sign of the sines (eq. 1.6).": lambda k, frequencies: (
            _blocks(-k, frequencies)
        ),
        "one of the two sines wants a minus sign; a rotation has one of each.": lambda k, frequencies: _blocks(
            k, frequencies, (1, 1, 1, 1)
        ),
        "every hand turns by the same angle k; hand i turns by its own, frequency times k.": lambda k, frequencies: (
            _blocks(k, torch.ones_like(frequencies))
        ),
        "this fits sines and cosines that take turns; here all the sines come first.": _pair_by_pair,
        "sine and cosine have changed places; at k = 0 this must be the identity.": lambda k, frequencies: (
            _blocks(math.pi / 2, torch.ones_like(frequencies)) @ _blocks(-k, frequencies)
        ),
    },
    note="One matrix moves every timestep k steps on.",
)

# ---- 1.3 weights for the other variant ------------------------------------------------------------------------------


def _weights() -> list[tuple]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 8, generator=g),), (torch.randn(6, 6, generator=g),)]


convert_weight = Exercise(
    "convert_weight",
    reference=lambda weight: torch.cat([weight[:, weight.shape[1] // 2 :], weight[:, : weight.shape[1] // 2]], dim=1),
    cases=_weights,
    mistakes={
        "this is the weight unchanged.": lambda weight: weight,
        "this exchanges the rows (outputs); the embedding meets the columns.": lambda weight: weight.roll(
            len(weight) // 2, dims=0
        ),
        "the columns stand in reverse order; the two halves change places, each keeps its own order.": lambda weight: (
            weight.flip(1)
        ),
        "neighbouring columns are exchanged; that fits sines and cosines that take turns.": lambda weight: (
            weight.unflatten(1, (-1, 2)).flip(2).flatten(1)
        ),
        "this is the transpose of the weight: (in, out).": lambda weight: weight.T.contiguous(),
    },
    note="With /half no such order exists: the frequencies themselves differ.",
)

# ---- 1.4 an embedding for T = 100 -----------------------------------------------------------------------------------

T = 100


def _finding(choice: tuple[int, float]) -> str:
    """The first property that a choice (dim, max_period) lacks; "fine" if it has them all."""
    dim, max_period = choice
    if dim > 32:
        return "large"
    codes = sinusoidal_embedding(torch.arange(T), dim, max_period)
    similarity = codes @ codes.T / (dim / 2)
    distance = (torch.arange(T)[:, None] - torch.arange(T)).abs()
    if (T - 1) / max_period < math.pi / 2:
        return "idle"
    if similarity[distance == 1].min() < 0.85:
        return "jumpy"
    if similarity[distance >= 10].max() > 0.5:
        return "alike"
    return "fine"


def _same_finding(got: object, want: object) -> str:
    return "" if got == want else f"this embedding is found {got}; it should be {want}"


choice = Exercise(
    "choice",
    reference=(32, 30.0),
    mistakes={
        "dim is above 32.": (128, 60.0),
        "the slowest hand makes less than a quarter turn in 99 steps: max_period is too large.": (32, 10_000.0),
        "neighbours have a similarity below 0.85: too many fast hands, so max_period is too small.": (32, 2.0),
        "two timesteps 10 or more apart have a similarity above 0.5: too few hands to tell them apart.": (8, 30.0),
    },
    run=_finding,
    compare=_same_finding,
    note="All four properties hold.",
)
