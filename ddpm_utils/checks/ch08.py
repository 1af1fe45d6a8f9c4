"""Exercises of chapter 08: the Frechet distance on a line, its bias, density and coverage, and an alarm for copies."""

import math

import torch
from torch import Tensor

from . import Exercise

# ---- 8.1: two Gaussians on a line ------------------------------------------------------------------------------------


def _line(mean_a: float, var_a: float, mean_b: float, var_b: float) -> float:
    return (mean_a - mean_b) ** 2 + (var_a**0.5 - var_b**0.5) ** 2


frechet_1d = Exercise(
    "frechet_1d",
    reference=_line,
    cases=lambda: [(0.0, 1.0, 1.5, 0.25), (-1.0, 4.0, 2.0, 9.0), (0.5, 2.0, 0.5, 2.0)],
    mistakes={
        "this compares the variances; (F2) wants the deviations, their roots.": lambda m, v, n, w: (
            (m - n) ** 2 + (v - w) ** 2
        ),
        "the difference of the means must be squared, too.": lambda m, v, n, w: abs(m - n) + (v**0.5 - w**0.5) ** 2,
        "the difference of the deviations must be squared, too.": lambda m, v, n, w: (
            (m - n) ** 2 + abs(v**0.5 - w**0.5)
        ),
        "this adds the variances, as if x and y were drawn independently; the cheapest pairs share one Z.": (
            lambda m, v, n, w: (m - n) ** 2 + v + w
        ),
        "this is the distance; asked for is its square, W^2.": lambda *args: _line(*args) ** 0.5,
        "the means are missing.": lambda m, v, n, w: (v**0.5 - w**0.5) ** 2,
    },
    note="In code that has variances at hand, the missing root is the classic mistake.",
)

# ---- 8.2: the bias of a distance that looks at each feature alone ----------------------------------------------------


def _full_law(variances: Tensor, n: int) -> float:
    a = variances.double()
    pairs = a[:, None] * a / (2 * (a[:, None] + a))
    return (a.sum() + pairs.sum() + pairs.trace()).item() / n


diagonal_bias = Exercise(
    "diagonal_bias",
    reference=lambda variances, n: 1.5 * variances.sum().item() / n,
    cases=lambda: [
        (torch.ones(8, dtype=torch.float64), 100),
        (torch.tensor([0.1, 2.0, 5.0], dtype=torch.float64), 1000),
    ],
    mistakes={
        "this is the share of the means alone; the deviations are estimated, too.": lambda v, n: v.sum().item() / n,
        "this is the share of the deviations alone; the means are estimated, too.": (
            lambda v, n: 0.5 * v.sum().item() / n
        ),
        "this is (F4), with all pairs of features; the colleague's distance has no pairs.": _full_law,
        "the relative error of a variance is sqrt(2/n); that of its root is half as large.": (
            lambda v, n: 3 * v.sum().item() / n
        ),
        "this adds up deviations; errors squared are in units of variances.": (
            lambda v, n: 1.5 * v.sqrt().sum().item() / n
        ),
        "the number of samples is missing.": lambda v, n: 1.5 * v.sum().item(),
        "this falls as the root of n, as chance does; a mean SQUARE falls as 1/n.": (
            lambda v, n: 1.5 * v.sum().item() / math.sqrt(n)
        ),
    },
    note="In D dimensions it grows as D, where (F4) grows as D squared.",
)

# ---- 8.3: density and coverage --------------------------------------------------------------------------------------


def _reach(points: Tensor, k: int) -> Tensor:
    return torch.cdist(points, points).sort(1).values[:, k]


def _from(inside: Tensor, k: float) -> tuple[float, float]:
    return inside.double().sum(1).mean().item() / k, inside.any(0).double().mean().item()


def _density_coverage(real: Tensor, samples: Tensor, k: int) -> tuple[float, float]:
    return _from(torch.cdist(samples, real) <= _reach(real, k), k)


def _itself_counted(real: Tensor, samples: Tensor, k: int) -> tuple[float, float]:
    return _from(torch.cdist(samples, real) <= _reach(real, k - 1), k)


def _one_size(real: Tensor, samples: Tensor, k: int) -> tuple[float, float]:
    return _from(torch.cdist(samples, real) <= _reach(real, k).mean(), k)


