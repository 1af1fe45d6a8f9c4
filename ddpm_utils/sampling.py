"""Chapter 05: from noise to images, step by step.

A sampler is a generator: it yields every step and the caller draws, stores or counts. All samplers
take the same leading arguments: a noise model (see `noise_model`), the DDPM it was trained with,
and x_T, the noise to start from. Given those and a seeded generator, the result is determined.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .diffusion import DDPM, beta_variances
from .guards import _check_floats, _check_generator, _check_int, _check_number, _check_seed, _check_tensor
from .hardware import Setup
from .unet import UNet

NoiseModel = Callable[[Tensor, Tensor], Tensor]  # eps_hat = noise_model(xt, t)


class Step(NamedTuple):
    t: int  # the timestep of xt; -1 means: no noise is left, the sample is finished
    xt: Tensor  # (B, 3, H, W)
    x0_hat: Tensor  # the estimate of x_0 made from xt, like xt


def noise_model(model: UNet, y: Tensor | None = None, guidance: float = 1.0, setup: Setup = Setup()) -> NoiseModel:
    """The network as a function of (xt, t), without gradients: what the samplers call.

    y: (B,) labels. guidance: 1 is the plain class-conditional model, 0 the unconditional one, above 1
    the classifier-free guidance of Ho & Salimans 2022 (arXiv:2207.12598): eps_hat moves away from the
    answer without a label, guidance times as far as the label moves it. Costs two answers per step.
    """
    _check_number("guidance", guidance)
    _check_labels(y)
    if guidance != 1.0 and y is None:
        raise ValueError("guidance needs labels: give y as well.")

    @torch.no_grad()
    def eps_hat(xt: Tensor, t: Tensor) -> Tensor:
        with setup.autocast(xt.device):
            if guidance == 1.0:
                return model(setup.arrange(xt), t, y).float()
            no_label = torch.full_like(y, model.config.num_classes)
            both = model(setup.arrange(torch.cat([xt, xt])), torch.cat([t, t]), torch.cat([y, no_label])).float()
        with_label, without = both.chunk(2)
        return without + guidance * (with_label - without)

    return eps_hat


def spaced_timesteps(T: int, steps: int) -> Tensor:
    """(steps,) timesteps, ascending and evenly spread from 0 to T - 1, both included (one step: T - 1 alone)."""
    _check_int("T", T, low=1)
    _check_steps(steps, T)
    if steps == 1:
        return torch.tensor([T - 1])
    return torch.linspace(0, T - 1, steps, dtype=torch.float64).round().long()


def log_snr_timesteps(ddpm: DDPM, steps: int) -> Tensor:
    """(steps,) timesteps, ascending from 0 to T - 1, as evenly spread in the logarithm of the signal-to-noise ratio
    alpha_bar / (1 - alpha_bar) as different whole numbers can be (one step: T - 1 alone).

    Made for linear_betas. The last timesteps of cosine_betas lie so far apart in it that they take many of the steps.
    """
    _check_steps(steps, ddpm.T)
    log_snr = (ddpm.alpha_bars / (1 - ddpm.alpha_bars)).log()  # (T,), falling
    wanted = torch.linspace(log_snr[-1].item(), log_snr[0].item(), steps, dtype=torch.float64).flip(0)
    nearest = (log_snr.cpu() - wanted[:, None]).abs().argmin(1)  # (steps,); near t = 0 some may be the same
    index = torch.arange(steps)
    apart = (nearest - index).cummax(0).values + index  # each at least one more than the one before
    return torch.minimum(apart, index + ddpm.T - steps)  # and room left for those to come


def sample_ddpm(
    eps_model: NoiseModel,
    ddpm: DDPM,
    x_T: Tensor,
    *,
    steps: int | None = None,
    variances: Callable[[DDPM], Tensor] = beta_variances,
    clip: bool = True,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """Ancestral sampling, Algorithm 2, over all T steps or over `steps` of them, evenly spaced.

    variances: beta_variances or posterior_variances, of the chain that is walked. In a short chain beta leaves
    noise behind: take posterior_variances there.
    clip: the x_0 estimate to [-1, 1] before each step, as the official code does.
    """
    _check_start(x_T, generator)
    timesteps = spaced_timesteps(ddpm.T, ddpm.T if steps is None else steps)
    chain = ddpm.shortened(timesteps)
    sigma2 = variances(chain)
    xt = x_T
    for i in reversed(range(chain.T)):
        index = torch.full((len(xt),), i, device=xt.device)
        eps_hat = eps_model(xt, timesteps.to(xt.device)[index])
        x0_hat = chain.predict_x0(xt, index, eps_hat)
        if clip:
            x0_hat = x0_hat.clamp(-1, 1)
        yield Step(int(timesteps[i]), xt, x0_hat)
        xt = chain.p_sample(x0_hat, xt, index, noise_like(xt, generator), sigma2)
    yield Step(-1, xt, xt)


def sample_ddim(
    eps_model: NoiseModel,
    ddpm: DDPM,
    x_T: Tensor,
    *,
    steps: int = 50,
    eta: float = 0.0,
    clip: bool = True,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """DDIM, Song et al. 2021 (arXiv:2010.02502), eq. 12.

    eta: 0 adds no noise after x_T; 1 adds as much as the posterior variance says.

    clip: the x_0 estimate to [-1, 1]; eps is then derived again, so that the two still make up x_t.
    """
    _check_start(x_T, generator)
    _check_number("eta", eta)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie between 0 and 1, not be {eta}.")
    timesteps = spaced_timesteps(ddpm.T, steps)
    alpha_bars = torch.cat([torch.ones(1, dtype=torch.float64), ddpm.alpha_bars[timesteps].cpu()]).tolist()
    xt = x_T
    for i in reversed(range(steps)):
        t = torch.full((len(xt),), int(timesteps[i]), device=xt.device)
        eps_hat = eps_model(xt, t)
        x0_hat = ddpm.predict_x0(xt, t, eps_hat)
        if clip:
            x0_hat = x0_hat.clamp(-1, 1)
            eps_hat = ddpm.predict_eps(xt, t, x0_hat)
        yield Step(int(timesteps[i]), xt, x0_hat)
        alpha_bar_prev, alpha_bar = alpha_bars[i], alpha_bars[i + 1]
        variance = eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)  # eq. 16
        xt = alpha_bar_prev**0.5 * x0_hat + max(1 - alpha_bar_prev - variance, 0.0) ** 0.5 * eps_hat
        if variance > 0:
            xt = xt + variance**0.5 * noise_like(xt, generator)
    yield Step(-1, xt, xt)


def sample_dpmpp(
    eps_model: NoiseModel,
    ddpm: DDPM,
    x_T: Tensor,
    *,
    steps: int = 20,
    order: int = 2,
    spacing: Callable[[DDPM, int], Tensor] = log_snr_timesteps,
    clip: bool = True,
) -> Iterator[Step]:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095), Algorithm 2: DDIM without noise, but each step takes the
    x_0 estimate where its change since the last step will have led it halfway through this one.

    order: 2, or 1 for DDIM itself. spacing: which `steps` timesteps to visit, ascending.
    clip: the x_0 estimate to [-1, 1]. The first step has no earlier estimate, and the last ends where the logarithm of
    the signal-to-noise ratio is infinite: these two are of order 1.
    """
    _check_start(x_T, None)
    _check_int("order", order)
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, not {order}.")
    timesteps = spacing(ddpm, steps)
    alpha_bars = [1.0, *ddpm.shortened(timesteps).alpha_bars.tolist()]
    lambdas = [math.inf, *(math.log(alpha_bar / (1 - alpha_bar)) / 2 for alpha_bar in alpha_bars[1:])]
    xt, x0_before = x_T, None
    for i in reversed(range(len(timesteps))):
        t = torch.full((len(xt),), int(timesteps[i]), device=xt.device)
        x0_hat = ddpm.predict_x0(xt, t, eps_model(xt, t))
        if clip:
            x0_hat = x0_hat.clamp(-1, 1)
        yield Step(int(timesteps[i]), xt, x0_hat)
        midway = x0_hat
        if order == 2 and x0_before is not None and i > 0:
            r = (lambdas[i + 1] - lambdas[i + 2]) / (lambdas[i] - lambdas[i + 1])  # last step / this step
            midway = x0_hat + (x0_hat - x0_before) / (2 * r)
        ratio = ((1 - alpha_bars[i]) / (1 - alpha_bars[i + 1])) ** 0.5  # of the noise after and before
        xt = ratio * xt + (alpha_bars[i] ** 0.5 - ratio * alpha_bars[i + 1] ** 0.5) * midway
        x0_before = x0_hat
    yield Step(-1, xt, xt)


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """z ~ N(0, I) like x, drawn where the generator lives (a CPU generator serves a model on a GPU too)."""
    _check_floats("x", x)
    _check_generator("generator", generator, or_none=True)
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def last(steps: Iterator[Step]) -> Tensor:
    """Walk a sampler to its end: the finished images, clamped to [-1, 1]."""
    *_, final = steps
    return final.xt.clamp(-1, 1)


