"""Exercises of chapter 06."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..diffusion import DDPM, linear_betas
from ..sampling import spaced_timesteps
from . import Exercise

# ---- 6.1: how much noise is kept -------------------------------------------------------------------------------------


kept = Exercise(
    "kept",
    reference=lambda alpha_bar_prev, sigma: math.sqrt((1 - alpha_bar_prev - sigma**2) / (1 - alpha_bar_prev)),
    cases=lambda: [(0.5, 0.3), (0.8, 0.1), (0.2, 0.0)],
    mistakes={
        "this is the share of the VARIANCE that is kept; a correlation is its root.": (
            lambda alpha_bar_prev, sigma: (1 - alpha_bar_prev - sigma**2) / (1 - alpha_bar_prev)
        ),
        "this is the factor of eps_t in x_{t-1}; divide by sqrt(1 - alpha_bar_prev), the size of all its noise.": (
            lambda alpha_bar_prev, sigma: math.sqrt(1 - alpha_bar_prev - sigma**2)
        ),
        "this is the correlation with the fresh noise z, not with eps_t.": (
            lambda alpha_bar_prev, sigma: sigma / math.sqrt(1 - alpha_bar_prev)
        ),
        "sigma is a deviation; the variance of the fresh noise is its square.": (
            lambda alpha_bar_prev, sigma: math.sqrt((1 - alpha_bar_prev - sigma) / (1 - alpha_bar_prev))
        ),
    },
    note="1 for sigma = 0: all is kept. 0 for sigma^2 = 1 - alpha_bar_prev: every step starts afresh.",
)

# ---- 6.2: one step of the solver -------------------------------------------------------------------------------------


def _half_log_snr(alpha_bar: float) -> float:
    return math.log(alpha_bar / (1 - alpha_bar)) / 2


def _solver_step(
    halfway: Callable[[float], float] = lambda r: 1 / (2 * r),
    clock: Callable[[float], float] = _half_log_snr,
    upside_down: bool = False,
    root: Callable[[float], float] = math.sqrt,
):
    """Algorithm 2's step, and the places where one goes wrong in it."""

    def step(
        xt: Tensor, x0_hat: Tensor, x0_before: Tensor, alpha_bar_before: float, alpha_bar: float, alpha_bar_prev: float
    ) -> Tensor:
        before, now, then = clock(alpha_bar_before), clock(alpha_bar), clock(alpha_bar_prev)
        midway = x0_hat + (x0_hat - x0_before) * halfway((now - before) / (then - now))
        ratio = root((1 - alpha_bar_prev) / (1 - alpha_bar))
        ratio = 1 / ratio if upside_down else ratio
        return ratio * xt + (root(alpha_bar_prev) - ratio * root(alpha_bar)) * midway

    return step


def _solver_cases() -> list[tuple]:
    images = torch.randn(3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    return [(*images, 0.1, 0.3, 0.6), (*images, 0.004, 0.3, 0.4), (*images, 0.9, 0.95, 0.999)]


solver_step = Exercise(
    "solver_step",
    reference=_solver_step(),
    cases=_solver_cases,
    mistakes={
        "the ratio r is upside down; it is the last step over this step, h0 / h.": _solver_step(lambda r: r / 2),
        "this goes back towards x0_before; x0_hat goes on in the direction that it came.": (
            _solver_step(lambda r: -1 / (2 * r))
        ),
        "this takes the estimate at the END of the step; halfway is half of that: 1 / (2 r).": (
            _solver_step(lambda r: 1 / r)
        ),
        "this is order 1, DDIM: x0_before has no influence.": _solver_step(lambda r: 0.0),
        "r is 1 here, whatever the steps; it is h0 / h, measured in lambda.": _solver_step(lambda r: 0.5),
        "the steps are measured in alpha_bar; measure them in lambda = log(alpha_bar / (1 - alpha_bar)) / 2.": (
            _solver_step(clock=lambda alpha_bar: alpha_bar)
        ),
        "the noise must shrink by sigma' / sigma; here it grows.": _solver_step(upside_down=True),
        "alpha and sigma are the ROOTS of alpha_bar and 1 - alpha_bar.": _solver_step(root=lambda x: x),
    },
    note="With x0_before = x0_hat it is DDIM's step.",
)

# ---- 6.3: a spacing of one's own -------------------------------------------------------------------------------------


def _spacing(answer: object, T: int, steps: int) -> str | None:
    """What the reader's spacing does, in a word."""
    ddpm = DDPM(linear_betas(T, 0.1 / T, 20 / T))
    got = answer(ddpm, steps)
    if got is None or got is ...:
        return None
    if not isinstance(got, Tensor) or got.dtype != torch.long:
        return "not whole numbers"
    if got.shape != (steps,):
        return "wrong number"
    if got.min() < 0 or got.max() >= T:
        return "outside"
    if steps > 1 and (got.diff() < 0).all():
        return "descending"
    if (got.diff() <= 0).any():
        return "not distinct"
    return "right" if got[-1] == T - 1 else "starts late"


my_spacing = Exercise(
    "my_spacing",
    reference=lambda ddpm, steps: spaced_timesteps(ddpm.T, steps),
    cases=lambda: [(1000, 1), (1000, 8), (1000, 100), (1000, 1000), (200, 150)],
    run=_spacing,
    compare=lambda got, want: "" if got == want else str(got),
    mistakes={
        "timesteps are whole numbers: round, then .long().": (
            lambda ddpm, steps: torch.linspace(ddpm.T - 1, 0, steps, dtype=torch.float64).flip(0)
        ),
        "they descend; the samplers take them ascending, and walk them backwards.": (
            lambda ddpm, steps: spaced_timesteps(ddpm.T, steps).flip(0)
        ),
        "some timesteps are visited twice (try many steps); push them apart as log_snr_timesteps does.": (
            lambda ddpm, steps: torch.linspace(1, 0, steps).square().flip(0).mul(ddpm.T - 1).round().long()
        ),
        "the walk must start at T - 1, where x_T belongs; the last timestep here is an earlier one.": (
            lambda ddpm, steps: (torch.arange(steps) * (ddpm.T // steps)).clamp(max=ddpm.T - 1 - (steps < ddpm.T))
        ),
        "a timestep lies outside 0 ... T - 1; arrays count from 0.": (
            lambda ddpm, steps: torch.linspace(ddpm.T, 1, steps, dtype=torch.float64).round().long().flip(0)
        ),
        "there must be exactly `steps` timesteps.": (
            lambda ddpm, steps: (
                torch.linspace(ddpm.T - 1, 0, max(steps - 1, 1)).round().long().flip(0)
                if steps > 1
                else torch.tensor([0, ddpm.T - 1])
            )
        ),
    },
    note="A spacing that the samplers accept. Is it better?",
)
