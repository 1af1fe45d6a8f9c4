"""Exercises of chapter 04: the simple loss, the bound seen from x0, one training step, and timesteps drawn unevenly."""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from ..diffusion import DDPM, linear_betas
from . import Exercise


def _toy_model(xt: Tensor, t: Tensor) -> Tensor:
    """Not a good guess of the noise, but one that depends on both arguments, so that mixing them up shows."""
    return 0.7 * xt.tanh() + 0.002 * t.view(-1, 1, 1, 1)


def _simple_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)
    ddpm = DDPM(linear_betas())
    x0, eps = torch.randn(2, 4, 3, 8, 8, generator=generator)
    return [
        (ddpm, _toy_model, x0, torch.tensor([0, 99, 500, 999]), eps),
        (ddpm, _toy_model, x0, torch.full((4,), 7), eps),
    ]


def _simple(ddpm, model, x0, t, eps):
    return (eps - model(ddpm.q_sample(x0, t, eps), t)).square().mean()


simple_loss = Exercise(
    "simple_loss",
    reference=_simple,
    cases=_simple_cases,
    mistakes={
        "the model is shown x0 itself; it must see x_t, the noised image.": lambda d, m, x0, t, eps: (
            (eps - m(x0, t)).square().mean()
        ),
        "this compares the answer with x0; in eq. 14 the model predicts eps.": lambda d, m, x0, t, eps: (
            (x0 - m(d.q_sample(x0, t, eps), t)).square().mean()
        ),
        "this compares the answer with x_t; in eq. 14 the model predicts eps.": lambda d, m, x0, t, eps: (
            (d.q_sample(x0, t, eps) - m(d.q_sample(x0, t, eps), t)).square().mean()
        ),
        "these are absolute differences; eq. 14 squares them.": lambda d, m, x0, t, eps: (
            (eps - m(d.q_sample(x0, t, eps), t)).abs().mean()
        ),
        "this is the sum over everything; take the mean, or the step size would depend on the batch.": (
            lambda d, m, x0, t, eps: (eps - m(d.q_sample(x0, t, eps), t)).square().sum()
        ),
        "this is one loss per image; take the mean over the batch as well.": lambda d, m, x0, t, eps: (
            (eps - m(d.q_sample(x0, t, eps), t)).square().flatten(1).mean(1)
        ),
        "this subtracts first and averages before squaring: errors of opposite sign cancel.": (
            lambda d, m, x0, t, eps: (eps - m(d.q_sample(x0, t, eps), t)).mean().square()
        ),
        "eq. 4 takes the square roots of alpha_bar and 1 - alpha_bar: use ddpm.q_sample.": lambda d, m, x0, t, eps: (
            (eps - m(_no_roots(d, x0, t, eps), t)).square().mean()
        ),
    },
    note="At the start our U-Net answers 0 everywhere, so this loss is the mean of eps^2: 1.",
)


