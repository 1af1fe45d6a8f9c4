"""Chapter 02: adding noise to images, and removing it again, by the rules of probability.

Equation numbers are those of Ho et al. 2020, "Denoising Diffusion Probabilistic Models"
(arXiv:2006.11239). The paper counts t = 1...T; here t = 0...T-1, so t = 0 is ONE step of noise,
and alpha_bar before t = 0 is 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .guards import _check_device, _check_floats, _check_int, _check_number, _check_tensor


def linear_betas(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """The paper's schedule (section 4): (T,) float64, evenly spaced from beta_start to beta_end.

    The end points belong to T = 1000. For another T, scale them by 1000 / T, or x_T is not noise.
    """
    _check_int("T", T, low=1)
    _check_number("beta_start", beta_start)
    _check_number("beta_end", beta_end)
    if not (0 < beta_start < 1 and 0 < beta_end < 1):
        raise ValueError(f"beta_start and beta_end must lie between 0 and 1, not be {beta_start} and {beta_end}.")
    return torch.linspace(beta_start, beta_end, T, dtype=torch.float64)


def cosine_betas(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """The schedule of Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17: (T,) float64.

    alpha_bar follows a squared cosine; s keeps the first steps from being vanishingly small,
    max_beta keeps the last ones from dividing by an alpha_bar of zero.
    """
    _check_int("T", T, low=1)
    _check_number("s", s, low=0.0)
    _check_number("max_beta", max_beta, low=1e-9, high=1.0)
    u = torch.arange(T + 1, dtype=torch.float64) / T  # (T + 1,): 0 ... 1
    alpha_bars = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(max=max_beta)


class DDPM:
    """The two processes of a diffusion model, for a given schedule of betas.

    betas: (T,) tensor with 0 < beta < 1. Three float64 tables are kept: betas, alphas, alpha_bars.
    The images x0, xt may have any shape (B, ...); t is a long tensor (B,) with values 0...T-1.
    Raises ValueError, naming the argument, where a shape or a timestep does not fit, TypeError where a dtype does not:
    images must hold floats (see data.to_float).
    """

    def __init__(self, betas: Tensor):
        _check_floats("betas", betas)
        if betas.ndim != 1 or len(betas) == 0 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas must be a one-dimensional tensor of numbers between 0 and 1, both excluded.")
        self.betas = betas.double()  # (T,)
        self.alphas = 1 - self.betas  # (T,)
        self.alpha_bars = self.alphas.cumprod(0)  # (T,)
        self.T = len(betas)

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Draw x_t from q(x_t | x_0) in one jump, eq. 4, with the given noise eps ~ N(0, I)."""
        _check_same("eps", eps, "x0", x0)
        alpha_bar = self._at(self.alpha_bars, t, x0)
        return (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps).to(x0.dtype)

    def predict_x0(self, xt: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The clean image that x_t and a noise estimate imply: eq. 4 solved for x_0 (eq. 15)."""
        _check_same("eps", eps, "xt", xt)
        alpha_bar = self._at(self.alpha_bars, t, xt)
        return ((xt - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()).to(xt.dtype)

    def predict_eps(self, xt: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """The noise that x_t and an image estimate imply: eq. 4 solved for eps."""
        _check_same("x0", x0, "xt", xt)
        alpha_bar = self._at(self.alpha_bars, t, xt)
        return ((xt - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()).to(xt.dtype)

    def q_posterior(self, x0: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (like xt) and variance (B, 1, ...) of q(x_{t-1} | x_t, x_0), eqs. 6 and 7."""
        _check_same("x0", x0, "xt", xt)
        beta, alpha = self._at(self.betas, t, xt), self._at(self.alphas, t, xt)
        alpha_bar, alpha_bar_prev = self._at(self.alpha_bars, t, xt), self._at(self._alpha_bars_prev(), t, xt)
        x0_part = alpha_bar_prev.sqrt() * beta / (1 - alpha_bar) * x0
        xt_part = alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar) * xt
        variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
        return (x0_part + xt_part).to(xt.dtype), variance.to(xt.dtype)

    def p_sample(self, x0_hat: Tensor, xt: Tensor, t: Tensor, noise: Tensor, variances: Tensor) -> Tensor:
        """One reverse step, x_t -> x_{t-1}: Algorithm 2, lines 3 and 4.

        x0_hat: the estimate of x_0 (see predict_x0), clipped or not. noise ~ N(0, I), like xt.
        variances: (T,) table of sigma_t^2: beta_variances(ddpm) or posterior_variances(ddpm).
        At t = 0 no noise is added: the result is the mean.
        """
        _check_same("noise", noise, "xt", xt)
        _check_same("x0_hat", x0_hat, "xt", xt)
        _check_floats("variances", variances)
        if not (variances.isfinite() & (variances >= 0)).all():
            raise ValueError("variances must be finite and not negative.")
        mean, _ = self.q_posterior(x0_hat, xt, t)
        sigma = self._at(variances, t, xt).sqrt() * (_spread(t, xt) > 0)
        return (mean + sigma * noise).to(xt.dtype)

    def loss(self, eps_model: Callable[[Tensor, Tensor], Tensor], x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The simple loss of eq. 14, one figure per image: (B,), the mean of (eps - eps_hat)^2 over pixels."""
        eps_hat = eps_model(self.q_sample(x0, t, eps), t)
        _check_same("what eps_model returns", eps_hat, "eps", eps)
        return (eps - eps_hat).square().flatten(1).mean(1)

    def shortened(self, timesteps: Tensor) -> "DDPM":
        """The chain that visits only the given timesteps (ascending): a DDPM with fewer, larger steps.

        Its alpha_bars are this chain's at those timesteps, so a model trained here serves there,
        as long as it is told timesteps[i] for index i. Source: Nichol & Dhariwal 2021, eq. 19.
        """
        _check_tensor("timesteps", timesteps)
        if timesteps.dtype != torch.long:
            raise TypeError(f"timesteps must be a long tensor, not {timesteps.dtype}.")
        in_range = ((timesteps >= 0) & (timesteps < self.T)).all()
        if timesteps.ndim != 1 or len(timesteps) == 0 or not in_range or (timesteps.diff() <= 0).any():
            raise ValueError(f"timesteps must ascend strictly within 0...{self.T - 1}.")
        alpha_bars = self.alpha_bars[timesteps]
        alpha_bars_prev = torch.cat([torch.ones_like(alpha_bars[:1]), alpha_bars[:-1]])
        return DDPM(1 - alpha_bars / alpha_bars_prev)

    def _alpha_bars_prev(self) -> Tensor:
        return torch.cat([torch.ones_like(self.alpha_bars[:1]), self.alpha_bars[:-1]])  # (T,)

    def _at(self, table: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """The table's entries at t, shaped (B, 1, 1, 1) to multiply images."""
        _check_tensor("t", t)
        _check_device("t", t, "the images", x)
        if t.dtype != torch.long or t.shape != x.shape[:1]:
            raise ValueError(f"t must be a long tensor of shape ({len(x)},), not {t.dtype} of shape {tuple(t.shape)}.")
        if len(t) and (t.min() < 0 or t.max() >= self.T):
            raise ValueError(f"t must lie in 0...{self.T - 1}; it runs from {int(t.min())} to {int(t.max())}.")
        if table.shape != (self.T,):
            raise ValueError(f"a table of variances must have the shape ({self.T},), not {tuple(table.shape)}.")
        precise = torch.float32 if x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        return _spread(table.to(x.device, precise)[t], x)


def beta_variances(ddpm: DDPM) -> Tensor:
    """(T,) sigma_t^2 = beta_t: right if x_0 were pure noise, and the official CIFAR-10 choice (section 3.2)."""
    return ddpm.betas


def posterior_variances(ddpm: DDPM) -> Tensor:
    """(T,) sigma_t^2 = beta_tilde_t of eq. 7: right if x_0 were a single known image. Zero at t = 0."""
    return ddpm.betas * (1 - ddpm._alpha_bars_prev()) / (1 - ddpm.alpha_bars)


def _spread(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))


def _check_same(name: str, a: Tensor, other: str, b: Tensor) -> None:
    _check_floats(name, a)
    _check_floats(other, b)
    if b.ndim == 0:
        raise ValueError(f"{other} must have the shape (B, ...), not ().")
    if a.shape != b.shape:
        raise ValueError(f"{name} must have the shape of {other}, {tuple(b.shape)}, not {tuple(a.shape)}.")
    _check_device(name, a, other, b)