def start_noise(n: int, seed: int, channels: int = 3, size: int = 32) -> tuple[Tensor, torch.Generator]:
    """x_T ~ N(0, I), (n, 3, 32, 32), and the generator to go on with. Image i is the same for every n > i.

    Drawn on the CPU, so that a seed means the same everywhere.
    """
    _check_int("n", n)
    _check_seed("seed", seed)
    _check_int("channels", channels, low=1)
    _check_int("size", size, low=1)
    if n < 1:
        raise ValueError(f"n, the number of images, must be at least 1, not {n}.")
    streams = [torch.Generator().manual_seed(seed * 1_000_003 + 1 + i) for i in range(n)]  # far apart for near seeds
    x_T = torch.stack([torch.randn(channels, size, size, generator=stream) for stream in streams])
    return x_T, torch.Generator().manual_seed(seed * 1_000_003)


def _check_steps(steps: int, T: int) -> None:
    _check_int("steps", steps)
    if not 1 <= steps <= T:
        raise ValueError(f"steps must lie in 1...{T}, the length of the chain, not {steps}.")


def _check_start(x_T: Tensor, generator: torch.Generator | None) -> None:
    _check_floats("x_T", x_T)
    if x_T.ndim == 0:
        raise ValueError("x_T must have the shape (B, ...), not ().")
    if not x_T.isfinite().all():
        raise ValueError("x_T must be finite, but holds NaN or infinity.")
    _check_generator("generator", generator, or_none=True)


def _check_labels(y: Tensor | None) -> None:
    if y is None:
        return
    _check_tensor("y", y)
    if y.dtype != torch.long or y.ndim != 1:
        raise ValueError(f"y must be a long tensor of shape (B,), not {y.dtype} of shape {tuple(y.shape)}.")
