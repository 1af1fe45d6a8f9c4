"""The training loop: it resumes to the bit, draws what it says, learns, and fails cleanly."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from ddpm_utils.data import ImageSet, shapes, to_float
from ddpm_utils.diffusion import DDPM, cosine_betas, linear_betas
from ddpm_utils.hardware import Setup, fastest, measure_setups
from ddpm_utils.training import (
    EMA,
    Run,
    TrainConfig,
    batch_indices,
    draw_batch,
    learning_rate,
    load_run,
    loss_weights,
    save_run,
    train,
    train_step,
)
from ddpm_utils.unet import TINY, UNet

CPU = torch.device("cpu")
NANO = replace(TINY, channels=16, groups=1, dropout=0.1, num_classes=10)
CONFIG = TrainConfig(steps=9, batch_size=8, warmup_steps=3, lr=1e-3)


@pytest.fixture(scope="module")
def data():
    return shapes(30)


@pytest.fixture
def ddpm():
    return DDPM(linear_betas())


def new_run(config=CONFIG, unet=NANO):
    torch.manual_seed(0)
    return Run(UNet(unet), config)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("setup", [Setup(), Setup(channels_last=True)])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_goes_on_to_the_last_bit(stop, setup, muon, tmp_path, data, ddpm):
    config = replace(CONFIG, muon=muon)
    whole = new_run(config)
    losses = [progress.loss for progress in train(whole, ddpm, data, setup)]

    part = new_run(config)
    resumed = []
    for progress in train(part, ddpm, data, setup):
        resumed.append(progress.loss)
        if progress.step == stop:
            break
    save_run(tmp_path / "run.safetensors", part, ddpm, data, setup)
    torch.manual_seed(12345)  # whatever happened to the caller's randomness in between must not matter
    torch.randn(17)
    run, found = load_run(tmp_path / "run.safetensors", ddpm, data, config, CPU)
    assert run.step == stop and found == setup
    resumed += [progress.loss for progress in train(run, ddpm, data, found)]

    assert resumed == losses and len(losses) == 9
    assert same(run.model, whole.model) and same(run.ema.model, whole.ema.model)


def test_training_leaves_the_callers_randomness_alone(data, ddpm):
    torch.manual_seed(1)
    expected = torch.randn(3)
    run = new_run()
    torch.manual_seed(1)
    next(train(run, ddpm, data))
    assert torch.equal(torch.randn(3), expected)


def test_a_run_goes_on_only_with_the_same_settings(tmp_path, data, ddpm):
    path, run = tmp_path / "run.safetensors", new_run()
    next(train(run, ddpm, data))
    save_run(path, run, ddpm, data, Setup())
    load_run(path, ddpm, data, replace(CONFIG, steps=20), CPU)
    with pytest.raises(ValueError, match=r"lr was 0\.001, now 0\.1"):
        load_run(path, ddpm, data, replace(CONFIG, lr=0.1), CPU)
    with pytest.raises(ValueError, match="muon was False, now True"):
        load_run(path, ddpm, data, replace(CONFIG, muon=True), CPU)
    with pytest.raises(ValueError, match="images were built-in shapes"):
        load_run(path, ddpm, shapes(20), CONFIG, CPU)
    with pytest.raises(ValueError, match="noise schedule"):
        load_run(path, DDPM(cosine_betas()), data, CONFIG, CPU)


def test_every_epoch_shows_every_image_once_in_a_new_order():
    n, batch_size = 10, 4
    stream = torch.cat([batch_indices(n, batch_size, step, seed=0) for step in range(10)])
    epochs = stream.reshape(4, n)
    assert (epochs.sort(dim=1).values == torch.arange(n)).all()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert sorted(batch_indices(3, 7, 0, seed=0).tolist())[:2] == [0, 0]  # a batch larger than the set


def test_a_batch_is_what_it_says(data):
    config = replace(CONFIG, batch_size=3000, label_dropout=0.25)
    batch = draw_batch(data, config, 5, 1000, 10, CPU)
    indices = batch_indices(len(data), 3000, 5, config.seed)
    originals = to_float(data.images[indices])
    kept = (batch.x0 == originals).flatten(1).all(1)
    mirrored = (batch.x0 == originals.flip(-1)).flatten(1).all(1)
    assert (kept | mirrored).all() and 0.4 < mirrored.float().mean() < 0.65
    dropped = batch.y == 10
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.04)  # each image on its own, not the whole batch
    assert torch.equal(batch.y[~dropped], data.labels[indices][~dropped])
    assert batch.t.min() < 10 and batch.t.max() > 989 and abs(batch.t.float().mean() - 499.5) < 25
    assert abs(batch.eps.mean()) < 0.005 and abs(batch.eps.std() - 1) < 0.005
    assert (batch.eps < -1).any()  # Gaussian, not uniform
    again, other = (draw_batch(data, config, step, 1000, 10, CPU) for step in (5, 6))
    assert torch.equal(again.eps, batch.eps) and not torch.equal(other.eps, batch.eps)
    assert draw_batch(data, config, 5, 1000, 0, CPU).y is None


def test_every_timestep_is_trained_as_often_as_any_other(data):
    t = draw_batch(data, replace(CONFIG, batch_size=8000), 0, 4, 10, CPU).t  # a chain of 4 steps
    assert torch.bincount(t, minlength=4).tolist() == pytest.approx([2000] * 4, abs=5 * math.sqrt(8000 * 3 / 16))


def test_without_flips_the_images_are_untouched(data):
    batch = draw_batch(data, replace(CONFIG, flip=False), 0, 1000, 0, CPU)
    assert torch.equal(batch.x0, to_float(data.images[batch_indices(len(data), 8, 0, 0)]))


def test_ema_is_the_weighted_sum_of_all_weights():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 5.0)
    ema, expected = EMA(layer, 0.6), 5.0
    for step, value in enumerate([1.0, -2.0, 4.0, 3.0, 8.0, 0.5]):
        torch.nn.init.constant_(layer.weight, value)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        ema.update(layer, step)
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-5)


def test_ema_of_a_short_run_has_forgotten_its_start():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 100.0)
    ema = EMA(layer, 0.9999)
    torch.nn.init.zeros_(layer.weight)
    for step in range(150):
        ema.update(layer, step)
    assert ema.model.weight.item() < 1e-3 * 100


def test_learning_rate_warms_up_and_decays():
    config = TrainConfig(lr=1.0, warmup_steps=10, lr_final=0.1, steps=1000)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(config, 9, 0.0) == pytest.approx(1.0)
    assert learning_rate(config, 500, 0.5) == pytest.approx(0.55)
    assert learning_rate(config, 1000, 1.0) == pytest.approx(0.1)
    assert learning_rate(replace(config, lr_final=1.0), 900, 0.9) == pytest.approx(1.0)


def test_capped_weights_make_the_loss_of_eps_that_of_x0_where_little_noise_is_left(ddpm):
    """(x0 - x0_hat)^2 = (eps - eps_hat)^2 / SNR: below the cap's timestep the weighted loss is cap * that of x0."""
    weights, snr = loss_weights(ddpm, 5.0), ddpm.alpha_bars / (1 - ddpm.alpha_bars)
    assert torch.equal(loss_weights(ddpm, 0.0), torch.ones(1000))
    assert torch.equal(weights[snr <= 5], torch.ones(int((snr <= 5).sum())))
    x0, xt = torch.full((1000, 1, 1, 1), 0.4), torch.full((1000, 1, 1, 1), 0.1)
    t = torch.arange(1000)
    eps, eps_hat = (ddpm.predict_eps(xt, t, x0 + shift) for shift in (0.0, 0.01))
    weighted = weights * (eps - eps_hat).square().flatten()
    torch.testing.assert_close(weighted[snr > 5], torch.full_like(weighted[snr > 5], 5 * 0.01**2), rtol=1e-3, atol=0)


