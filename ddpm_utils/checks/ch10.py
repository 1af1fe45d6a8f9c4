"""Exercises of chapter 10: the perfect denoiser of a smooth density, how many images vote, and shifted copies."""

import torch
from torch import Tensor

from . import Exercise, close

# ---- 10.1: E[x0 | xt] for blobs --------------------------------------------------------------------------------------


def _vote(xt: Tensor, alpha_bar: float, centres: Tensor, variance: float, scale: float | None = None) -> Tensor:
    scale = alpha_bar**0.5 if scale is None else scale
    return (-torch.cdist(xt, scale * centres).square() / (2 * variance)).softmax(1) @ centres


def _smooth(xt: Tensor, alpha_bar: float, centres: Tensor, std: float) -> Tensor:
    v = alpha_bar * std**2 + 1 - alpha_bar
    vote = _vote(xt, alpha_bar, centres, v)
    return ((1 - alpha_bar) * vote + alpha_bar**0.5 * std**2 * xt) / v


def _points_vote(xt: Tensor, alpha_bar: float, centres: Tensor, std: float) -> Tensor:
    v = alpha_bar * std**2 + 1 - alpha_bar
    vote = _vote(xt, alpha_bar, centres, 1 - alpha_bar)
    return ((1 - alpha_bar) * vote + alpha_bar**0.5 * std**2 * xt) / v


def _std_for_variance(xt: Tensor, alpha_bar: float, centres: Tensor, std: float) -> Tensor:
    return _smooth(xt, alpha_bar, centres, std**0.5)


def _unscaled_centres(xt: Tensor, alpha_bar: float, centres: Tensor, std: float) -> Tensor:
    v = alpha_bar * std**2 + 1 - alpha_bar
    vote = _vote(xt, alpha_bar, centres, v, scale=1.0)
    return ((1 - alpha_bar) * vote + alpha_bar**0.5 * std**2 * xt) / v


def _whole_variance(xt: Tensor, alpha_bar: float, centres: Tensor, std: float) -> Tensor:
    """Eq. 10.7 with v, the variance of a blob of x_t, where the variance of the noise belongs: the vote alone."""
    return _vote(xt, alpha_bar, centres, alpha_bar * std**2 + 1 - alpha_bar)


def _smooth_cases() -> list[tuple]:
    g = torch.Generator().manual_seed(0)
    centres = 0.9 * torch.randn(4, 2, generator=g, dtype=torch.float64)
    xt = torch.randn(6, 2, generator=g, dtype=torch.float64)
    return [(xt, alpha_bar, centres, std) for alpha_bar, std in ((0.6, 0.3), (0.2, 0.5), (0.9, 0.2), (0.5, 0.0))]


smooth_x0 = Exercise(
    "smooth_x0",
    reference=_smooth,
    cases=_smooth_cases,
    mistakes={
        "this is the vote alone, a mean of centres; within a blob x0 also leans towards xt.": _whole_variance,
        "the shares are those of single points, with variance 1 - alpha_bar; a noised blob has alpha_bar s^2 more.": (
            _points_vote
        ),
        "the centres are not scaled by sqrt(alpha_bar) in the vote.": _unscaled_centres,
        "s enters where its square belongs: std is a standard deviation.": _std_for_variance,
        "the division by sqrt(alpha_bar) is missing: this is sqrt(alpha_bar) E[x0 | xt].": (
            lambda xt, alpha_bar, centres, std: alpha_bar**0.5 * _smooth(xt, alpha_bar, centres, std)
        ),
        "this is the gradient of log q(xt); solve eq. 10.7 for E[x0 | xt].": (
            lambda xt, alpha_bar, centres, std: (
                (alpha_bar**0.5 * _smooth(xt, alpha_bar, centres, std) - xt) / (1 - alpha_bar)
            )
        ),
        "this is E[eps | xt]; E[x0 | xt] is asked for.": (
            lambda xt, alpha_bar, centres, std: (
                (xt - alpha_bar**0.5 * _smooth(xt, alpha_bar, centres, std)) / (1 - alpha_bar) ** 0.5
            )
        ),
    },
    note="For s = 0 it is the vote of eq. 10.4; for one blob, a straight line in xt.",
)

