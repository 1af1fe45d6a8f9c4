"""Every public function of the chapters, with one argument at a time made wrong in every way that hypothesis finds:
TypeError or ValueError, with the argument's name in it. Nothing wrong is accepted in silence, or stretched to fit.

DDPM_EXAMPLES sets how many wrong values each argument is given.
"""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm_utils import checkpoint, data, diffusion, embedding, sampling, training, unet
from ddpm_utils.data import ImageSet, shapes
from ddpm_utils.diffusion import DDPM, linear_betas
from ddpm_utils.muon import Muon, orthogonalize
from ddpm_utils.training import TrainConfig
from ddpm_utils.unet import TINY, UNet, UNetConfig

B, T = 3, 20
ANYTHING = st.sampled_from([None, "seven", [0.5], {}, 1j, object(), np.zeros(3), np.zeros((B, 3, 8, 8), np.float32)])
NAN, INF = math.nan, math.inf
CPU = torch.device("cpu")

# ---------------------------------------------------------------- what can be wrong with an argument


def tensors(shape, dtype, low=0, high=2):
    """Tensors that are right, drawn anew for each example."""
    whole = not dtype.is_floating_point
    make = (lambda seed: torch.randint(low, high, shape, generator=seed).to(dtype)) if whole else None
    make = make or (lambda seed: torch.rand(shape, generator=seed).to(dtype) * 2 - 1)
    return st.integers(0, 99).map(lambda n: make(torch.Generator().manual_seed(n)))


def other_shapes(shape, dtype):
    """Shapes that are wrong; those that would broadcast to the right one first."""
    stretch = [tuple(1 if i in ones else n for i, n in enumerate(shape)) for ones in ((0,), (1,), range(len(shape)))]
    stretch += [shape[1:], (1, *shape), (*shape, 1), (), tuple(n + 1 for n in shape), (0, *shape[1:])]
    wrong = [s for s in dict.fromkeys(stretch) if s != shape]
    free = st.lists(st.integers(0, 5), max_size=5).map(tuple).filter(lambda s: s != shape)
    return (st.sampled_from(wrong) | free).map(lambda s: torch.zeros(s, dtype=dtype))


def other_dtypes(shape, *wrong):
    return st.sampled_from(wrong).map(lambda dtype: torch.zeros(shape, dtype=dtype))


def elsewhere(shape, dtype):
    """On another device; "meta" is one that every machine has."""
    return st.just(torch.zeros(shape, dtype=dtype, device="meta"))


NOT_FLOATS = (torch.uint8, torch.int32, torch.long, torch.bool, torch.complex64)
NOT_LONG = (torch.uint8, torch.int32, torch.bool, torch.float16, torch.float32, torch.float64, torch.complex64)


def images(shape=(B, 3, 8, 8)):
    return tensors(shape, torch.float32)


def wrong_images(shape=(B, 3, 8, 8), free=False):
    """free: any shape will do."""
    kinds = ANYTHING | other_dtypes(shape, *NOT_FLOATS)
    return kinds if free else kinds | other_shapes(shape, torch.float32) | elsewhere(shape, torch.float32)


def times(n=B, below=T):
    return tensors((n,), torch.long, high=below)


def wrong_times(n=B, below: int | None = T):
    outside = st.integers(-(2**63), -1) if below is None else st.integers(-(2**63), -1) | st.integers(below, 2**63 - 1)
    one_outside = st.tuples(st.integers(0, n - 1), outside).map(
        lambda p: torch.tensor([0] * p[0] + [p[1]] + [0] * (n - 1 - p[0]))
    )
    right_kind = one_outside | other_shapes((n,), torch.long) | elsewhere((n,), torch.long)
    return right_kind | ANYTHING | other_dtypes((n,), *NOT_LONG)


