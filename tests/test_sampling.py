"""The samplers with noise models whose right answer is known exactly, so that any error is the sampler's."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from ddpm_utils.diffusion import DDPM, beta_variances, cosine_betas, linear_betas, posterior_variances
from ddpm_utils.sampling import (
    Step,
    last,
    log_snr_timesteps,
    noise_model,
    sample_ddim,
    sample_ddpm,
    sample_dpmpp,
    spaced_timesteps,
    start_noise,
)
from ddpm_utils.unet import TINY, UNet

MEANS = torch.tensor([[0.6, 0.0], [-0.3, 0.5], [-0.3, -0.5]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
STD = 0.1


def knows(ddpm, x0):
    """The perfect noise model for a data set of one image."""
    return lambda xt, t: ddpm.predict_eps(xt, t, x0.expand_as(xt))


def mixture_eps(ddpm):
    """E[eps | x_t] for the 2-D mixture above: -sqrt(1 - alpha_bar) times the score, by the textbook formula."""

    def eps(xt, t):
        alpha_bar = ddpm.alpha_bars[t][:, None]
        variance = alpha_bar * STD**2 + 1 - alpha_bar
        offsets = xt[:, None] - alpha_bar.sqrt()[:, :, None] * MEANS  # (B, 3, 2)
        logits = WEIGHTS.log() - offsets.square().sum(2) / (2 * variance)
        score = -(torch.softmax(logits, 1)[:, :, None] * offsets).sum(1) / variance
        return -(1 - alpha_bar).sqrt() * score

    return eps


@pytest.mark.parametrize("betas", [linear_betas(), cosine_betas()])
@pytest.mark.parametrize("steps", [1, 2, 10, 50, 1000])
def test_ddim_follows_a_perfect_denoiser_to_the_image(betas, steps):
    ddpm = DDPM(betas)
    x0 = torch.rand(1, 3, 8, 8, dtype=torch.float64) * 2 - 1
    x_T = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    walked = list(sample_ddim(knows(ddpm, x0), ddpm, x_T, steps=steps))
    assert torch.allclose(walked[-1].xt, x0.expand_as(x_T), atol=1e-6)
    eps = ddpm.predict_eps(x_T, torch.full((2,), ddpm.T - 1), x0.expand_as(x_T))
    for step in walked[:-1]:  # on the way, x_t is x0 and one and the same eps, mixed as eq. 4 says
        expected = ddpm.q_sample(x0.expand_as(x_T), torch.full((2,), step.t), eps)
        assert torch.allclose(step.xt, expected, atol=1e-6)


@pytest.mark.parametrize("steps", [None, 50])
@pytest.mark.parametrize("variances", [beta_variances, posterior_variances])
def test_ancestral_sampling_with_a_perfect_denoiser_ends_at_the_image(variances, steps):
    ddpm = DDPM(linear_betas())
    x0 = torch.rand(1, 3, 8, 8) * 2 - 1
    *_, final = sample_ddpm(knows(ddpm, x0), ddpm, torch.randn(2, 3, 8, 8), steps=steps, variances=variances)
    assert torch.allclose(final.xt, x0.expand(2, -1, -1, -1), atol=1e-4)


@pytest.mark.parametrize(
    "sampler",
    [
        lambda *a: sample_ddpm(*a, clip=False),
        lambda *a: sample_ddpm(*a, variances=posterior_variances, clip=False),
        lambda *a: sample_ddim(*a, steps=1000, clip=False),
        lambda *a: sample_ddim(*a, steps=1000, eta=1.0, clip=False),
        lambda *a: sample_dpmpp(*a, steps=60, clip=False),
    ],
    ids=["beta", "posterior", "ddim", "ddim eta 1", "dpmpp"],
)
def test_the_exact_score_of_a_mixture_gives_the_mixture(sampler):
    ddpm, n = DDPM(linear_betas()), 4000
    torch.manual_seed(0)
    *_, final = sampler(mixture_eps(ddpm), ddpm, torch.randn(n, 2, dtype=torch.float64))
    x = final.xt
    nearest = torch.cdist(x, MEANS).argmin(1)
    shares = torch.bincount(nearest, minlength=3) / n
    assert torch.allclose(shares.double(), WEIGHTS, atol=4 * 0.5 / math.sqrt(n))
    mean = (WEIGHTS[:, None] * MEANS).sum(0)
    centred = MEANS - mean
    covariance = (WEIGHTS[:, None, None] * centred[:, :, None] * centred[:, None]).sum(0) + STD**2 * torch.eye(2)
    assert torch.allclose(x.mean(0), mean, atol=0.04)
    assert torch.allclose(x.T.cov(), covariance, atol=0.03)
    for k in range(3):
        assert x[nearest == k].std(0).mean().item() == pytest.approx(STD, rel=0.1)


def test_ddim_with_eta_one_has_the_posterior_variance():
    """One step from the same x_t, many draws: mean and spread are those of the shortened chain's posterior."""
    ddpm, n = DDPM(linear_betas()), 200_000
    timesteps = spaced_timesteps(1000, 10)
    x0 = torch.full((n, 1), 0.3, dtype=torch.float64)
    steps = sample_ddim(knows(ddpm, x0), ddpm, torch.full((n, 1), 0.8).double(), steps=10, eta=1.0)
    next(steps)
    x = next(steps).xt
    before, now = ddpm.alpha_bars[timesteps[-2]].item(), ddpm.alpha_bars[timesteps[-1]].item()
    beta = 1 - now / before
    variance = beta * (1 - before) / (1 - now)
    mean = math.sqrt(before) * beta / (1 - now) * 0.3 + math.sqrt(1 - beta) * (1 - before) / (1 - now) * 0.8
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.var().item() == pytest.approx(variance, rel=0.02)


