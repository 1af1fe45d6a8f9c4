"""Exercises of chapter 05."""

import torch
from torch import Tensor

from ..diffusion import DDPM, linear_betas, posterior_variances
from ..sampling import spaced_timesteps
from . import Exercise

# ---- 5.1: the weights of the posterior mean --------------------------------------------------------------------------


def _weights(alpha_bar: float, alpha_bar_prev: float) -> tuple[float, float]:
    alpha = alpha_bar / alpha_bar_prev
    x0_weight = alpha_bar_prev**0.5 * (1 - alpha) / (1 - alpha_bar)
    return x0_weight, alpha**0.5 * (1 - alpha_bar_prev) / (1 - alpha_bar)


def _before(alpha_bars: Tensor, t: int) -> tuple[float, float]:
    return alpha_bars[t].item(), alpha_bars[t - 1].item() if t > 0 else 1.0


def _no_roots(alpha_bars: Tensor, t: int) -> tuple[float, float]:
    alpha_bar, alpha_bar_prev = _before(alpha_bars, t)
    alpha = alpha_bar / alpha_bar_prev
    x0_weight = alpha_bar_prev * (1 - alpha) / (1 - alpha_bar)
    return x0_weight, alpha * (1 - alpha_bar_prev) / (1 - alpha_bar)


def _beta_is_all_noise(alpha_bars: Tensor, t: int) -> tuple[float, float]:
    alpha_bar, alpha_bar_prev = _before(alpha_bars, t)
    return alpha_bar_prev**0.5, alpha_bar**0.5 * (1 - alpha_bar_prev) / (1 - alpha_bar)


posterior_weights = Exercise(
    "posterior_weights",
    reference=lambda alpha_bars, t: _weights(*_before(alpha_bars, t)),
    cases=lambda: [(DDPM(linear_betas()).alpha_bars, t) for t in (500, 1, 0, 999)],
    mistakes={
        "at t = 0, alpha_bars[t - 1] is Python's alpha_bars[-1], the LAST entry; alpha_bar before t = 0 is 1.": (
            lambda alpha_bars, t: _weights(alpha_bars[t].item(), alpha_bars[t - 1].item())
        ),
        "the two are swapped; return the weight of x0 first, then that of xt.": (
            lambda alpha_bars, t: _weights(*_before(alpha_bars, t))[::-1]
        ),
        "the roots are missing; eq. 7 has sqrt(alpha_bar_prev) in the first weight and sqrt(alpha) in the second.": (
            _no_roots
        ),
        "this takes alpha_bar for alpha; alpha_t = alpha_bar_t / alpha_bar_(t-1), and beta_t = 1 - alpha_t.": (
            _beta_is_all_noise
        ),
    },
    note="At t = 0 they are 1 and 0: the last mean is x0_hat itself.",
)

# ---- 5.2: the variance between the two extremes ----------------------------------------------------------------------


def _reverse_variance(beta: float, alpha_bar: float, alpha_bar_prev: float, v: float) -> float:
    left = v * (1 - alpha_bar) / (v * alpha_bar + 1 - alpha_bar)  # variance of x0 given xt
    x0_weight = alpha_bar_prev**0.5 * beta / (1 - alpha_bar)
    return beta * (1 - alpha_bar_prev) / (1 - alpha_bar) + x0_weight**2 * left


def _variance_cases() -> list[tuple]:
    ddpm = DDPM(linear_betas(50, 2e-3, 0.4))
    pairs = [(1, 0.25), (20, 0.25), (20, 1.0), (20, 0.0), (45, 0.5)]
    return [(*(x.item() for x in (ddpm.betas[t], ddpm.alpha_bars[t], ddpm.alpha_bars[t - 1])), v) for t, v in pairs]


def _prior_variance(beta: float, alpha_bar: float, alpha_bar_prev: float, v: float) -> float:
    return beta * (1 - alpha_bar_prev) / (1 - alpha_bar) + alpha_bar_prev * (beta / (1 - alpha_bar)) ** 2 * v


def _weight_not_squared(beta: float, alpha_bar: float, alpha_bar_prev: float, v: float) -> float:
    left = v * (1 - alpha_bar) / (v * alpha_bar + 1 - alpha_bar)
    return (beta * (1 - alpha_bar_prev) + alpha_bar_prev**0.5 * beta * left) / (1 - alpha_bar)


reverse_variance = Exercise(
    "reverse_variance",
    reference=_reverse_variance,
    cases=_variance_cases,
    mistakes={
        "this is beta, right for v = 1 only.": lambda beta, alpha_bar, alpha_bar_prev, v: beta,
        "this is the posterior variance, right for v = 0 only; add what xt leaves unknown of x0.": (
            lambda beta, alpha_bar, alpha_bar_prev, v: beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
        ),
        "this takes the variance v of x0 before xt is seen; wanted is what is left of it GIVEN xt.": _prior_variance,
        "the weight of x0 enters without its square; a variance scales with the square of the factor.": (
            _weight_not_squared
        ),
        "this is the standard deviation; return its square.": lambda *args: _reverse_variance(*args) ** 0.5,
    },
    note="v = 0 gives the posterior variance, v = 1 gives beta; images, with v below 1, lie between.",
)