def test_a_step_descends_the_weighted_loss(data, ddpm):
    """Without noise of its own (dropout 0), a step's gradient is that of the weighted mean, written out here."""
    config = replace(CONFIG, snr_cap=5.0, grad_clip=1e9)
    run = new_run(config, replace(NANO, dropout=0.0))
    batch = draw_batch(data, config, 0, 1000, 10, CPU)
    batch = batch._replace(t=torch.tensor([0, 5, 20, 50, 100, 300, 600, 999]))
    eps_hat = run.model(ddpm.q_sample(batch.x0, batch.t, batch.eps), batch.t, batch.y)
    snr = (ddpm.alpha_bars / (1 - ddpm.alpha_bars))[batch.t]
    each = (eps_hat - batch.eps).square().mean((1, 2, 3))
    expected = (each * torch.minimum(snr, torch.tensor(5.0)) / snr).mean()
    gradients = torch.autograd.grad(expected, list(run.model.parameters()))
    loss = train_step(run, run.model, ddpm, batch, 0.0)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for parameter, gradient in zip(run.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient.float(), rtol=1e-3, atol=1e-6)


def test_the_gradient_is_the_slope_of_the_loss(data, ddpm):
    """A short way along the gradient g, the loss must change by that way times |g|."""
    run = new_run(replace(CONFIG, grad_clip=1e9, lr=1e-12), replace(NANO, dropout=0.0))
    batch = draw_batch(data, CONFIG, 0, 1000, 10, CPU)
    batch = batch._replace(eps=2 * batch.eps)  # a loss of 4: where it is 1, as in a new run, a factor of it hides

    def loss_of(weights):
        torch.nn.utils.vector_to_parameters(weights, run.model.parameters())
        with torch.no_grad():
            eps_hat = run.model(ddpm.q_sample(batch.x0, batch.t, batch.eps), batch.t, batch.y)
            return (batch.eps - eps_hat).double().square().mean().item()

    start = torch.nn.utils.parameters_to_vector(run.model.parameters()).detach().clone()
    loss = train_step(run, run.model, ddpm, batch, lr=1e-12)
    g = torch.nn.utils.parameters_to_vector([p.grad for p in run.model.parameters()])
    h = 0.01 / g.norm()
    slope = (loss_of(start + h * g) - loss_of(start - h * g)) / (2 * h.item())
    assert loss == pytest.approx(loss_of(start), rel=1e-4) and loss > 3
    assert slope == pytest.approx(g.square().sum().item(), rel=0.02)


