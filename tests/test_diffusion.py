"""The two processes against oracles that share no code with them: simulation, Bayes on a grid, exact fractions."""

import math

import pytest
import torch

from ddpm_utils.diffusion import DDPM, beta_variances, cosine_betas, linear_betas, posterior_variances


def at(n, t):
    return torch.full((n,), t)


def test_linear_betas_are_the_papers():
    betas = linear_betas()
    assert betas.dtype == torch.float64 and betas.shape == (1000,)
    assert betas[0].item() == pytest.approx(1e-4, rel=1e-12) and betas[-1].item() == pytest.approx(0.02, rel=1e-12)
    assert betas.diff().std() < 1e-15
    assert math.sqrt(DDPM(betas).alpha_bars[-1]) == pytest.approx(0.006, abs=5e-4)


@pytest.mark.parametrize("T", [10, 1000, 4000])
def test_cosine_betas_give_the_cosine_alpha_bars(T):
    betas = cosine_betas(T)
    assert betas.dtype == torch.float64 and ((betas > 0) & (betas <= 0.999)).all()
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
    alpha_bars = DDPM(betas).alpha_bars
    for t in range(0, T - 2, max(1, T // 7)):  # before the clip, alpha_bar_t = f(t + 1) / f(0)
        assert alpha_bars[t].item() == pytest.approx(f[t + 1] / f[0], rel=1e-9)


@pytest.mark.parametrize("betas", [linear_betas(), cosine_betas(), linear_betas(50, 2e-3, 0.4)])
def test_the_last_state_of_a_schedule_is_noise(betas):
    """What x_T keeps of x_0 must hide in the noise: a mean over 3,072 numbers still spreads by 0.018."""
    assert math.prod(math.sqrt(1 - beta) for beta in betas.tolist()) < 0.01


def test_alpha_bars_are_exact_to_float64():
    betas = linear_betas()
    product = math.prod(1 - beta for beta in betas.tolist())
    assert DDPM(betas).alpha_bars[-1].item() == pytest.approx(product, rel=1e-12)
    assert DDPM(betas.float()).alpha_bars.dtype == torch.float64


def test_single_steps_add_up_to_the_jump():
    """Mean and variance of x_t after iterated eq. 2 steps are those of q_sample."""
    ddpm, n = DDPM(linear_betas(50, 1e-3, 0.2)), 200_000
    generator = torch.Generator().manual_seed(0)
    x0 = 0.7
    x = torch.full((n,), x0, dtype=torch.float64)
    for t in range(50):
        beta = ddpm.betas[t]
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(n, generator=generator, dtype=torch.float64)
        if t in (0, 10, 49):
            mean = ddpm.q_sample(torch.full((1, 1), x0), at(1, t), torch.zeros(1, 1)).item()
            spread = ddpm.q_sample(torch.zeros(1, 1), at(1, t), torch.ones(1, 1)).item()
            assert x.mean().item() == pytest.approx(mean, abs=5 * spread / math.sqrt(n) + 1e-6)
            assert x.std().item() == pytest.approx(spread, rel=0.01)


@pytest.mark.parametrize("t", [1, 7, 19])
def test_posterior_is_bayes_rule_on_a_grid(t):
    ddpm = DDPM(linear_betas(20, 0.01, 0.3))
    x0, xt = 0.4, -0.9
    grid = torch.linspace(-8, 8, 40_001, dtype=torch.float64)

    def normal(x, mean, variance):
        return torch.exp(-((x - mean) ** 2) / (2 * variance))

    before = math.prod(1 - b for b in ddpm.betas[:t].tolist())  # alpha_bar of t - 1, by its definition
    beta = ddpm.betas[t].item()
    density = normal(xt, math.sqrt(1 - beta) * grid, beta) * normal(grid, math.sqrt(before) * x0, 1 - before)
    density /= density.sum()
    mean = (density * grid).sum().item()
    variance = (density * (grid - mean) ** 2).sum().item()
    as_tensor = [torch.tensor([[v]], dtype=torch.float64) for v in (x0, xt)]
    got_mean, got_variance = ddpm.q_posterior(*as_tensor, at(1, t))
    assert got_mean.item() == pytest.approx(mean, abs=1e-6)
    assert got_variance.item() == pytest.approx(variance, rel=1e-5)
    assert posterior_variances(ddpm)[t].item() == pytest.approx(variance, rel=1e-5)


def test_posterior_at_the_first_step_is_the_image_itself():
    ddpm = DDPM(linear_betas())
    x0, xt = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mean, variance = ddpm.q_posterior(x0, xt, at(2, 0))
    assert torch.allclose(mean, x0, atol=1e-5) and (variance == 0).all()


def test_predictions_undo_q_sample():
    ddpm = DDPM(linear_betas())
    x0, eps, t = torch.rand(4, 3, 8, 8) * 2 - 1, torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 500, 999])
    xt = ddpm.q_sample(x0, t, eps)
    assert xt.dtype == torch.float32
    assert torch.allclose(ddpm.predict_x0(xt, t, eps), x0, atol=1e-4)
    assert torch.allclose(ddpm.predict_eps(xt, t, x0), eps, atol=1e-3)


