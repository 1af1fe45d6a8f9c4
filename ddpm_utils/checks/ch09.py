"""Exercises of chapter 09."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..data import to_float
from ..diffusion import DDPM, linear_betas, posterior_variances
from . import Exercise

# ---- 9.1: what a person would see ------------------------------------------------------------------------------------


def _symptom(
    broken=lambda x: not x.isfinite().all(),
    deviation=lambda x: x.flatten(1).std(1).mean(),
    roughness=lambda x: x.diff(dim=3).abs().mean(),
):  # fmt: skip
    def symptom(x: Tensor) -> str:
        if broken(x):
            return "NaN"
        if deviation(x) < 0.1:
            return "flat"
        return "grain" if roughness(x) > 0.15 else "fine"

    return symptom


def _pictures() -> list[tuple[Tensor]]:
    g = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-0.8, 0.8, 32).expand(2, 3, 32, 32)
    colours = torch.tensor([-0.9, 0.8]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    grainy = ramp + 0.2 * torch.randn(ramp.shape, generator=g)
    one_nan, infinite = grainy.clone(), colours.clone()
    one_nan[1, 2, 5, 7] = torch.nan
    infinite[0] = torch.inf
    empty = torch.full_like(ramp, torch.nan)
    return [(ramp,), (grainy,), (colours,), (one_nan,), (infinite,), (empty,), (ramp.flip(3),)]


symptom = Exercise(
    "symptom",
    reference=_symptom(),
    cases=_pictures,
    mistakes={
        "x == nan is never true, for NaN equals nothing, not even itself; ask isfinite.": _symptom(
            broken=lambda x: bool((x == torch.nan).any())
        ),
        "infinity slips through; isfinite finds it, and NaN too.": _symptom(broken=lambda x: bool(x.isnan().any())),
        "this asks whether all is NaN; one pixel is enough.": _symptom(broken=lambda x: not x.isfinite().any()),
        "this is the deviation over the whole batch: flat images of different colours vary too; take it per image.": (
            _symptom(deviation=lambda x: x.std())
        ),
        "the differences keep their signs and cancel; take their absolute values.": _symptom(
            roughness=lambda x: x.diff(dim=3).mean()
        ),
    },
    note="The first question of the tree is answered by three lines of code.",
)

# ---- 9.2: what beta leaves behind ------------------------------------------------------------------------------------


def _excess(alpha_bar: float, alpha_bar_prev: float) -> float:
    beta = 1 - alpha_bar / alpha_bar_prev
    return alpha_bar_prev * beta**2 / (1 - alpha_bar)


excess = Exercise(
    "excess",
    reference=_excess,
    cases=lambda: [(0.5, 0.8), (0.02, 0.3), (0.97, 0.9999)],
    mistakes={
        "this is beta, all that the step adds; the posterior variance of it belongs there.": (
            lambda alpha_bar, alpha_bar_prev: 1 - alpha_bar / alpha_bar_prev
        ),
        "this is the posterior variance, what belongs there; subtract it from beta.": (
            lambda alpha_bar, alpha_bar_prev: (1 - alpha_bar / alpha_bar_prev) * (1 - alpha_bar_prev) / (1 - alpha_bar)
        ),
        "1 - alpha_bar_prev is all the noise that belongs there; some of it comes from x_t, so subtract less.": (
            lambda alpha_bar, alpha_bar_prev: 1 - alpha_bar / alpha_bar_prev - (1 - alpha_bar_prev)
        ),
        "this is the standard deviation; return its square.": lambda *args: _excess(*args) ** 0.5,
    },
    note="Small betas leave little: it falls with their square. That is why 1000 steps forgive the choice.",
)

# ---- 9.3: a test of one's own ----------------------------------------------------------------------------------------

Step = Callable[[DDPM, Tensor, Tensor, Tensor, Tensor], Tensor]


def _step(noise_at_0=False, root=0.5, swap=False, shift=0, variances=posterior_variances) -> Step:
    """x_{t-1} from x0_hat and x_t, and the places where one goes wrong in it."""

    def step(ddpm: DDPM, x0_hat: Tensor, xt: Tensor, t: Tensor, z: Tensor) -> Tensor:
        t = (t - shift).clamp(min=0)
        mean, _ = ddpm.q_posterior(*((xt, x0_hat) if swap else (x0_hat, xt)), t)
        sigma2 = torch.where(t == 0, ddpm.betas[0] * noise_at_0, variances(ddpm)[t])
        return mean + (sigma2**root).view(-1, *[1] * (xt.ndim - 1)) * z

    return step


def _by_eq_11(ddpm: DDPM, x0_hat: Tensor, xt: Tensor, t: Tensor, z: Tensor) -> Tensor:
    eps = ddpm.predict_eps(xt, t, x0_hat)
    shape = (-1, *[1] * (xt.ndim - 1))
    beta, alpha_bar, sigma2 = (
        table[t].view(shape) for table in (ddpm.betas, ddpm.alpha_bars, posterior_variances(ddpm))
    )
    return (xt - beta / (1 - alpha_bar).sqrt() * eps) / (1 - beta).sqrt() + sigma2.sqrt() * z


STEPS: dict[str, Step] = {
    "the right step": _step(),
    "the right step, written as eq. 11": _by_eq_11,
    "noise on the last step": _step(noise_at_0=True),
    "the variance in place of its root": _step(root=1.0),
    "x0_hat and x_t swapped": _step(swap=True),
    "the tables read at t - 1": _step(shift=1),
    "beta in place of the posterior variance": _step(variances=lambda ddpm: ddpm.betas),
}


def _test_at(ts: list[int], noise: float = 1.0, near: Callable = lambda a, b: torch.allclose(a, b, atol=1e-6)):
    """A test against eq. 7, at these timesteps."""

    def is_right(step: Step) -> bool:
        ddpm, t = DDPM(linear_betas(10, 0.01, 0.4)), torch.tensor(ts)
        x0_hat, xt, z = torch.randn(3, len(t), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        mean, variance = ddpm.q_posterior(x0_hat, xt, t)
        return bool(near(step(ddpm, x0_hat, xt, t, noise * z), mean + variance.sqrt() * noise * z))

    return is_right


def _verdict(answer: Callable[[Step], bool], name: str) -> tuple[str, bool] | None:
    verdict = answer(STEPS[name]) if callable(answer) else None
    return None if verdict is None or verdict is ... else (name, bool(verdict))


is_right = Exercise(
    "is_right",
    reference=_test_at([0, 1, 5, 9]),
    cases=lambda: [(name,) for name in STEPS],
    run=_verdict,
    compare=lambda got, want: "" if got == want else f'your test {"passes" if got[1] else "refuses"} "{got[0]}"',
    mistakes={
        "it passes every step, right or wrong.": lambda step: True,
        "it refuses every step, the right one too.": lambda step: False,
        "it looks at t = 0 alone; what goes wrong earlier slips through.": _test_at([0]),
        "it leaves t = 0 out, where the noise must stop.": _test_at([1, 5, 9]),
        "without noise (z = 0) it can't see a wrong variance.": _test_at([0, 1, 5, 9], noise=0.0),
        "it demands equal bits; eq. 11 gives the same numbers up to rounding, so leave a tolerance.": _test_at(
            [0, 1, 5, 9], near=torch.equal
        ),
    },
    note="It passes both right steps, and refuses the five wrong ones.",
)

# ---- 9.4: repair -----------------------------------------------------------------------------------------------------


def _noisy(scale=to_float, product=lambda alphas, t: alphas.cumprod(0)[t], root=0.5, axes=(1, 1, 1)):
    def noisy(images: Tensor, alphas: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        alpha_bar = product(alphas, t).float().view(-1, *axes)
        return alpha_bar**root * scale(images) + (1 - alpha_bar) ** root * eps

    return noisy


def _bytes_and_noise() -> list[tuple]:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 8, 8), generator=g, dtype=torch.uint8)
    return [(images, 1 - linear_betas(), torch.arange(8) * 142, torch.randn(8, 3, 8, 8, generator=g))]


def _in_0_1(images: Tensor) -> Tensor:
    return images.float() / 255


noisy = Exercise(
    "noisy",
    reference=_noisy(),
    cases=_bytes_and_noise,
    mistakes={
        "nothing is mended yet; look at each line.": _noisy(_in_0_1, lambda alphas, t: alphas.prod(), root=1.0),
        "the images are still in [0, 1]; the series wants [-1, 1].": _noisy(_in_0_1),
        "alpha_bar is still one number for all t, the product of all alphas.": _noisy(
            product=lambda alphas, t: alphas.prod()
        ),
        "this takes alpha at t; alpha_bar is the product of all alphas up to t.": _noisy(
            product=lambda alphas, t: alphas[t]
        ),
        "the roots are missing: eq. 4 weighs by sqrt(alpha_bar) and sqrt(1 - alpha_bar).": _noisy(root=1.0),
        "alpha_bar, of shape (B,), meets the pixels' last axis; give it the shape (B, 1, 1, 1).": _noisy(axes=()),
    },
    note="Three bugs were in it, and the fourth, an axis, waited behind the second.",
)
