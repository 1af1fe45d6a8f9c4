"""Equal to diffusers, the reference that most readers know: schedules, steps, samplers, the U-Net and its files.

Nothing is downloaded: the weights are random. Where the conventions differ, the tests adapt diffusers' side:

- Precision. Its tables are float32, ours float64: equal to 1e-6. Near t = 0 it subtracts nearly equal float32 numbers
  (1 - alpha_bar), which moves a step by up to 2e-4. The tests of steps put our tables into its schedulers; what is
  compared is the rule then, and it holds to 1e-9. Unclipped, x0_hat reaches 160 (cosine: 40,000) times the size of
  eps, so differences count relative to the largest number, where that is above 1.
- Schedules. Its "linear" and "squaredcos_cap_v2" are linear_betas and cosine_betas, both capped at 0.999.
- Steps. One t for all images there. "fixed_large" is beta_variances; "fixed_small" is posterior_variances, raised to
  1e-20 where that is 0, at t = 0, where neither side adds noise.
- Time spacing. Ours is its "linspace": T - 1 ... 0, both included (a single step: T - 1 here, 0 there). Its default is
  "leading", 980, 960, ..., 0 for 50 steps, which never sees pure noise. Its DDIM steps down by T // steps in any case,
  and in "linspace" misses the next timestep; so for DDIM, our sampler is given the timesteps of "leading" and of
  "trailing" (999, 979, ..., 19).
- DDIM's clipping. Ours derives eps anew from the clipped x0_hat; there, that is use_clipped_model_output=True.
- The network. Its q, k and v are three layers, ours are one; most names differ (ddpm_utils/diffusers_format.py).
"""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: whatever would reach for the network fails at once

from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel

from ddpm_utils import sampling
from ddpm_utils.checkpoint import Trained
from ddpm_utils.diffusers_format import WEIGHTS_FILE, load_diffusers, save_diffusers
from ddpm_utils.diffusion import DDPM, beta_variances, cosine_betas, linear_betas, posterior_variances
from ddpm_utils.sampling import last, noise_model, sample_ddim, sample_ddpm, sample_dpmpp, spaced_timesteps
from ddpm_utils.unet import PAPER, TINY, UNet

SCHEDULES = {"linear": linear_betas, "squaredcos_cap_v2": cosine_betas}
VARIANCES = {"fixed_large": beta_variances, "fixed_small": posterior_variances}
CIFAR10 = {  # the configuration of google/ddpm-cifar10-32
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2, "norm_num_groups": 32, "norm_eps": 1e-6, "act_fn": "silu", "attention_head_dim": None,
    "center_input_sample": False, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
    "mid_block_scale_factor": 1, "time_embedding_type": "positional",
}  # fmt: skip


def difference(a, b):
    """The largest difference, relative to the largest number where that is above 1."""
    assert a.shape == b.shape
    return ((a.double() - b.double()).abs().max() / b.abs().max().clamp(min=1)).item()


def pair(scheduler_class, schedule, **options):
    """A scheduler of diffusers with our tables in it, and our DDPM."""
    theirs, ddpm = scheduler_class(beta_schedule=schedule, **options), DDPM(SCHEDULES[schedule]())
    theirs.betas, theirs.alphas, theirs.alphas_cumprod = ddpm.betas, ddpm.alphas, ddpm.alpha_bars
    return theirs, ddpm