def _no_roots(ddpm: DDPM, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    alpha_bar = ddpm.alpha_bars[t].view(-1, 1, 1, 1)
    return (alpha_bar * x0 + (1 - alpha_bar) * eps).to(x0.dtype)


def _weight_cases() -> list[tuple]:
    alpha_bars = DDPM(linear_betas()).alpha_bars
    return [(alpha_bars[:-1], alpha_bars[1:]), (alpha_bars[9:10], alpha_bars[10:11])]


def _snr(alpha_bar: Tensor) -> Tensor:
    return alpha_bar / (1 - alpha_bar)


x0_weight = Exercise(
    "x0_weight",
    reference=lambda alpha_bar_prev, alpha_bar: (_snr(alpha_bar_prev) - _snr(alpha_bar)) / 2,
    cases=_weight_cases,
    mistakes={
        "the factor 1/2 of eq. 8 is missing.": lambda p, a: _snr(p) - _snr(a),
        "the sign is wrong: a squared error needs a positive weight.": lambda p, a: (_snr(a) - _snr(p)) / 2,
        "the coefficient of x0 in eq. 7 must be squared.": lambda p, a: (
            (p.sqrt() * (1 - a / p) / (1 - a)) / (2 * (1 - a / p) * (1 - p) / (1 - a))
        ),
        "this divides by 2 beta; the variance here is beta_tilde of eq. 7.": lambda p, a: (
            (p.sqrt() * (1 - a / p) / (1 - a)) ** 2 / (2 * (1 - a / p))
        ),
        "this divides by the square of the variance; eq. 8 divides by the variance, sigma^2.": lambda p, a: (
            (p.sqrt() * (1 - a / p) / (1 - a)) ** 2 / (2 * ((1 - a / p) * (1 - p) / (1 - a)) ** 2)
        ),
        "this is the weight that makes the x0 error equal the eps error (eq. 14); the bound's is asked for.": (
            lambda p, a: _snr(a)
        ),
        "this is the weight of the error in eps; the error is in x0 here.": lambda p, a: (
            (1 - a / p) ** 2 / (2 * (1 - a / p) * (1 - p) / (1 - a) * (a / p) * (1 - a))
        ),
    },
    note="Half the signal-to-noise ratio that is lost between t-1 and t: summed over t it telescopes.",
)


class _Toy(nn.Module):
    """Stands for the U-Net: small, and it knows the time."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        return self.conv(xt) + 0.001 * t.view(-1, 1, 1, 1)


def _step_cases() -> list[tuple]:
    x0 = torch.randn(3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # three batches of four
    return [(x0, decay) for decay in (0.9, 0.6)]


def _three_steps(step, x0, decay) -> Tensor | None:
    """All weights and their averages after three steps, and whether the average hangs on autograd's graph."""
    torch.manual_seed(0)
    model, ddpm = _Toy(), DDPM(linear_betas())
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    generator = torch.Generator().manual_seed(1)
    for batch, lr in zip(x0, (0.02, 0.05, 0.03), strict=True):
        step(model, average, optimizer, ddpm, batch, lr, decay, generator)
    if all(p.grad is None for p in model.parameters()):
        return None  # nothing was tried
    graph = float(any(p.requires_grad for p in average.parameters()))
    weights = [p.detach().flatten() for net in (model, average) for p in net.parameters()]
    return torch.cat([*weights, torch.tensor([graph])])


def _step(model, average, optimizer, ddpm, x0, lr, decay, generator, *, slip=""):
    if slip == "eps first":
        eps = torch.randn(x0.shape, generator=generator)
    t = torch.randint(ddpm.T, (1 if slip == "one t" else len(x0),), generator=generator).expand(len(x0))
    if slip != "eps first":
        draw = torch.rand if slip == "rand" else torch.randn
        eps = draw(x0.shape, generator=None if slip == "no generator" else generator)
    loss = ddpm.loss(model, x0, t, eps).mean()
    if slip != "no zero_grad":
        optimizer.zero_grad()
    loss.backward(loss.detach() if slip == "backward(loss)" else None)
    if slip == "average first":
        _average(average, model, decay)
    if slip == "lr too late":
        optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] if slip == "no lr" else lr
    if slip not in ("no step", "lr too late"):
        optimizer.step()
    if slip == "in the graph":
        for a, p in zip(average.parameters(), model.parameters(), strict=True):
            a.lerp_(p, 1 - decay)
    elif slip not in ("no average", "average first"):
        _average(average, model, 1 - decay if slip == "swapped" else decay)


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for a, p in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(p, 1 - decay)


one_step = Exercise(
    "one_step",
    reference=_step,
    cases=_step_cases,
    run=_three_steps,
    mistakes={
        sentence: partial(_step, slip=slip)
        for slip, sentence in {
            "eps first": "draw t before eps, both from generator, or the check sees other noise.",
            "no generator": "draw eps from generator too: without it, no run can be repeated.",
            "one t": "every image of the batch has the same t; draw one for each.",
            "rand": "torch.rand is uniform; the noise is normal: torch.randn.",
            "no lr": "the learning rate stays as it was: set lr in each of optimizer.param_groups.",
            "lr too late": "the learning rate is set after the step that should use it.",
            "no zero_grad": "the gradients of earlier steps are still there: clear them before backward.",
            "no step": "the weights never move: call optimizer.step().",
            "backward(loss)": "backward(loss) multiplies the gradient by the loss; call plain backward().",
            "swapped": "the shares are swapped: the average keeps decay of itself and takes 1 - decay of the model.",
            "average first": "the average took in the weights from before the step; update it after the optimizer.",
            "no average": "the model learns, but the average never moves.",
            "in the graph": "autograd records the average, so memory grows with every step: use torch.no_grad().",
        }.items()
    },
    note="Algorithm 1 is this, once per batch.",
)


def _importance_cases() -> list[tuple]:
    rising = torch.arange(1, 11, dtype=torch.float64)
    return [
        (torch.full((10,), 0.1, dtype=torch.float64), torch.arange(10)),
        (rising / rising.sum(), torch.tensor([0, 3, 3, 9])),
        (rising.flip(0).square() / rising.square().sum(), torch.arange(10)),
    ]


importance = Exercise(
    "importance",
    reference=lambda p, t: 1 / (len(p) * p[t]),
    cases=_importance_cases,
    mistakes={
        "1/T is missing: with the uniform p every factor must be 1.": lambda p, t: 1 / p[t],
        "these are the probabilities themselves: what is drawn often must count less, not more.": lambda p, t: p[t],
        "T stands on the wrong side: frequent timesteps must count less, not more.": lambda p, t: len(p) * p[t],
        "every loss counts 1 here, so the frequent timesteps weigh more than in eq. 14.": lambda p, t: torch.ones_like(
            p[t]
        ),
        "dividing by the batch's own sum makes the factors depend on what else was drawn, which biases the mean.": (
            lambda p, t: (1 / p[t]) / (1 / p[t]).sum()
        ),
        "dividing by the batch's own mean makes the factors depend on what else was drawn, which biases the mean.": (
            lambda p, t: (1 / p[t]) / (1 / p[t]).mean()
        ),
    },
    note="sum over t of p(t) * loss(t) / (T p(t)) is the plain mean, whatever p is.",
)