def even(ddpm, steps):
    return spaced_timesteps(ddpm.T, steps)


@pytest.mark.parametrize("betas", [linear_betas(), cosine_betas()])
@pytest.mark.parametrize("spacing", [even, log_snr_timesteps])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_the_solver_follows_a_perfect_denoiser_to_the_image(betas, spacing, steps):
    ddpm = DDPM(betas)
    x0 = torch.rand(1, 3, 4, 4, dtype=torch.float64) * 2 - 1
    x_T = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    walked = list(sample_dpmpp(knows(ddpm, x0), ddpm, x_T, steps=steps, spacing=spacing))
    assert torch.allclose(walked[-1].xt, x0.expand_as(x_T), atol=1e-6)
    eps = ddpm.predict_eps(x_T, torch.full((2,), ddpm.T - 1), x0.expand_as(x_T))
    for step in walked[:-1]:
        expected = ddpm.q_sample(x0.expand_as(x_T), torch.full((2,), step.t), eps)
        assert torch.allclose(step.xt, expected, atol=1e-6)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_the_solver_of_order_one_is_ddim(steps, clip):
    ddpm, x_T = DDPM(linear_betas()), torch.randn(5, 2, dtype=torch.float64)
    ours = list(sample_dpmpp(mixture_eps(ddpm), ddpm, x_T, steps=steps, order=1, spacing=even, clip=clip))
    ddim = list(sample_ddim(mixture_eps(ddpm), ddpm, x_T, steps=steps, clip=clip))
    for a, b in zip(ours, ddim, strict=True):
        assert a.t == b.t and torch.allclose(a.xt, b.xt, atol=1e-9) and torch.allclose(a.x0_hat, b.x0_hat, atol=1e-9)


def orders(ddpm, eps_model, x_T, exact, order):
    """How fast the state at t = 0 comes near the exact one, as steps are halved twice: log2 of the errors' ratios."""
    errors = []
    for steps in (80, 160, 320):
        walked = list(sample_dpmpp(eps_model, ddpm, x_T, steps=steps, order=order, clip=False))
        errors.append((walked[-2].xt - exact).square().mean().sqrt().item())
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


FINE = DDPM(linear_betas(10_000, 1e-5, 2e-3))  # so long that the timesteps are even in log-SNR, as order 2 wants them