def wavy(xt, t):
    """A noise model that depends on every input, for the samplers to follow."""
    return torch.sin(2 * xt + xt.roll(1, dims=1) + 0.01 * t.view(-1, 1, 1, 1))


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("T", [1000, 50])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule, T):
    theirs, ddpm = DDPMScheduler(T, beta_schedule=schedule), DDPM(SCHEDULES[schedule](T))
    for name, table in {"betas": ddpm.betas, "alphas": ddpm.alphas, "alphas_cumprod": ddpm.alpha_bars}.items():
        assert (getattr(theirs, name) - table).abs().max() < 1e-6, name


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_q_sample(schedule):
    theirs, ddpm = DDPMScheduler(beta_schedule=schedule), DDPM(SCHEDULES[schedule]())
    x0, eps, t = torch.rand(1000, 3, 2, 2) * 2 - 1, torch.randn(1000, 3, 2, 2), torch.arange(1000)
    assert difference(ddpm.q_sample(x0, t, eps), theirs.add_noise(x0, eps, t)) < 1e-5


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance_type", VARIANCES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_posterior_and_ancestral_step(schedule, variance_type, clip):
    """The posterior's mean is a step less its noise; its variance is what fixed_small squares to."""
    theirs, ddpm = pair(DDPMScheduler, schedule, variance_type=variance_type, clip_sample=clip)
    variances = VARIANCES[variance_type](ddpm)
    for t in (0, 1, 2, 50, 400, 998, 999):
        xt, eps = randn(2, 2, 3, 4, 4)
        at = torch.full((2,), t)
        step = theirs.step(eps, t, xt, generator=torch.Generator().manual_seed(t))
        noise = torch.randn(xt.shape, generator=torch.Generator().manual_seed(t), dtype=xt.dtype)
        x0_hat = ddpm.predict_x0(xt, at, eps)
        x0_hat = x0_hat.clamp(-1, 1) if clip else x0_hat
        assert difference(x0_hat, step.pred_original_sample) < 1e-9
        assert difference(ddpm.p_sample(x0_hat, xt, at, noise, variances), step.prev_sample) < 1e-9
        mean, variance = ddpm.q_posterior(x0_hat, xt, at)
        assert difference(mean, step.prev_sample - variances[t].sqrt() * noise * (t > 0)) < 1e-9
        assert (variance - theirs._get_variance(t, variance_type="fixed_small")).abs().max() < 1e-9


@pytest.mark.parametrize("steps", [2, 7, 10, 50, 1000])
def test_our_time_spacing_is_linspace(steps):
    theirs = DDPMScheduler(timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    assert torch.equal(spaced_timesteps(1000, steps), theirs.timesteps.flip(0))


@pytest.mark.parametrize("steps", [10, 50, 1000])
@pytest.mark.parametrize("variance_type", VARIANCES)
def test_ancestral_sampler(variance_type, steps):
    theirs, ddpm = pair(DDPMScheduler, "linear", variance_type=variance_type, timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    x = x_T = randn(2, 3, 4, 4)
    g, generator = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for step in sample_ddpm(wavy, ddpm, x_T, steps=steps, variances=VARIANCES[variance_type], generator=generator):
        assert difference(step.xt, x) < 1e-9
        if step.t >= 0:
            x = theirs.step(wavy(x, torch.full((2,), step.t)), step.t, x, generator=g).prev_sample


@pytest.mark.parametrize("steps, spacing", [(10, "leading"), (10, "trailing"), (50, "leading"), (1000, "leading")])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_sampler(schedule, eta, clip, steps, spacing, monkeypatch):
    theirs, ddpm = pair(DDIMScheduler, schedule, clip_sample=clip, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    monkeypatch.setattr(sampling, "spaced_timesteps", lambda T, steps: theirs.timesteps.flip(0))
    x = x_T = randn(2, 3, 4, 4)
    g, generator = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for step in sample_ddim(wavy, ddpm, x_T, steps=steps, eta=eta, clip=clip, generator=generator):
        assert difference(step.xt, x) < 1e-9
        if step.t >= 0:
            eps = wavy(x, torch.full((2,), step.t))
            x = theirs.step(eps, step.t, x, eta=eta, use_clipped_model_output=True, generator=g).prev_sample


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # numpy's word to diffusers
@pytest.mark.parametrize("steps", [1, 2, 8, 20])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dpm_solver(schedule, order, clip, steps):
    """What must be aligned: their timesteps and sigmas (theirs are computed in float32, and spaced otherwise), a last
    step of order 1 to sigma 0 (final_sigmas_type), and their dynamic threshold held at 1, which is our clip. They
    round each x_t to float32."""
    options = {"algorithm_type": "dpmsolver++", "solver_order": order, "solver_type": "midpoint"}
    options |= {"final_sigmas_type": "zero", "thresholding": clip, "sample_max_value": 1.0}
    theirs, ddpm = pair(DPMSolverMultistepScheduler, schedule, **options)
    x = x_T = randn(2, 3, 4, 4)
    walked = list(sample_dpmpp(wavy, ddpm, x_T, steps=steps, order=order, clip=clip))
    theirs.set_timesteps(steps)
    theirs.timesteps = torch.tensor([step.t for step in walked[:-1]])
    alpha_bars = ddpm.alpha_bars[theirs.timesteps]
    theirs.sigmas = torch.cat([((1 - alpha_bars) / alpha_bars).sqrt(), torch.zeros(1, dtype=torch.float64)])
    for step in walked[:-1]:
        assert difference(step.xt, x) < 1e-5
        x = theirs.step(wavy(x, torch.full((2,), step.t)), step.t, x).prev_sample
    assert difference(walked[-1].xt, x) < 1e-5


def their_unet(**changes):
    """Random weights everywhere, biases and norms too: a zero would hide what it multiplies."""
    model = UNet2DModel(**{**CIFAR10, **changes}).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape))
    assert all(parameter.any() for parameter in model.parameters())
    return model


def narrow_unet():
    return their_unet(block_out_channels=[32, 64, 64, 64], norm_num_groups=8)


def assert_same_output(ours, theirs):
    """To 1e-5: rounding makes 1e-6, GroupNorm's eps of 1e-5 instead of 1e-6 makes 4e-5, all other slips far more."""
    x, t = torch.randn(3, 3, 32, 32), torch.tensor([0, 500, 999])
    expected = theirs(x, t).sample
    assert expected.std() > 0.1 and (expected[0] - expected[1]).std() > 0.01
    assert (ours(x, t) - expected).abs().max() < 1e-5


def test_the_paper_unet_is_google_ddpm_cifar10(tmp_path):
    """The same function, and the same tensors after the way there and back: so each was used, and used once."""
    theirs = their_unet()
    DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(tmp_path)
    trained = load_diffusers(tmp_path)
    assert trained.model.config == replace(PAPER, dropout=0.0) and not trained.model.training
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in trained.model.parameters())
    assert_same_output(trained.model, theirs)
    save_diffusers(trained, tmp_path)
    tensors, back = theirs.state_dict(), load_file(tmp_path / "unet" / WEIGHTS_FILE)
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
    shutil.rmtree(tmp_path / "unet")  # 143 MB