# ---- 5.3: Algorithm 2 ------------------------------------------------------------------------------------------------


def _rough_network(xt: Tensor, t: Tensor) -> Tensor:
    return 0.8 * xt.tanh() + 0.02 * t.view(-1, 1, 1, 1)


def _algorithm(last_noise=False, up=False, told=0, step=lambda beta, alpha, alpha_bar: beta / (1 - alpha_bar) ** 0.5,
               shrink=lambda alpha: alpha**0.5, sigma=lambda beta: beta**0.5):  # fmt: skip
    """Algorithm 2 with sigma^2 = beta, and the places where one goes wrong in it."""

    def ancestral(eps_model, betas, x_T, generator):
        xt, alphas = x_T, 1 - betas
        alpha_bars = alphas.cumprod(0)
        for i in range(len(betas)) if up else reversed(range(len(betas))):
            eps_hat = eps_model(xt, torch.full((len(xt),), i + told))
            xt = (xt - step(betas[i], alphas[i], alpha_bars[i]) * eps_hat) / shrink(alphas[i])
            if i > 0 or last_noise:
                xt = xt + sigma(betas[i]) * torch.randn(x_T.shape, generator=generator)
        return xt

    return ancestral


def _ancestral_cases() -> list[tuple]:
    x_T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(8))
    return [(linear_betas(T, 5e-3, 0.4), x_T) for T in (10, 1)]


ancestral = Exercise(
    "ancestral",
    reference=_algorithm(),
    cases=_ancestral_cases,
    run=lambda answer, betas, x_T: answer(_rough_network, betas, x_T, torch.Generator().manual_seed(9)),
    mistakes={
        "noise is added on the last step too; line 3 wants z = 0 there.": _algorithm(last_noise=True),
        "the noise is multiplied by beta; sigma is its root.": _algorithm(sigma=lambda beta: beta),
        "no noise is added at all; sigma z belongs to every step but the last.": _algorithm(
            sigma=lambda beta: 0 * beta
        ),
        "the walk runs upwards; it starts at the largest t.": _algorithm(up=True),
        "the network is told t + 1; here t runs from T - 1 down to 0.": _algorithm(told=1),
        "the division by sqrt(alpha) is missing.": _algorithm(shrink=lambda alpha: 1.0),
        "this divides by alpha; eq. 11 wants its root.": _algorithm(shrink=lambda alpha: alpha),
        "eps_hat is divided by 1 - alpha_bar; eq. 11 wants its root.": (
            _algorithm(step=lambda beta, alpha, alpha_bar: beta / (1 - alpha_bar))
        ),
        "this takes away all the noise at once; the factor of eps_hat is beta / sqrt(1 - alpha_bar).": (
            _algorithm(step=lambda beta, alpha, alpha_bar: (1 - alpha_bar) ** 0.5)
        ),
        "this takes alpha for alpha_bar under the root; it is the product of all alphas up to t.": (
            _algorithm(step=lambda beta, alpha, alpha_bar: beta / (1 - alpha) ** 0.5)
        ),
    },
    note="Line for line, Algorithm 2.",
)

# ---- 5.4: one step of DDIM -------------------------------------------------------------------------------------------