@pytest.mark.parametrize("order", [1, 2])
def test_the_solver_has_its_order_on_a_mixture(order):
    """Against scipy's solution of the probability-flow equation dx/dt = -beta/2 (x + score), in Song et al.'s (2021,
    arXiv:2011.13456, eq. 13) form: with 2 du = -beta dt = d log(alpha_bar), dx/du = x + score."""
    start = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def slope(u, flat):
        x, alpha_bar = torch.from_numpy(flat).view(-1, 2), math.exp(2 * u)
        variance = alpha_bar * STD**2 + 1 - alpha_bar
        offsets = x[:, None] - math.sqrt(alpha_bar) * MEANS
        weights = torch.softmax(WEIGHTS.log() - offsets.square().sum(2) / (2 * variance), 1)
        return (x - (weights[:, :, None] * offsets).sum(1) / variance).flatten().numpy()

    span = (FINE.alpha_bars[[-1, 0]].log() / 2).tolist()
    exact = solve_ivp(slope, span, start.flatten().numpy(), "DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
    found = orders(FINE, mixture_eps(FINE), start, torch.from_numpy(exact).view(-1, 2), order)
    assert np.allclose(found, order, atol=0.25), found


@pytest.mark.parametrize("order", [1, 2])
def test_the_solver_has_its_order_on_a_gaussian(order):
    """For data N(m, v) the flow only shifts and stretches: (x - sqrt(alpha_bar) m) / deviation never changes."""
    m, v, x_T = 0.3, 0.25, torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def deviation(alpha_bar):
        return (alpha_bar * v + 1 - alpha_bar).sqrt()

    def eps_model(xt, t):
        alpha_bar = FINE.alpha_bars[t][:, None]
        return (1 - alpha_bar).sqrt() * (xt - alpha_bar.sqrt() * m) / deviation(alpha_bar) ** 2

    last_ab, first_ab = FINE.alpha_bars[-1], FINE.alpha_bars[0]
    exact = first_ab.sqrt() * m + deviation(first_ab) * (x_T - last_ab.sqrt() * m) / deviation(last_ab)
    found = orders(FINE, eps_model, x_T, exact, order)
    assert np.allclose(found, order, atol=0.25), found


def test_the_solver_clips_the_estimate():
    ddpm, x_T = DDPM(linear_betas()), torch.randn(2, 3, 8, 8)
    walked = list(sample_dpmpp(lambda xt, t: -3 * xt, ddpm, x_T, steps=5))
    assert all(step.x0_hat.abs().max() <= 1 for step in walked)
    assert walked[-1].xt.abs().max() == 1


@pytest.mark.parametrize("betas", [linear_betas(), cosine_betas(), linear_betas(20)])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_timesteps_spread_evenly_in_log_snr(betas, steps):
    ddpm = DDPM(betas)
    timesteps = log_snr_timesteps(ddpm, steps)
    assert len(timesteps) == steps and timesteps[-1] == ddpm.T - 1 and (timesteps.diff() > 0).all()
    assert steps == 1 or timesteps[0] == 0
    assert torch.equal(log_snr_timesteps(ddpm, ddpm.T), torch.arange(ddpm.T))
    if ddpm.T == 1000 and betas[-1] < 0.1 and steps > 1:  # else there are few timesteps where log-SNR falls fast
        log_snr = torch.logit(ddpm.alpha_bars)
        share = (log_snr[timesteps] - log_snr[0]) / (log_snr[-1] - log_snr[0])
        assert (share - torch.arange(steps) / (steps - 1)).abs().max() < 0.04


def test_every_step_is_yielded_from_noise_to_image():
    ddpm = DDPM(linear_betas())
    x_T = torch.randn(1, 3, 8, 8)
    for sampler in (sample_ddpm, sample_ddim):
        walked = list(sampler(knows(ddpm, torch.zeros(1, 3, 8, 8)), ddpm, x_T, steps=4))
        assert [step.t for step in walked] == [999, 666, 333, 0, -1]
        assert torch.equal(walked[0].xt, x_T) and isinstance(walked[0], Step)
        assert torch.equal(walked[-1].xt, walked[-1].x0_hat)
    walked = list(sample_dpmpp(knows(ddpm, torch.zeros(1, 3, 8, 8)), ddpm, x_T, steps=4, spacing=even))
    assert [step.t for step in walked] == [999, 666, 333, 0, -1]
    assert torch.equal(walked[0].xt, x_T) and torch.equal(walked[-1].xt, walked[-1].x0_hat)


def test_clipping_keeps_the_estimate_in_range_and_the_pair_consistent():
    ddpm = DDPM(linear_betas())
    x_T = torch.randn(2, 3, 8, 8)
    walked = list(sample_ddim(lambda xt, t: -3 * xt, ddpm, x_T, steps=5))
    assert all(step.x0_hat.abs().max() <= 1 for step in walked[:-1])
    first, second = walked[:2]
    eps = ddpm.predict_eps(first.xt, torch.full((2,), first.t), first.x0_hat)
    assert torch.allclose(second.xt, ddpm.q_sample(first.x0_hat, torch.full((2,), second.t), eps), atol=1e-5)


def test_ancestral_sampling_clips_its_estimate_only_if_told():
    ddpm, x_T = DDPM(linear_betas()), torch.randn(2, 3, 8, 8)
    for clip in (True, False):
        walked = list(sample_ddpm(lambda xt, t: -3 * xt, ddpm, x_T, steps=5, clip=clip))
        assert (max(step.x0_hat.abs().max() for step in walked[:-1]) <= 1) == clip


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim])
def test_a_sampler_tells_the_model_the_timestep_of_the_state_that_it_shows(sampler):
    told = []
    walked = list(sampler(lambda xt, t: told.append(t) or xt, DDPM(linear_betas()), torch.randn(2, 3, 8, 8), steps=7))
    assert [t.tolist() for t in told] == [[step.t] * 2 for step in walked[:-1]]


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim])
def test_a_sampler_asks_the_model_that_it_was_given(sampler):
    ddpm, x_T, asked = DDPM(linear_betas()), torch.randn(1, 3, 8, 8), []
    for name in ("first", "second"):
        last(sampler(lambda xt, t, name=name: asked.append(name) or xt, ddpm, x_T, steps=3))
    assert asked == ["first"] * 3 + ["second"] * 3


