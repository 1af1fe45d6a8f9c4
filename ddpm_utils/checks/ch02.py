"""Exercises of chapter 02: the forward process."""

import torch
from torch import Tensor

from ddpm_utils.checks import Exercise
from ddpm_utils.diffusion import DDPM, cosine_betas, linear_betas


def _noisy(x0: Tensor, alpha_bars: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    alpha_bar = alpha_bars[t].view(-1, 1, 1, 1)
    return (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps).to(x0.dtype)


def _without_roots(x0: Tensor, alpha_bars: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    alpha_bar = alpha_bars[t].view(-1, 1, 1, 1)
    return (alpha_bar * x0 + (1 - alpha_bar) * eps).to(x0.dtype)


def _variance_as_weight(x0: Tensor, alpha_bars: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    alpha_bar = alpha_bars[t].view(-1, 1, 1, 1)
    return (alpha_bar.sqrt() * x0 + (1 - alpha_bar) * eps).to(x0.dtype)


def _weights_add_to_one(x0: Tensor, alpha_bars: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    signal = alpha_bars[t].sqrt().view(-1, 1, 1, 1)
    return (signal * x0 + (1 - signal) * eps).to(x0.dtype)


def _double(x0: Tensor, alpha_bars: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    alpha_bar = alpha_bars[t].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps


def _on_the_width(x0: Tensor, alpha_bars: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    alpha_bar = alpha_bars[t]
    return (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps).to(x0.dtype)


def _noisy_cases() -> list[tuple]:
    alpha_bars = DDPM(linear_betas()).alpha_bars
    g = torch.Generator().manual_seed(0)
    square = torch.randn(2, 4, 3, 4, 4, generator=g)  # as many images as columns: the wrong axis raises no error
    plain = torch.randn(2, 2, 3, 8, 8, generator=g)
    return [
        (square[0], alpha_bars, torch.tensor([0, 10, 300, 998]), square[1]),
        (plain[0], alpha_bars, torch.tensor([500, 100]), plain[1]),
    ]


noisy = Exercise(
    "noisy",
    reference=_noisy,
    cases=_noisy_cases,
    mistakes={
        "both weights lack their square root: alpha_bar and 1 - alpha_bar are variances, and a weight is the root of "
        "the variance that it makes.": _without_roots,
        "the noise is weighed by 1 - alpha_bar, its variance; eq. 4 wants the square root.": _variance_as_weight,
        "the noise is weighed by 1 - sqrt(alpha_bar): the squares of the weights must add up to 1, not the weights.": (
            _weights_add_to_one
        ),
        "this reads alpha_bars[t - 1]; here t = 0 is already one step of noise, so eq. 4 reads alpha_bars[t].": (
            lambda x0, alpha_bars, t, eps: _noisy(x0, alpha_bars, t - 1, eps)
        ),
        "this reads alpha_bars[t + 1], one step of noise too many.": (
            lambda x0, alpha_bars, t, eps: _noisy(x0, alpha_bars, t + 1, eps)
        ),
        "the weights (B,) met the last axis, the width; give each image its own: .view(-1, 1, 1, 1).": _on_the_width,
        "the values are right, but the float64 table made the images float64; end with .to(x0.dtype).": _double,
        "signal and noise have changed places: sqrt(alpha_bar) belongs to x0.": (
            lambda x0, alpha_bars, t, eps: _noisy(eps, alpha_bars, t, x0)
        ),
    },
    note="Root, index, axis and dtype all fit: that is q_sample.",
)

alpha_bar_of = Exercise(
    "alpha_bar_of",
    reference=torch.sigmoid,
    cases=lambda: [(torch.linspace(-8, 8, 9, dtype=torch.float64),)],
    mistakes={
        "this is the noise variance 1 - alpha_bar: at high log-SNR, alpha_bar must be near 1.": lambda log_snr: (
            torch.sigmoid(-log_snr)
        ),
        "this is the SNR itself; alpha_bar / (1 - alpha_bar) = SNR remains to be solved for alpha_bar.": torch.exp,
        "the logarithm is still in there: SNR = exp(log_snr).": lambda log_snr: log_snr / (1 + log_snr),
        "this is sqrt(alpha_bar), the weight of x0; alpha_bar itself is wanted.": lambda log_snr: torch.sigmoid(
            log_snr
        ).sqrt(),
        "this takes the SNR for a ratio of weights; it is the ratio of their squares.": lambda log_snr: torch.sigmoid(
            log_snr / 2
        ),
    },
    note="The inverse of the log-SNR is the sigmoid.",
)


def _mean_from_eps(xt: Tensor, eps: Tensor, beta: float, alpha_bar: float) -> Tensor:
    return (xt - beta / (1 - alpha_bar) ** 0.5 * eps) / (1 - beta) ** 0.5


def _posterior_cases() -> list[tuple]:
    g = torch.Generator().manual_seed(0)
    ddpm = DDPM(linear_betas(50, 0.002, 0.4))
    return [(*torch.randn(2, 5, generator=g), float(ddpm.betas[t]), float(ddpm.alpha_bars[t])) for t in (1, 10, 25, 49)]


mean_from_eps = Exercise(
    "mean_from_eps",
    reference=_mean_from_eps,
    cases=_posterior_cases,
    mistakes={
        "beta is rooted here; completing the square leaves beta itself in front of eps.": (
            lambda xt, eps, beta, alpha_bar: (xt - (beta / (1 - alpha_bar)) ** 0.5 * eps) / (1 - beta) ** 0.5
        ),
        "1 - alpha_bar needs its square root: one root of the two cancels, not both.": (
            lambda xt, eps, beta, alpha_bar: (xt - beta / (1 - alpha_bar) * eps) / (1 - beta) ** 0.5
        ),
        "the factor 1 / sqrt(alpha) is missing: the forward step shrank x, so the way back enlarges it.": (
            lambda xt, eps, beta, alpha_bar: xt - beta / (1 - alpha_bar) ** 0.5 * eps
        ),
        "the factor in front is 1 / sqrt(alpha_bar) here: that goes all the way to x0; one step back is "
        "1 / sqrt(alpha).": (
            lambda xt, eps, beta, alpha_bar: (xt - beta / (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
        ),
        "this is x0 itself, eq. 15; put it into eq. 7 and collect the terms.": (
            lambda xt, eps, beta, alpha_bar: (xt - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
        ),
        "this undoes the single step as if eps were the noise of that step alone; eps is the noise of all steps so "
        "far.": lambda xt, eps, beta, alpha_bar: (xt - beta**0.5 * eps) / (1 - beta) ** 0.5,
        "the noise is added; the way back takes it away.": (
            lambda xt, eps, beta, alpha_bar: (xt + beta / (1 - alpha_bar) ** 0.5 * eps) / (1 - beta) ** 0.5
        ),
    },
    note="That is eq. 11: line 4 of the sampling algorithm in chapter 05.",
)


def _from_alpha_bars(alpha_bars: Tensor) -> Tensor:
    return 1 - alpha_bars / torch.cat([torch.ones_like(alpha_bars[:1]), alpha_bars[:-1]])


def _line(T: int) -> Tensor:
    return torch.linspace(10, -10, T, dtype=torch.float64)


def _what_is_wrong(schedule: object, T: int) -> object:
    """The first property that a schedule for T steps lacks, in words; "good" if it has them all."""
    betas = schedule(T)
    if betas is None or betas is ...:
        return None
    if not isinstance(betas, Tensor) or not betas.is_floating_point():
        return "a tensor of floats is wanted"
    if betas.shape != (T,):
        return f"the shape is {tuple(betas.shape)} for T = {T}; it should be ({T},)"
    betas = betas.detach().cpu().double()
    if not ((betas > 0) & (betas < 1)).all():
        return f"for T = {T}, not every beta lies between 0 and 1, both excluded"
    alpha_bars = (1 - betas).cumprod(0)
    if alpha_bars[0] < 0.99:
        return f"for T = {T}, alpha_bar at t = 0 is {alpha_bars[0]:.2g}; it should be above 0.99"
    left = float(alpha_bars[-1].sqrt())
    if left >= 0.01:
        return f"for T = {T}, sqrt(alpha_bar_T) is {left:.2g}; it should be below 0.01, or x_T is not noise"
    log_snr = (alpha_bars / (1 - alpha_bars)).log()
    line = torch.linspace(float(log_snr[0]), float(log_snr[-1]), T, dtype=torch.float64)
    bend = float((log_snr - line).abs().max() / (log_snr[0] - log_snr[-1]))
    if not bend < 0.01:  # NaN is no straight line either
        return f"for T = {T}, log-SNR leaves the straight line between its ends by {bend:.0%} of its range, not 1%"
    return "good"


straight_betas = Exercise(
    "straight_betas",
    reference=lambda T: _from_alpha_bars(torch.sigmoid(_line(T))),
    cases=lambda: [(50,), (200,), (1000,)],
    run=_what_is_wrong,
    compare=lambda got, want: "" if got == want else str(got),
    mistakes={
        "this is the paper's schedule with its end points left as they are for T = 1000: with fewer steps, x_T keeps "
        "part of x_0.": linear_betas,
        "this is the cosine schedule: its log-SNR dives at both ends; a straight line is wanted.": cosine_betas,
        "log-SNR rises here: turn it round, so that noise grows with t.": lambda T: _from_alpha_bars(
            torch.sigmoid(-_line(T))
        ),
        "these are the alpha_bars; the schedule is made of betas, 1 - alpha_bar / alpha_bar_prev.": lambda T: (
            torch.sigmoid(_line(T))
        ),
        "one beta is missing: the first step starts from alpha_bar = 1, which must be put in front.": lambda T: (
            1 - torch.sigmoid(_line(T))[1:] / torch.sigmoid(_line(T))[:-1]
        ),
    },
    note="A straight log-SNR: each step divides the SNR by the same factor.",
)