def _ddim_step(xt: Tensor, eps_hat: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    x0_hat = (xt - (1 - alpha_bar) ** 0.5 * eps_hat) / alpha_bar**0.5
    return alpha_bar_prev**0.5 * x0_hat + (1 - alpha_bar_prev) ** 0.5 * eps_hat


def _ddim_cases() -> list[tuple]:
    xt, eps_hat = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return [(xt, eps_hat, alpha_bar, prev) for alpha_bar, prev in ((0.3, 0.6), (0.01, 0.2), (0.98, 1.0))]


def _estimate(xt: Tensor, eps_hat: Tensor, alpha_bar: float) -> Tensor:
    return (xt - (1 - alpha_bar) ** 0.5 * eps_hat) / alpha_bar**0.5


ddim_step = Exercise(
    "ddim_step",
    reference=_ddim_step,
    cases=_ddim_cases,
    mistakes={
        "this is x0_hat itself; mix noise back in, at the level of alpha_bar_prev.": (
            lambda xt, eps_hat, alpha_bar, alpha_bar_prev: _estimate(xt, eps_hat, alpha_bar)
        ),
        "this goes down from xt and back up to xt; the second half wants alpha_bar_prev.": (
            lambda xt, eps_hat, alpha_bar, alpha_bar_prev: xt
        ),
        "alpha_bar_prev and alpha_bar are swapped.": (
            lambda xt, eps_hat, alpha_bar, alpha_bar_prev: _ddim_step(xt, eps_hat, alpha_bar_prev, alpha_bar)
        ),
        "this mixes by alpha_bar_prev and 1 - alpha_bar_prev; eq. 4 wants the square roots of both.": (
            lambda xt, eps_hat, alpha_bar, alpha_bar_prev: (
                alpha_bar_prev * _estimate(xt, eps_hat, alpha_bar) + (1 - alpha_bar_prev) * eps_hat
            )
        ),
        "this mixes in fresh noise; eta = 0 uses the noise that the network found, eps_hat.": (
            lambda xt, eps_hat, alpha_bar, alpha_bar_prev: (
                alpha_bar_prev**0.5 * _estimate(xt, eps_hat, alpha_bar)
                + (1 - alpha_bar_prev) ** 0.5 * torch.randn_like(xt)
            )
        ),
    },
    note="Down to x0_hat, up again to less noise.",
)

# ---- 5.5: inpainting by replacement ----------------------------------------------------------------------------------


def _inpaint(answer: object, truth: Tensor, mask: Tensor) -> str | None:
    """What the reader's inpaint does, in a word. Its network is exact in the hole and wrong where pixels are known."""
    ddpm, seen = DDPM(linear_betas()), []
    known, wrong = torch.where(mask, truth, 0), torch.where(mask, -truth, truth)

    def eps_model(xt: Tensor, t: Tensor) -> Tensor:
        seen.append((int(t[0]), xt.clone()))
        return ddpm.predict_eps(xt, t, wrong)

    x_T = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    got = answer(eps_model, ddpm, x_T, known, mask, torch.Generator().manual_seed(2))
    if got is None or got is ...:
        return None
    if not isinstance(got, Tensor) or got.shape != truth.shape:
        return "the answer must be the finished images, a tensor shaped like x_T"
    if not seen or got.isnan().any():
        return "there is NaN in it" if seen else "eps_model is never asked"
    mask = mask.expand_as(truth)
    levels = []  # of the noise on the known pixels whenever the network sees them: 1 is right
    for t, xt in seen:
        alpha_bar = ddpm.alpha_bars[t].item()
        noise = (xt - alpha_bar**0.5 * known) / (1 - alpha_bar) ** 0.5
        levels.append(noise[mask].square().mean().sqrt().item())
    if (got - known)[~mask].abs().max() < 1e-3:
        return "inverted"
    if min(levels) < 0.8:
        return "clean"
    if (got - truth)[mask].abs().max() > 1e-3:
        return "never" if max(levels) > 1.25 else "unfinished"
    if max(levels) > 1.25:
        return "noisy"
    return "right" if (got - truth)[~mask].abs().max() < 0.1 else "the hole does not hold what the network found"


def _inpaint_with(known_at, invert: bool = False, finish: bool = True):
    """An inpainting by 25 ancestral steps; known_at(chain, i, known, noise) gives what is pasted before step i."""

    def inpaint(eps_model, ddpm, x_T, known, mask, generator):
        timesteps = spaced_timesteps(ddpm.T, 25)
        chain = ddpm.shortened(timesteps)
        xt, mask = x_T, ~mask if invert else mask
        for i in reversed(range(chain.T)):
            index = torch.full((len(xt),), i)
            noise, fresh = torch.randn(2, *xt.shape, generator=generator)
            xt = torch.where(mask, known_at(chain, i, known, noise, xt), xt)
            x0_hat = chain.predict_x0(xt, index, eps_model(xt, timesteps[index])).clamp(-1, 1)
            xt = chain.p_sample(x0_hat, xt, index, fresh, posterior_variances(chain))
        return torch.where(mask, known, xt) if finish else xt

    return inpaint


def _noised(chain: DDPM, i: int, known: Tensor, noise: Tensor, _xt: Tensor) -> Tensor:
    return chain.q_sample(known, torch.full((len(known),), i), noise)


def _inpaint_cases() -> list[tuple]:
    g = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 3, 32, 32, generator=g) * 1.8 - 0.9
    left = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    left[..., :16] = True
    return [(truth, left), (truth, torch.rand(1, 1, 32, 32, generator=g) < 0.6)]


inpaint = Exercise(
    "inpaint",
    reference=_inpaint_with(_noised),
    cases=_inpaint_cases,
    run=_inpaint,
    compare=lambda got, want: "" if got == want else str(got),
    mistakes={
        "the known pixels are pasted clean; at timestep t the network expects them with the noise of t (q_sample).": (
            _inpaint_with(lambda chain, i, known, noise, xt: known)
        ),
        "the known pixels carry the noise of another timestep than the one that the network is told.": (
            _inpaint_with(lambda chain, i, known, noise, xt: _noised(chain, min(i + 1, chain.T - 1), known, noise, xt))
        ),
        "the mask is used the wrong way round; it is True where a pixel is KNOWN.": _inpaint_with(_noised, invert=True),
        "the known pixels are never put in: the network's own fill them.": (
            _inpaint_with(lambda chain, i, known, noise, xt: xt, finish=False)
        ),
        "the last step repaints the known pixels; put them back, clean, when the loop is over.": (
            _inpaint_with(_noised, finish=False)
        ),
    },
    note="The known pixels are kept, and the network always saw them at the noise level that it was told.",
)