def test_gradients_are_clipped(data, ddpm, monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, limit: norms.append(limit) or clip(p, limit))
    run = new_run(replace(CONFIG, grad_clip=1e-3))
    next(train(run, ddpm, data))
    total = math.sqrt(sum(p.grad.square().sum().item() for p in run.model.parameters()))
    assert norms == [1e-3] and total == pytest.approx(1e-3, rel=0.01)


def test_a_budget_of_time_ends_in_time(data, ddpm):
    config = replace(CONFIG, minutes=1 / 60, steps=1)
    progress = list(train(new_run(config), ddpm, data))
    assert len(progress) > 1 and 1.0 <= progress[-1].seconds < 3
    assert progress[-1].seconds_left == 0 and progress[-1].lr < 0.3 * max(p.lr for p in progress)


def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(data, ddpm):
    run = new_run()
    steps = train(run, ddpm, data)
    next(steps)
    before = copy.deepcopy(run.model), copy.deepcopy(run.ema.model)
    hook = run.model.conv_out.register_forward_hook(lambda *_: torch.full((8, 3, 32, 32), math.nan, requires_grad=True))
    with pytest.raises(FloatingPointError, match="step 2: the loss is nan"):
        next(steps)
    hook.remove()
    assert same(before[0], run.model) and same(before[1], run.ema.model) and run.step == 1


def test_a_tiny_model_beats_the_best_constant_answer_on_shapes():
    """The best constant for eps is 0, with a loss of 1. A minute's worth of nothing would stay there."""
    data, ddpm = shapes(500), DDPM(linear_betas())
    config = TrainConfig(steps=120, batch_size=32, lr=2e-3, warmup_steps=20, ema_decay=0.98)
    run = new_run(config, replace(TINY, num_classes=10))
    setup = fastest(measure_setups(run.model))
    for _ in train(run, ddpm, data, setup):
        pass
    held_out = draw_batch(shapes(200, seed=9), replace(config, batch_size=200), 0, 1000, 10, CPU)
    with torch.no_grad():
        loss = ddpm.loss(lambda xt, t: run.ema.model(xt, t, held_out.y), held_out.x0, held_out.t, held_out.eps)
    assert loss.mean().item() < 0.15


@pytest.mark.parametrize(
    "field,value",
    [
        ("steps", 0),
        ("batch_size", -1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("minutes", -1.0),
        ("ema_decay", 1.5),
        ("label_dropout", -0.1),
        ("warmup_steps", 0),
        ("grad_clip", 0.0),
    ],
)
def test_an_impossible_setting_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        TrainConfig(**{field: value})


def test_a_model_without_classes_trains_without_labels(ddpm):
    images = ImageSet(shapes(20).images, torch.zeros(20, dtype=torch.long), ("all",), "test")
    run = new_run(unet=replace(NANO, num_classes=0))
    assert len(list(train(run, ddpm, images))) == 9


def test_measuring_leaves_the_model_as_it_was():
    model = UNet(NANO)
    before = copy.deepcopy(model)
    seconds = measure_setups(model, images=2, repeats=1)
    assert len(seconds) == 4 and all(value > 0 for value in seconds.values()) and same(before, model)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert fastest({Setup(): 1.0, Setup(bf16=True): 0.95}) == Setup()
    assert fastest({Setup(): 1.0, Setup(bf16=True): 0.5}) == Setup(bf16=True)