def wrong_numbers(low=None, high=None, low_open=False, whole=False):
    """Numbers outside low...high, NaN, infinity, and what is no number at all."""
    kinds = [None, "7", [1], 1j, True, torch.zeros(2), NAN, INF, -INF]
    wrong = st.sampled_from(kinds)
    number = st.integers(-(2**70), 2**70) if whole else st.floats(allow_nan=False, allow_infinity=False)
    if low is not None:
        wrong |= number.filter(lambda v: v < low or (low_open and v == low))
    if high is not None:
        wrong |= number.filter(lambda v: v > high)
    return wrong | st.just(2.5) if whole else wrong


SEEDS = wrong_numbers(-(2**40) + 1, 2**40 - 1, whole=True)
NOT_GENERATORS = st.sampled_from([0, "cpu", CPU, [torch.Generator()]])

# ---------------------------------------------------------------- the functions


@dataclass
class Case:
    """call(**arguments) with arguments drawn from `right` works; with one drawn from `wrong` it must be refused."""

    call: Callable
    right: dict
    wrong: dict
    called: dict | None = None  # argument -> the name that the message may use instead


def chain():
    return DDPM(linear_betas(T))


@lru_cache
def network(classes=4):
    torch.manual_seed(0)
    return UNet(replace(TINY, channels=8, groups=1, num_classes=classes)).eval()


def perfect(xt, t):
    return torch.zeros_like(xt)


def drain(sampler):
    return lambda x_T, **more: [step.xt for step in sampler(perfect, chain(), x_T, **more)]


def method(name):
    return lambda **arguments: getattr(chain(), name)(**arguments)


def layer(make):
    return lambda **arguments: make()(**arguments)


def tiny_set(**change):
    parts = {"images": torch.zeros(B, 3, 8, 8, dtype=torch.uint8), "labels": torch.tensor([0, 1, 1])}
    return ImageSet(**{**parts, **change}, class_names=("cat", "dog"), source="test")


def save(tmp, **arguments):
    checkpoint.save_checkpoint(tmp / "x.safetensors", **{"tensors": {"x": torch.zeros(2)}, "info": {}, **arguments})


SAME = {"x0": images(), "t": times(), "eps": images()}
SAME_WRONG = {"x0": wrong_images(), "t": wrong_times(), "eps": wrong_images()}
EITHER = {"x0": "x0|eps|t must", "xt": "xt|eps|x0|noise|t must", "eps": "eps"}  # a pair differs: either may be named
FEATURES = (B, 8, 4, 4)
WRONG_FEATURES = wrong_images(FEATURES).filter(lambda x: not fits_a_layer(x)) | other_dtypes(FEATURES, torch.float64)


def fits_a_layer(x):
    tensor = isinstance(x, torch.Tensor) and x.is_floating_point() and not x.is_meta
    return tensor and x.ndim == 4 and x.shape[1] == 8 and min(x.shape[2:]) > 0