def test_a_seed_fixes_the_samples():
    ddpm, model = DDPM(linear_betas()), lambda xt, t: 0.1 * xt

    def draw(seed):
        x_T, generator = start_noise(2, seed)
        return last(sample_ddpm(model, ddpm, x_T, steps=5, generator=generator))

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_an_image_does_not_depend_on_how_many_are_drawn():
    few, many = start_noise(2, 7)[0], start_noise(5, 7)[0]
    assert torch.equal(few, many[:2])
    both = torch.cat([start_noise(3, 0)[0], start_noise(3, 1)[0]])
    assert len(torch.unique(both.flatten(1)[:, 0])) == 6
    assert abs(start_noise(50, 3)[0].std().item() - 1) < 0.01
    x_T, generator = start_noise(3, 0)
    fresh = torch.randn(x_T.shape, generator=generator)  # what a sampler adds must be new noise, not x_T again
    assert (x_T * fresh).mean().abs() < 0.05


@pytest.mark.parametrize("T,steps", [(1000, 1000), (1000, 7), (10, 2), (5, 1)])
def test_timesteps_are_distinct_and_reach_pure_noise(T, steps):
    timesteps = spaced_timesteps(T, steps)
    assert len(timesteps) == steps and timesteps[-1] == T - 1 and (timesteps.diff() > 0).all()
    assert steps == 1 or timesteps[0] == 0


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_an_impossible_number_of_steps_is_refused(steps):
    ddpm = DDPM(linear_betas())
    for sampler in (sample_ddpm, sample_ddim, sample_dpmpp):
        with pytest.raises(ValueError, match="steps"):
            next(sampler(lambda xt, t: xt, ddpm, torch.zeros(1, 3, 8, 8), steps=steps))


def test_guidance_extrapolates_from_no_label_through_the_label():
    torch.manual_seed(0)
    model = UNet(replace(TINY, num_classes=10)).eval()
    for parameter in model.parameters():  # the layers that start at zero would hide the label
        torch.nn.init.normal_(parameter, std=0.1)
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([10, 500]), torch.tensor([3, 4])
    conditional, plain = noise_model(model, y)(x, t), noise_model(model)(x, t)
    assert not torch.allclose(conditional, plain)
    for scale in (0.0, 0.5, 3.0):
        expected = (1 - scale) * plain + scale * conditional
        assert torch.allclose(noise_model(model, y, scale)(x, t), expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="guidance"):
        noise_model(model, None, 2.0)