def _precision(real: Tensor, samples: Tensor, k: int) -> tuple[float, float]:
    inside = torch.cdist(samples, real) <= _reach(real, k)
    return inside.any(1).double().mean().item(), inside.any(0).double().mean().item()


def _recall(real: Tensor, samples: Tensor, k: int) -> tuple[float, float]:
    covered = torch.cdist(real, samples) <= _reach(samples, k)
    return _density_coverage(real, samples, k)[0], covered.any(1).double().mean().item()


def _cases_of_points() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(120, 3, generator=generator, dtype=torch.float64)
    narrow = 0.4 * torch.randn(90, 3, generator=generator, dtype=torch.float64)
    moved = 0.8 + torch.randn(120, 3, generator=generator, dtype=torch.float64)
    return [(real, narrow, 3), (real, moved, 2), (real, moved, 5)]


density_coverage = Exercise(
    "density_coverage",
    reference=_density_coverage,
    cases=_cases_of_points,
    mistakes={
        "the two are swapped; return density first.": lambda *args: _density_coverage(*args)[::-1],
        "density is not divided by k.": lambda real, samples, k: (
            _density_coverage(real, samples, k)[0] * k,
            _density_coverage(real, samples, k)[1],
        ),
        "each point counts as its own first neighbour, so the balls are one neighbour too small.": _itself_counted,
        "one size for all balls; each point's ball reaches its own k-th neighbour.": _one_size,
        "the first is precision, which asks for ANY ball; density counts them.": _precision,
        "the second is recall, with balls around samples; coverage keeps the balls around real points.": _recall,
        "the balls stand around samples; here all balls stand around real points.": lambda real, samples, k: (
            _density_coverage(samples, real, k)
        ),
        "density is a mean over samples, not over real points.": lambda real, samples, k: (
            _density_coverage(real, samples, k)[0] * len(samples) / len(real),
            _density_coverage(real, samples, k)[1],
        ),
    },
    note="Density can exceed 1: many samples where real points are densest.",
)

# ---- 8.4: an alarm for copies ----------------------------------------------------------------------------------------


def _alarm(answer: object, scale: float, copies: int) -> str | None:
    """What the reader's alarm does on 400 samples, the last few of which are copies, in a word."""
    generator = torch.Generator().manual_seed(5)

    def images(n: int) -> Tensor:
        return scale * torch.randn(n, 8, generator=generator)

    known, held_out, samples = images(1000), images(800), images(400)
    if copies:
        samples[-copies:] = known[:copies] + 0.05 * images(copies)
    got = answer(samples, known, held_out)
    if got is None or got is ...:
        return None
    if not isinstance(got, Tensor) or got.shape != (400,) or got.dtype != torch.bool:
        return "the answer must be a tensor of 400 bools, one per sample"
    honest = got[: 400 - copies].double().mean().item()
    caught = got[-copies:].double().mean().item() if copies else 1.0
    if caught < 0.9:
        return "misses copies and raises false alarms" if honest > 0.05 else "misses copies"
    return "right" if honest <= 0.05 else "raises false alarms"


def _nearest(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b).min(1).values


suspicious = Exercise(
    "suspicious",
    reference=lambda samples, known, held_out: _nearest(samples, known) < _nearest(held_out, known).quantile(0.01),
    cases=lambda: [(1.0, 20), (100.0, 20), (0.01, 0), (1.0, 100)],
    run=_alarm,
    compare=lambda got, want: "" if got == want else str(got),
    mistakes={
        "a fixed threshold fits one scale of features; take it from how near held-out images come.": (
            lambda samples, known, held_out: _nearest(samples, known) < 0.3
        ),
        "the threshold comes from the samples themselves: with many copies among them it moves along.": (
            lambda samples, known, held_out: _nearest(samples, known) <= _nearest(samples, known).quantile(0.05)
        ),
        "the samples are compared with held-out images; copies are of known ones.": (
            lambda samples, known, held_out: _nearest(samples, held_out) < _nearest(held_out, known).quantile(0.01)
        ),
        "below the median of held-out images lies half of all honest samples; take a small quantile.": (
            lambda samples, known, held_out: _nearest(samples, known) < _nearest(held_out, known).median()
        ),
        "the comparison is the wrong way round: copies are NEAR.": (
            lambda samples, known, held_out: _nearest(samples, known) > _nearest(held_out, known).quantile(0.01)
        ),
    },
    note="Few false alarms, at any scale, and the planted copies are found.",
)
