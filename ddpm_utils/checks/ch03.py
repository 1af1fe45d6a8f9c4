"""Exercises of chapter 03."""

import torch
from torch import Tensor

from ..unet import Attention, UNet, UNetConfig
from . import Exercise


def _resblock(c_in: int, c_out: int, emb_dim: int, taps: int = 9, shortcut: str = "where needed") -> int:
    """Numbers learned in a ResBlock; taps: those of a 3x3 kernel, or what somebody takes for them."""
    norms = 2 * c_in + 2 * c_out
    convs = taps * c_in * c_out + c_out + taps * c_out * c_out + c_out
    projection = emb_dim * c_out + c_out
    present = shortcut == "always" or (shortcut == "where needed" and c_in != c_out)
    return norms + convs + projection + (c_in * c_out + c_out if present else 0)


resblock_parameters = Exercise(
    "resblock_parameters",
    reference=_resblock,
    cases=lambda: [(128, 128, 512), (128, 256, 512), (384, 256, 512), (8, 16, 32)],
    mistakes={
        "the 1x1 shortcut is missing; it is there where c_in differs from c_out.": (
            lambda i, o, e: _resblock(i, o, e, shortcut="never")
        ),
        "you count a shortcut convolution always; where c_in equals c_out it is nn.Identity, with nothing to learn.": (
            lambda i, o, e: _resblock(i, o, e, shortcut="always")
        ),
        "a 3x3 kernel has 9 weights for each pair of channels, not 3.": lambda i, o, e: _resblock(i, o, e, taps=3),
        "the biases of the layers are missing: one number per output channel.": (
            lambda i, o, e: 2 * i + 2 * o + 9 * i * o + 9 * o * o + e * o + (i * o if i != o else 0)
        ),
        "the two norms are missing: each learns a scale and a shift per channel.": (
            lambda i, o, e: _resblock(i, o, e) - 2 * i - 2 * o
        ),
        "the first norm stands before the first convolution, so it has c_in channels, not c_out.": (
            lambda i, o, e: _resblock(i, o, e) - 2 * i + 2 * o
        ),
        "the projection of the time (emb_dim -> c_out) is missing.": lambda i, o, e: _resblock(i, o, e) - e * o - o,
        "the second convolution goes from c_out to c_out, not from c_in.": (
            lambda i, o, e: _resblock(i, o, e) - 9 * o * o + 9 * i * o
        ),
    },
    note="The 3x3 convolutions hold nearly all of it.",
)


def _scale_shift_cases() -> list[tuple]:
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(B, C, S, S, generator=g), torch.randn(B, 2 * C, generator=g))
        for B, C, S in ((3, 4, 5), (2, 2, 2), (1, 6, 4))
    ]


def _halves(emb: Tensor) -> tuple[Tensor, Tensor]:
    scale, shift = emb[:, :, None, None].chunk(2, dim=1)
    return scale, shift


def _interleaved(h: Tensor, emb: Tensor) -> Tensor:
    scale, shift = emb[:, 0::2, None, None], emb[:, 1::2, None, None]
    return h * (1 + scale) + shift


def _shift_first(h: Tensor, emb: Tensor) -> Tensor:
    scale, shift = _halves(emb)
    return (h + shift) * (1 + scale)


def _swapped(h: Tensor, emb: Tensor) -> Tensor:
    shift, scale = _halves(emb)
    return h * (1 + scale) + shift


def _one_none_missing(h: Tensor, emb: Tensor) -> Tensor:
    scale, shift = emb[:, :, None].chunk(2, dim=1)
    return h * (1 + scale) + shift


scale_shift = Exercise(
    "scale_shift",
    reference=lambda h, emb: h * (1 + _halves(emb)[0]) + _halves(emb)[1],
    cases=_scale_shift_cases,
    mistakes={
        "with a scale of 0 your h disappears; multiply by 1 + scale, so that zeros change nothing.": (
            lambda h, emb: h * _halves(emb)[0] + _halves(emb)[1]
        ),
        "the halves are swapped: the first C numbers are the scale, the last C the shift.": _swapped,
        "you scale the shift as well; scale h first, then add.": _shift_first,
        "this takes every other number; the scale is the first half, the shift the second.": _interleaved,
        "only the shift arrives: that is what our ResBlock does already.": lambda h, emb: h + _halves(emb)[1],
        "one None is missing, so the channels of emb line up with the rows of h: the wrong-axis bug.": (
            _one_none_missing
        ),
    },
    note="After a norm, such a scale and shift can undo what the norm has fixed, channel by channel.",
)