def test_p_sample_agrees_with_line_4_of_algorithm_2():
    """The paper's own form: (x_t - beta / sqrt(1 - alpha_bar) eps) / sqrt(alpha) + sigma z."""
    ddpm = DDPM(linear_betas())
    xt, eps, z = (torch.randn(3, 3, 8, 8, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([1, 400, 999])
    beta, alpha_bar = (table[t].view(-1, 1, 1, 1) for table in (ddpm.betas, ddpm.alpha_bars))
    expected = (xt - beta / (1 - alpha_bar).sqrt() * eps) / (1 - beta).sqrt() + beta.sqrt() * z
    got = ddpm.p_sample(ddpm.predict_x0(xt, t, eps), xt, t, z, beta_variances(ddpm))
    assert torch.allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize("variances", [beta_variances, posterior_variances])
def test_the_noise_of_a_step_has_the_variance_that_was_asked_for(variances):
    ddpm = DDPM(linear_betas(10, 0.01, 0.4))
    table, t = variances(ddpm), torch.arange(1, 10)
    xt, z = torch.zeros(9, 1, dtype=torch.float64), torch.ones(9, 1, dtype=torch.float64)
    added = ddpm.p_sample(xt, xt, t, z, table) - ddpm.p_sample(xt, xt, t, 0 * z, table)
    assert added.flatten().tolist() == pytest.approx([math.sqrt(variance) for variance in table.tolist()[1:]])


@pytest.mark.parametrize("variances", [beta_variances, posterior_variances])
def test_no_noise_on_the_last_step(variances):
    ddpm = DDPM(linear_betas())
    x0, xt = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    loud = ddpm.p_sample(x0, xt, at(2, 0), 1e6 * torch.randn(2, 3, 4, 4), variances(ddpm))
    assert torch.allclose(loud, x0, atol=1e-5)


def test_loss_is_the_mean_square_per_image():
    ddpm = DDPM(linear_betas())
    x0, eps, t = torch.zeros(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.tensor([0, 10, 999])
    loss = ddpm.loss(lambda xt, t: torch.zeros_like(xt), x0, t, eps)
    expected = [sum(v**2 for v in image.flatten().tolist()) / 48 for image in eps]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)
    told = []
    ddpm.loss(lambda xt, t: told.append((xt, t)) or xt, x0, t, eps)
    assert torch.equal(told[0][1], t)
    assert torch.allclose(told[0][0][0], (1e-4**0.5) * eps[0], rtol=1e-4)  # x0 = 0, t = 0: sqrt(beta_0) eps


def test_a_shortened_chain_keeps_alpha_bar():
    ddpm = DDPM(linear_betas())
    timesteps = torch.tensor([0, 10, 500, 999])
    short = ddpm.shortened(timesteps)
    assert torch.allclose(short.alpha_bars, ddpm.alpha_bars[timesteps], rtol=1e-12)
    assert torch.allclose(ddpm.shortened(torch.arange(1000)).betas, ddpm.betas, rtol=1e-8)


@pytest.mark.parametrize("bad", [[5, 5], [9, 3], [-1, 3], [0, 1000], []])
def test_a_shortened_chain_refuses_bad_timesteps(bad):
    with pytest.raises(ValueError, match="timesteps"):
        DDPM(linear_betas()).shortened(torch.tensor(bad, dtype=torch.long))


@pytest.mark.parametrize("betas", [torch.tensor([0.0, 0.1]), torch.tensor([1.0]), torch.zeros(0), torch.ones(2, 2) / 2])
def test_bad_betas_are_refused(betas):
    with pytest.raises(ValueError, match="betas"):
        DDPM(betas)


@pytest.mark.parametrize("T", [0, -1])
@pytest.mark.parametrize("schedule", [linear_betas, cosine_betas])
def test_a_chain_without_steps_is_refused(schedule, T):
    with pytest.raises(ValueError, match="T"):
        schedule(T)


@pytest.mark.parametrize(
    "t", [torch.tensor([0, 1000]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0]), torch.tensor([0]), torch.tensor(3)]
)
def test_a_bad_t_is_named_and_never_wraps_around(t):
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="t must"):
        DDPM(linear_betas()).q_sample(x, t, x)


def test_shapes_that_would_broadcast_are_refused():
    ddpm, t = DDPM(linear_betas()), at(2, 5)
    x, other = torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="eps"):
        ddpm.q_sample(x, t, other)
    with pytest.raises(ValueError, match="x0"):
        ddpm.q_posterior(other, x, t)
    with pytest.raises(ValueError, match="noise"):
        ddpm.p_sample(x, x, t, other, beta_variances(ddpm))