def test_the_flat_folder_with_the_names_of_2022(tmp_path):
    """How the official weights lie on the hub: no subfolders, no later keys, attention under its old names."""
    theirs = narrow_unet()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = theirs.state_dict()
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    config = {key: theirs.config[key] for key in CIFAR10}
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **config}))
    schedule = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None}
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"num_train_timesteps": 1000, **schedule}))
    trained = load_diffusers(tmp_path)
    assert_same_output(trained.model, theirs)
    assert torch.equal(trained.ddpm.betas, linear_betas())


@pytest.fixture
def tiny():
    model = UNet(replace(TINY, num_classes=3, dropout=0.1)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.06)
    return Trained(model, DDPM(cosine_betas(40)), ("a", "b", "c"), {})


@pytest.mark.parametrize("label", [None, 0, 2])
def test_a_saved_folder_comes_back(tiny, tmp_path, label):
    save_diffusers(tiny, tmp_path / "new" / "folder", label)
    back = load_diffusers(str(tmp_path / "new" / "folder"))
    assert back.model.config == replace(tiny.model.config, num_classes=0) and back.class_names == ()
    assert torch.equal(back.ddpm.betas, tiny.ddpm.betas)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([0, 39])
    y = None if label is None else torch.tensor([label, label])
    assert torch.allclose(back.model(x, t), tiny.model(x, t, y), atol=1e-5)