score_scale = Exercise(
    "score_scale",
    reference=lambda C, var_q, var_k: (C * var_q * var_k) ** -0.5,
    cases=lambda: [(64, 1.0, 1.0), (256, 4.0, 0.25), (128, 0.5, 3.0)],
    mistakes={
        "this divides by the variance; to bring a variance to 1, divide by its square root.": (
            lambda C, var_q, var_k: 1 / (C * var_q * var_k)
        ),
        "this is right only where q and k have variance 1; bring in var_q and var_k.": (
            lambda C, var_q, var_k: C**-0.5
        ),
        "the variances of independent factors with mean 0 multiply; you have added them.": (
            lambda C, var_q, var_k: (C * (var_q + var_k)) ** -0.5
        ),
        "var_q and var_k are variances already; you have squared them.": (
            lambda C, var_q, var_k: (C * var_q**2 * var_k**2) ** -0.5
        ),
        "this is the standard deviation of the score; the factor is one over it.": (
            lambda C, var_q, var_k: (C * var_q * var_k) ** 0.5
        ),
        "C is missing: the score is a sum of C products.": lambda C, var_q, var_k: (var_q * var_k) ** -0.5,
    },
    note="With var_q = var_k = 1 it is 1/sqrt(C), the factor of the attention formula.",
)


def _design_verdict(config: UNetConfig) -> str | None:
    """ "fits", or the name of the first demand that a config does not meet."""
    if config is None or config is ...:
        return None
    if not isinstance(config, UNetConfig):
        return "no config"
    levels = len(config.multipliers)
    if 2 ** (levels - 1) > 32:
        return "too deep"
    if not any(config.attention):
        return "no attention"
    if any(32 >> i > 16 for i in range(levels) if config.attention[i]):
        return "attention too high"
    if levels < 3:
        return "too shallow"
    with torch.device("meta"):  # shapes without memory: a design may be huge
        parameters = sum(p.numel() for p in UNet(config).parameters())
    if parameters >= 2_000_000:
        return "too many parameters"
    if _macs(UNet(config)) > 400_000_000:
        return "too dear"
    return "fits"


@torch.no_grad()
def _macs(model: UNet) -> int:
    """Multiply-adds for one 32x32 image."""
    total = 0

    def add(layer: torch.nn.Module, _inputs: tuple, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, torch.nn.Conv2d):
            total += layer.weight.numel() * output[0, 0].numel()
        elif isinstance(layer, torch.nn.Linear):
            total += layer.weight.numel() * output[..., 0].numel()
        elif isinstance(layer, Attention):
            total += 2 * output[0, 0].numel() ** 2 * output.shape[1]

    hooks = [m.register_forward_hook(add) for m in model.modules()]
    model.eval()(torch.zeros(1, model.config.image_channels, 32, 32), torch.zeros(1, dtype=torch.long))
    for hook in hooks:
        hook.remove()
    return total


def _design(**changes: object) -> UNetConfig:
    fits = dict(channels=32, multipliers=(1, 2, 2), blocks=2, attention=(False, False, True), groups=4)
    return UNetConfig(**(fits | changes))


design = Exercise(
    "design",
    reference=_design(),
    run=_design_verdict,
    mistakes={
        "no level has attention (the one in the middle is always there and does not count).": (
            _design(attention=(False, False, False))
        ),
        "attention at 32x32 compares 1,024 pixels with 1,024 pixels, 16 times the pairs of 16x16; keep it to 16x16 and "
        "below.": _design(attention=(True, False, False)),
        "with fewer than three levels the smallest grid is 16x16; go down to 8x8 at least.": (
            _design(multipliers=(1, 2), attention=(False, True))
        ),
        "2,000,000 parameters or more. The channels count squared: lower them, or the multipliers of the lowest "
        "levels.": _design(channels=64),
        "more than 400 million multiply-adds for one image. The level of 32x32 pixels costs most: fewer channels or "
        "fewer blocks.": _design(channels=32, blocks=6, multipliers=(1, 1, 1)),
        "seven or more levels halve 32 pixels to less than one; six are the most.": (
            _design(multipliers=(1,) * 7, attention=(False, False, True) + (False,) * 4)
        ),
        "this is not a UNetConfig; give UNetConfig(channels=..., multipliers=..., ...).": 2_000_000,
    },
    note="Train it in notebook 04 and compare it with the TINY preset.",
)