def fits_a_norm(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim > 1 and x.shape[1] == 8


def odd(shape):
    return st.just(torch.zeros(shape))


CASES = {
    "sinusoidal_embedding": Case(
        embedding.sinusoidal_embedding,
        {"t": times(), "dim": st.integers(2, 20).map(lambda n: 2 * n), "max_period": st.floats(1, 1e9)},
        {
            "t": ANYTHING
            | other_dtypes((B,), torch.bool, torch.complex64)
            | other_shapes((B,), torch.long).filter(lambda t: t.ndim != 1)
            | st.sampled_from([NAN, INF, -INF]).map(lambda v: torch.tensor([0.0, v])),
            "dim": wrong_numbers(4, whole=True) | st.integers(0, 99).map(lambda n: 2 * n + 1),
            "max_period": wrong_numbers(1),
        },
    ),
    "linear_betas": Case(
        diffusion.linear_betas,
        {"T": st.integers(1, 50), "beta_start": st.floats(1e-5, 0.5), "beta_end": st.floats(1e-5, 0.99)},
        {
            "T": wrong_numbers(1, whole=True),
            "beta_start": wrong_numbers(0, 1, low_open=True) | st.just(1.0),
            "beta_end": wrong_numbers(0, 1, low_open=True) | st.just(1.0),
        },
    ),
    "cosine_betas": Case(
        diffusion.cosine_betas,
        {"T": st.integers(1, 50), "s": st.floats(0, 1), "max_beta": st.floats(0.1, 0.999)},
        {"T": wrong_numbers(1, whole=True), "s": wrong_numbers(0), "max_beta": wrong_numbers(1e-9, 1)},
    ),
    "DDPM": Case(
        DDPM,
        {"betas": st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=9).map(torch.tensor)},
        {
            "betas": ANYTHING
            | other_dtypes((T,), *NOT_FLOATS)
            | other_shapes((T,), torch.float64).filter(lambda b: b.ndim != 1 or not len(b))
            | st.sampled_from([NAN, INF, 0.0, 1.0, -0.1, 1.5]).map(lambda v: torch.tensor([0.1, v]))
        },
    ),
    "DDPM.q_sample": Case(method("q_sample"), SAME, SAME_WRONG, EITHER),
    "DDPM.predict_x0": Case(
        method("predict_x0"),
        {"xt": images(), "t": times(), "eps": images()},
        {"xt": wrong_images(), "t": wrong_times(), "eps": wrong_images()},
        EITHER,
    ),
    "DDPM.predict_eps": Case(
        method("predict_eps"),
        {"xt": images(), "t": times(), "x0": images()},
        {"xt": wrong_images(), "t": wrong_times(), "x0": wrong_images()},
        EITHER,
    ),
    "DDPM.q_posterior": Case(
        method("q_posterior"),
        {"x0": images(), "xt": images(), "t": times()},
        {"x0": wrong_images(), "xt": wrong_images(), "t": wrong_times()},
        EITHER,
    ),
    "DDPM.p_sample": Case(
        method("p_sample"),
        {
            "x0_hat": images(),
            "xt": images(),
            "t": times(),
            "noise": images(),
            "variances": tensors((T,), torch.float64).map(torch.Tensor.abs),
        },
        {
            "x0_hat": wrong_images(),
            "xt": wrong_images(),
            "t": wrong_times(),
            "noise": wrong_images(),
            "variances": ANYTHING
            | other_dtypes((T,), *NOT_FLOATS)
            | other_shapes((T,), torch.float64)
            | st.sampled_from([NAN, INF, -0.1]).map(lambda v: torch.full((T,), v)),
        },
        EITHER,
    ),
    "DDPM.loss": Case(
        lambda answer, **arguments: chain().loss(lambda xt, t: answer, **arguments),
        {"answer": images(), **SAME},
        {"answer": wrong_images(), **SAME_WRONG},
        {**EITHER, "answer": "eps_model", "eps": "eps|eps_model", "x0": "x0|eps|t must"},
    ),
    "DDPM.shortened": Case(
        method("shortened"),
        {"timesteps": st.sets(st.integers(0, T - 1), min_size=1).map(lambda s: torch.tensor(sorted(s)))},
        {
            "timesteps": ANYTHING
            | other_dtypes((1,), *NOT_LONG)
            | other_shapes((1,), torch.long).filter(lambda t: t.ndim != 1 or len(t) != 1)
            | st.sampled_from([[3, 2], [1, 1], [-1, 3], [0, T], [2**62]]).map(torch.tensor)
        },
    ),
    "UNetConfig": Case(
        lambda **change: UNetConfig(**{"channels": 32, "groups": 8, **change}),
        {"dropout": st.floats(0, 0.9), "num_classes": st.integers(0, 9), "blocks": st.integers(1, 3)},
        {
            "channels": wrong_numbers(4, whole=True) | st.sampled_from([33, 36]),
            "blocks": wrong_numbers(1, whole=True),
            "groups": wrong_numbers(1, whole=True) | st.just(7),
            "image_channels": wrong_numbers(1, whole=True),
            "num_classes": wrong_numbers(0, whole=True),
            "dropout": wrong_numbers(0, 1) | st.just(1.0),
            "multipliers": st.sampled_from([None, 3, "1222", [1, 2, 2, 2], (), (1, 2), (1, 2, 0, 2), (1, 2, NAN, 2)]),
            "attention": st.sampled_from([None, True, "0100", [True] * 4, (), (True,), (0, 1, 0, 0), (None,) * 4]),
        },
    ),
    "UNet": Case(
        lambda **arguments: network()(**arguments),
        {"xt": images(), "t": times(), "y": tensors((B,), torch.long, high=5)},
        {
            "xt": wrong_images()
            | other_dtypes((B, 3, 8, 8), torch.float64, torch.float16)
            | odd((B, 3, 6, 8))
            | odd((B, 3, 0, 8)),
            "t": wrong_times(below=None),  # T is not the network's to know
            "y": wrong_times(below=5).filter(lambda y: y is not None),
        },
        {"xt": "xt|t must"},  # another number of images: the first that differs is named
    ),
    "Norm": Case(
        layer(lambda: unet.Norm(2, 8)),
        {"x": images(FEATURES)},
        {"x": wrong_images(FEATURES).filter(lambda x: not fits_a_norm(x))},
    ),
    "ResBlock": Case(
        layer(lambda: unet.ResBlock(8, 4, 16, 2, 0.0)),
        {"x": images(FEATURES), "emb": images((B, 16))},
        {"x": WRONG_FEATURES, "emb": wrong_images((B, 16)) | other_dtypes((B, 16), torch.float64)},
    ),
    "Attention": Case(layer(lambda: unet.Attention(8, 2)), {"x": images(FEATURES)}, {"x": WRONG_FEATURES}),
    "Downsample": Case(
        layer(lambda: unet.Downsample(8)), {"x": images(FEATURES)}, {"x": WRONG_FEATURES | odd((B, 8, 5, 4))}
    ),
    "Upsample": Case(layer(lambda: unet.Upsample(8)), {"x": images(FEATURES)}, {"x": WRONG_FEATURES}),
    "to_float": Case(
        data.to_float,
        {"images": tensors((B, 3, 8, 8), torch.uint8, high=256)},
        {"images": ANYTHING | other_dtypes((B, 3, 8, 8), torch.float32, torch.int32, torch.long, torch.bool)},
    ),
    "to_uint8": Case(
        data.to_uint8,
        {"x": images()},
        {"x": wrong_images(free=True) | st.just(torch.tensor([0.0, NAN]))},
    ),
    "random_flip": Case(
        data.random_flip,
        {"x": images(), "generator": st.builds(torch.Generator)},
        {
            "x": ANYTHING | other_shapes((B, 3, 8, 8), torch.float32).filter(lambda x: x.ndim != 4),
            "generator": NOT_GENERATORS | st.none(),
        },
    ),
    "shapes": Case(
        shapes,
        {"n": st.integers(1, 12), "seed": st.integers(-(2**40) + 1, 2**40 - 1)},
        {"n": wrong_numbers(1, whole=True), "seed": SEEDS},
    ),
    "ImageSet": Case(
        tiny_set,
        {"images": tensors((B, 3, 8, 8), torch.uint8, high=256), "labels": tensors((B,), torch.long)},
        {
            "images": ANYTHING
            | other_dtypes((B, 3, 8, 8), torch.float32, torch.long)
            | other_shapes((B, 3, 8, 8), torch.uint8).filter(lambda x: x.ndim != 4 or len(x) != B),
            "labels": wrong_times(below=2).filter(lambda y: not (isinstance(y, torch.Tensor) and y.is_meta)),
        },
    ),
    "noise_model": Case(
        lambda y, guidance: sampling.noise_model(network(), y, guidance)(
            torch.zeros(B, 3, 8, 8), torch.zeros(B).long()
        ),
        {"y": tensors((B,), torch.long, high=5), "guidance": st.floats(-3, 9)},
        {"y": wrong_times(below=5).filter(lambda y: y is not None), "guidance": wrong_numbers()},
    ),
    "spaced_timesteps": Case(
        sampling.spaced_timesteps,
        {"T": st.just(T), "steps": st.integers(1, T)},
        {"T": wrong_numbers(1, whole=True), "steps": wrong_numbers(1, T, whole=True)},
    ),
    "log_snr_timesteps": Case(
        lambda steps: sampling.log_snr_timesteps(chain(), steps),
        {"steps": st.integers(1, T)},
        {"steps": wrong_numbers(1, T, whole=True)},
    ),
    "sample_ddpm": Case(
        drain(sampling.sample_ddpm),
        {"x_T": images(), "steps": st.none() | st.integers(1, 4), "generator": st.none() | st.builds(torch.Generator)},
        {
            "x_T": wrong_images(free=True) | st.sampled_from([NAN, INF]).map(lambda v: torch.full((B, 3), v)) | odd(()),
            "steps": wrong_numbers(1, T, whole=True).filter(lambda v: v is not None),
            "generator": NOT_GENERATORS,
        },
    ),
    "sample_ddim": Case(
        drain(sampling.sample_ddim),
        {"x_T": images(), "steps": st.integers(1, 4), "eta": st.floats(0, 1), "generator": st.none()},
        {
            "x_T": wrong_images(free=True) | st.sampled_from([NAN, INF]).map(lambda v: torch.full((B, 3), v)) | odd(()),
            "steps": wrong_numbers(1, T, whole=True),
            "eta": wrong_numbers(0, 1),
            "generator": NOT_GENERATORS,
        },
    ),
    "sample_dpmpp": Case(
        drain(sampling.sample_dpmpp),
        {"x_T": images(), "steps": st.integers(1, 4), "order": st.integers(1, 2)},
        {
            "x_T": wrong_images(free=True) | st.sampled_from([NAN, INF]).map(lambda v: torch.full((B, 3), v)) | odd(()),
            "steps": wrong_numbers(1, T, whole=True),
            "order": wrong_numbers(1, 2, whole=True),
        },
    ),
    "sample_ddpm's eps_model": Case(
        lambda answer: list(sampling.sample_ddpm(lambda xt, t: answer, chain(), torch.zeros(B, 3, 8, 8), steps=2)),
        {"answer": images()},
        {"answer": wrong_images()},
        {"answer": "eps"},
    ),
    "sample_ddim's eps_model": Case(
        lambda answer: list(sampling.sample_ddim(lambda xt, t: answer, chain(), torch.zeros(B, 3, 8, 8), steps=2)),
        {"answer": images()},
        {"answer": wrong_images()},
        {"answer": "eps"},
    ),
    "sample_dpmpp's eps_model": Case(
        lambda answer: list(sampling.sample_dpmpp(lambda xt, t: answer, chain(), torch.zeros(B, 3, 8, 8), steps=2)),
        {"answer": images()},
        {"answer": wrong_images()},
        {"answer": "eps"},
    ),
    "sample_dpmpp's spacing": Case(
        lambda timesteps: list(
            sampling.sample_dpmpp(perfect, chain(), torch.zeros(B, 3, 8, 8), spacing=lambda *_: timesteps)
        ),
        {"timesteps": st.just(torch.tensor([0, 5, T - 1]))},
        {
            "timesteps": ANYTHING
            | other_dtypes((3,), *NOT_LONG)
            | st.sampled_from([[], [[0, 1]], [5, 3], [0, 0], [0, T]]).map(torch.tensor)
        },
    ),
    "sample_ddpm's variances": Case(
        lambda table: list(
            sampling.sample_ddpm(perfect, chain(), torch.zeros(B, 3, 8, 8), steps=4, variances=lambda _: table)
        ),
        {"table": st.just(torch.zeros(4))},
        {"table": ANYTHING | other_shapes((4,), torch.float64) | st.just(torch.full((4,), NAN))},
        {"table": "variances"},
    ),
    "noise_like": Case(
        sampling.noise_like,
        {"x": images(), "generator": st.none() | st.builds(torch.Generator)},
        {"x": wrong_images(free=True), "generator": NOT_GENERATORS},
    ),
    "start_noise": Case(
        sampling.start_noise,
        {"n": st.integers(1, 3), "seed": st.integers(0, 9), "channels": st.integers(1, 3), "size": st.integers(1, 9)},
        {
            "n": wrong_numbers(1, whole=True),
            "seed": SEEDS,
            "channels": wrong_numbers(1, whole=True),
            "size": wrong_numbers(1, whole=True),
        },
    ),
    "TrainConfig": Case(
        TrainConfig,
        {"steps": st.integers(1, 9), "lr": st.floats(1e-9, 1), "seed": st.integers(-9, 9), "flip": st.booleans()},
        {
            **{name: wrong_numbers(1, whole=True) for name in ("steps", "batch_size", "warmup_steps")},
            **{name: wrong_numbers(0, low_open=True) for name in ("lr", "grad_clip")},
            **{name: wrong_numbers(0, 1) for name in ("lr_final", "ema_decay", "label_dropout")},
            **{name: wrong_numbers(0) for name in ("minutes", "snr_cap")},
            "seed": SEEDS,
            **{name: st.sampled_from([None, 1, 0, "yes"]) for name in ("flip", "muon")},
        },
    ),
    "Muon": Case(
        lambda **arguments: Muon(UNet(network(0).config), **arguments),
        {"lr": st.floats(0, 1)},
        {"lr": wrong_numbers(0)},
    ),
    "orthogonalize": Case(
        orthogonalize,
        {"matrix": st.builds(lambda m, n: torch.ones(m, n), st.integers(1, 5), st.integers(1, 5))},
        {
            "matrix": st.sampled_from(
                [None, 1.0, [[1.0]], torch.ones(3), torch.ones(1, 2, 3), torch.ones(2, 2, dtype=torch.long)]
            )
        },
    ),
    "EMA": Case(
        lambda **change: training.EMA(**{"model": torch.nn.Linear(2, 2), **change}),
        {"decay": st.floats(0, 1)},
        {"decay": wrong_numbers(0, 1)},
    ),
    "EMA.update": Case(
        lambda **arguments: training.EMA(torch.nn.Linear(2, 2), 0.9).update(**arguments),
        {"model": st.builds(lambda: torch.nn.Linear(2, 2)), "step": st.integers(0, 9)},
        {
            "model": st.sampled_from([torch.nn.Linear(1, 1), torch.nn.Linear(2, 1), torch.nn.Linear(2, 2, bias=False)]),
            "step": wrong_numbers(0, whole=True),
        },
    ),
    "learning_rate": Case(
        lambda **arguments: training.learning_rate(TrainConfig(), **arguments),
        {"step": st.integers(0, 10**6), "fraction": st.floats(0, 1)},
        {"step": wrong_numbers(0, whole=True), "fraction": wrong_numbers(0, 1)},
    ),
    "loss_weights": Case(
        lambda **arguments: training.loss_weights(DDPM(linear_betas(T)), **arguments),
        {"snr_cap": st.floats(0, 1e6)},
        {"snr_cap": wrong_numbers(0)},
    ),
    "batch_indices": Case(
        training.batch_indices,
        {
            "n": st.integers(1, 9),
            "batch_size": st.integers(1, 9),
            "step": st.integers(0, 9),
            "seed": st.integers(-9, 9),
        },
        {
            "n": wrong_numbers(1, whole=True),
            "batch_size": wrong_numbers(1, whole=True),
            "step": wrong_numbers(0, whole=True),
            "seed": SEEDS,
        },
    ),
    "draw_batch": Case(
        lambda **change: training.draw_batch(
            tiny_set(), TrainConfig(batch_size=4), **{"step": 0, "T": T, "num_classes": 2, "device": CPU, **change}
        ),
        {"step": st.integers(0, 9), "T": st.integers(1, 9), "num_classes": st.sampled_from([0, 2, 5])},
        {
            "step": wrong_numbers(0, whole=True),
            "T": wrong_numbers(1, whole=True),
            "num_classes": wrong_numbers(0, whole=True) | st.just(1),
        },
    ),
    "save_checkpoint": Case(
        save,
        {"tensors": st.just({"x": torch.zeros(2)}), "info": st.just({"step": 1})},
        {
            "tensors": st.sampled_from(
                [
                    None,
                    [torch.zeros(1)],
                    {"x": 1.0},
                    {"x": np.zeros(2)},
                    {1: torch.zeros(1)},
                    {"__metadata__": torch.zeros(1)},
                ]
            )
            | st.sampled_from([torch.zeros(1, device="meta"), torch.eye(2).to_sparse()]).map(lambda x: {"x": x}),
            "info": st.sampled_from([None, 3, "step", {"x": torch.zeros(1)}, {"x": object()}, {(1, 2): 3}, {"x": {1}}]),
        },
    ),
    "unet_config": Case(
        checkpoint.unet_config,
        {"info": st.just({"unet": {"channels": 32}})},
        {"info": st.sampled_from([None, 3, {}, {"unet": 3}, {"unet": {"width": 3}}, {"unet": {"channels": "wide"}}])},
        {"info": "info|width|channels"},
    ),
    "weights_of": Case(
        lambda **change: checkpoint.weights_of(**{"tensors": {"ema.x": torch.zeros(1)}, "prefix": "ema.", **change}),
        {"prefix": st.sampled_from(["ema.", "model."])},
        {"tensors": st.sampled_from([None, 3, {"ema.x": 1.0}]), "prefix": st.sampled_from([None, 3])},
    ),
}
WRONG = [(name, argument) for name, case in CASES.items() for argument in case.wrong]
quick = settings(
    max_examples=int(os.environ.get("DDPM_EXAMPLES", "30")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def arguments_of(case, chosen, tmp_path):
    """One right value for each argument."""
    values = {name: chosen.draw(strategy) for name, strategy in case.right.items()}
    return {"tmp": tmp_path, **values} if case.call is save else values


@pytest.mark.parametrize("name", CASES)
@quick
@given(chosen=st.data())
def test_what_is_right_is_accepted(name, chosen, tmp_path_factory):
    CASES[name].call(**arguments_of(CASES[name], chosen, tmp_path_factory.getbasetemp()))


@pytest.mark.parametrize(("name", "argument"), WRONG, ids=[".".join(pair) for pair in WRONG])
@quick
@given(chosen=st.data())
def test_what_is_wrong_is_refused_by_name(name, argument, chosen, tmp_path_factory):
    case = CASES[name]
    arguments = arguments_of(case, chosen, tmp_path_factory.getbasetemp())
    arguments[argument] = chosen.draw(case.wrong[argument])
    names = (case.called or {}).get(argument, argument)
    with pytest.raises((TypeError, ValueError)) as refused:
        case.call(**arguments)
    assert re.search(rf"\b({names})\b", str(refused.value)), refused.value
    assert type(refused.value) in (TypeError, ValueError)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("where", ["x0", "eps"])
def test_an_image_that_is_not_finite_stays_so_and_harms_no_other(where, value):
    """Images are not searched at every step: it would cost time. What is wrong in one must not vanish, though."""
    arguments = {name: torch.rand(B, 3, 8, 8) for name in ("x0", "eps")}
    arguments[where][1, 0, 0, 0] = value
    t = torch.tensor([0, 5, T - 1])
    xt = chain().q_sample(arguments["x0"], t, arguments["eps"])
    predicted = chain().predict_x0(xt, t, torch.zeros_like(xt))
    answer = network()(xt, t).detach() + xt  # the new network answers zero times xt
    for result in (xt, predicted, chain().loss(lambda xt, t: xt, arguments["x0"], t, arguments["eps"]), answer):
        assert [bool(part.isfinite().all()) for part in result] == [True, False, True]
    with pytest.raises(FloatingPointError, match="step 1: the loss is"):
        run = training.Run(UNet(network(0).config), TrainConfig(batch_size=B))
        training.train_step(run, run.model, chain(), training.Batch(arguments["x0"], t, arguments["eps"], None), 0.1)
    if math.isnan(value):
        with pytest.raises(ValueError, match="NaN"):
            data.to_uint8(arguments[where])