def test_diffusers_loads_and_samples_what_we_save(tiny, tmp_path):
    tiny.model.to(memory_format=torch.channels_last)
    save_diffusers(tiny, tmp_path)
    _, loaded = UNet2DModel.from_pretrained(tmp_path / "unet", output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"] and not loaded["mismatched_keys"]
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    got = pipeline(2, torch.Generator().manual_seed(3), num_inference_steps=4, output_type="np").images
    got = torch.from_numpy(got).permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(3)
    x_T = torch.randn(2, 3, 32, 32, generator=generator)
    options = {"steps": 4, "variances": posterior_variances, "generator": generator}
    expected = last(sample_ddpm(noise_model(tiny.model), tiny.ddpm, x_T, **options)) / 2 + 0.5
    assert expected.std() > 0.1 and (got - expected).abs().max() < 1e-4


def edit(path, **changes):
    told = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in told.items() if value != "missing"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "UNet2DConditionModel"},
        {"norm_eps": 1e-5},
        {"norm_eps": "missing"},
        {"freq_shift": 0},
        {"flip_sin_to_cos": True},
        {"downsample_padding": 1},
        {"attention_head_dim": 8},
        {"attention_head_dim": "missing"},
        {"resnet_time_scale_shift": "scale_shift"},
        {"num_class_embeds": 10},
        {"out_channels": 6},
        {"block_out_channels": [32, 48, 64]},
        {"block_out_channels": "wide"},
        {"down_block_types": ["AttnDownBlock2D"] * 3},
        {"down_block_types": "missing"},
        {"norm_num_groups": 5},
    ],
    ids=str,
)
def test_another_architecture_is_refused(tiny, tmp_path, changes):
    save_diffusers(tiny, tmp_path)
    edit(tmp_path / "unet" / "config.json", **changes)
    with pytest.raises(ValueError, match=r"config\.json describes another architecture|config\.json does not describe"):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True},
        {"trained_betas": None, "beta_schedule": "sigmoid"},
        {"trained_betas": [0.1, 2.0]},
        {"trained_betas": "many"},
        {"trained_betas": None, "beta_schedule": "linear", "num_train_timesteps": "many"},
    ],
    ids=str,
)
def test_another_diffusion_is_refused(tiny, tmp_path, changes):
    save_diffusers(tiny, tmp_path)
    edit(tmp_path / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(ValueError, match="no noise schedule that serves here"):
        load_diffusers(tmp_path)


def test_the_cosine_schedule_is_known_by_its_name(tiny, tmp_path):
    save_diffusers(tiny, tmp_path)
    DDPMScheduler(40, beta_schedule="squaredcos_cap_v2").save_pretrained(tmp_path / "scheduler")
    assert torch.equal(load_diffusers(tmp_path).ddpm.betas, cosine_betas(40))


@pytest.mark.parametrize("part", ["unet/config.json", "scheduler/scheduler_config.json", f"unet/{WEIGHTS_FILE}"])
def test_a_damaged_and_a_missing_file(tiny, tmp_path, part):
    save_diffusers(tiny, tmp_path)
    (tmp_path / part).write_bytes((tmp_path / part).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"damaged or not a JSON|truncated or not a safetensors"):
        load_diffusers(tmp_path)
    (tmp_path / part).unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_diffusers(tmp_path)


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.* is missing"):
        load_diffusers(tmp_path / "nowhere")


def test_a_pickle_is_never_loaded(tiny, tmp_path):
    save_diffusers(tiny, tmp_path)
    (tmp_path / "unet" / WEIGHTS_FILE).rename(tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"\.bin is a pickle"):
        load_diffusers(tmp_path)


@pytest.mark.parametrize("change", ["lacks", "has more", "has another shape"])
def test_weights_of_another_network_are_refused(tiny, tmp_path, change):
    save_diffusers(tiny, tmp_path)
    path = tmp_path / "unet" / WEIGHTS_FILE
    tensors = load_file(path)
    if change == "lacks":
        del tensors["mid_block.attentions.0.to_k.bias"]
    else:
        tensors["more" if change == "has more" else "conv_in.bias"] = torch.zeros(2)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"does not fit the config\.json beside it"):
        load_diffusers(tmp_path)


@pytest.mark.parametrize("label", [-1, 3])
def test_an_unknown_label_is_refused(tiny, tmp_path, label):
    with pytest.raises(ValueError, match="label"):
        save_diffusers(tiny, tmp_path, label)