# ---- 10.2: how many images vote --------------------------------------------------------------------------------------


def _number_cases() -> list[tuple]:
    g = torch.Generator().manual_seed(1)
    rough = (2 * torch.randn(5, 8, generator=g)).log_softmax(1)
    sure = torch.tensor([[0.0] + [-torch.inf] * 7, [-2000.0, -1e-30, *[-2500.0] * 6]])
    even = torch.full((2, 8), 1 / 8).log()
    return [(rough,), (even,), (sure,)]


effective_number = Exercise(
    "effective_number",
    reference=lambda log_p: torch.special.entr(log_p.exp()).sum(1).exp(),
    cases=_number_cases,
    mistakes={
        "where P is 0 this is 0 times minus infinity, which is NaN; the limit is 0.": (
            lambda log_p: (-(log_p.exp() * log_p).sum(1)).exp()
        ),
        "this is the entropy; its exponential counts images.": lambda log_p: torch.special.entr(log_p.exp()).sum(1),
        "the sign is missing: this is 1 over the effective number.": (
            lambda log_p: (-torch.special.entr(log_p.exp()).sum(1)).exp()
        ),
        "the entropy is in bits, so 2 must be raised to it, not e.": (
            lambda log_p: (torch.special.entr(log_p.exp()).sum(1) / torch.log(torch.tensor(2.0))).exp()
        ),
        "this is 1 / sum P^2, another effective number; the one asked for is exp(entropy).": (
            lambda log_p: 1 / log_p.exp().square().sum(1)
        ),
        "this is the mean of -P log P over the images; the entropy is their sum.": (
            lambda log_p: torch.special.entr(log_p.exp()).mean(1).exp()
        ),
        "this sums over the batch; each row has its own entropy.": (
            lambda log_p: torch.special.entr(log_p.exp()).sum(0).exp()
        ),
    },
    note="8 equal shares give 8, a unanimous vote 1.",
)

# ---- 10.3: shifted copies --------------------------------------------------------------------------------------------


def _shifted(images: Tensor, r: int) -> Tensor:
    moves = range(-r, r + 1)
    return torch.cat([images.roll((i, j), (2, 3)) for i in moves for j in moves])


def _same_set(got: object, want: object) -> str:
    """As close, but the images may come in any order."""
    if problem := close(got, want, rtol=torch.inf):  # type and shape
        return problem
    rows, wanted = (sorted(x.flatten(1).tolist()) for x in (got, want))
    missing = sum(row not in rows for row in wanted)
    return f"{missing} of the {len(wanted)} images wanted are not there" if missing else ""


def _shift_cases() -> list[tuple]:
    images = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(2))
    return [(images, 1), (images, 2), (images, 0)]


shifted = Exercise(
    "shifted",
    reference=_shifted,
    cases=_shift_cases,
    compare=_same_set,
    mistakes={
        "only diagonal moves: height and width must move independently, (2 r + 1)^2 ways.": (
            lambda images, r: torch.cat([images.roll((i, i), (2, 3)) for i in range(-r, r + 1)])
        ),
        "range(-r, r) ends before r; range(-r, r + 1) has all 2 r + 1 moves.": (
            lambda images, r: torch.cat([images.roll((i, j), (2, 3)) for i in range(-r, r) for j in range(-r, r)])
        ),
        "this moves only down and right, 0 ... r; up and left are missing.": (
            lambda images, r: torch.cat([images.roll((i, j), (2, 3)) for i in range(r + 1) for j in range(r + 1)])
        ),
        "this rolls channels and height; of (N, C, H, W) the last two dimensions are height and width, 2 and 3.": (
            lambda images, r: torch.cat(
                [images.roll((i, j), (1, 2)) for i in range(-r, r + 1) for j in range(-r, r + 1)]
            )
        ),
        "without dims, roll moves the flattened tensor: images flow into each other.": (
            lambda images, r: torch.cat(
                [images.roll(i * images.shape[-1] + j) for i in range(-r, r + 1) for j in range(-r, r + 1)]
            )
        ),
    },
    note="A vote among these may use a piece wherever it was seen.",
)
