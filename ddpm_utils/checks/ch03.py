"""Exercises of chapter 03."""

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..unet import Attention, Downsample, Norm, UNet, UNetConfig, Upsample, zero_init
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


class _Block(nn.Module):
    """The ResBlock of chapter 3 without dropout; its subclasses make one mistake each."""

    def __init__(self, c_in: int, c_out: int, emb_dim: int, groups: int):
        super().__init__()
        self.norm1 = Norm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb_proj = nn.Linear(emb_dim, c_out)
        self.norm2 = Norm(groups, c_out)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def time(self, emb: Tensor) -> Tensor:
        return self.emb_proj(F.silu(emb))[:, :, None, None]

    def correction(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))) + self.time(emb))))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.shortcut(x) + self.correction(x, emb)


class _WrongAxis(_Block):
    def time(self, emb: Tensor) -> Tensor:
        return self.emb_proj(F.silu(emb))[:, :, None]


class _NoSiluOnTime(_Block):
    def time(self, emb: Tensor) -> Tensor:
        return self.emb_proj(emb)[:, :, None, None]


class _NoNorm2(_Block):
    def correction(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv2(F.silu(self.conv1(F.silu(self.norm1(x))) + self.time(emb)))


class _TimeAfterNorm2(_Block):
    def correction(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x)))) + self.time(emb)))


class _NoTime(_Block):
    def correction(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class _ConvFirst(_Block):
    def correction(self, x: Tensor, emb: Tensor) -> Tensor:
        return F.silu(self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x))) + self.time(emb))))


class _NoShortcut(_Block):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.correction(x, emb)


class _NotZero(_Block):
    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.conv2.reset_parameters()


def _fill(block: nn.Module, but: str = " ") -> None:
    """Parameters that depend on their names only, so that two blocks compare whatever the order of their layers."""
    for name, parameter in sorted(block.named_parameters()):
        if not name.startswith(but):
            g = torch.Generator().manual_seed(sum(map(ord, name)))
            parameter.data = torch.randn(parameter.shape, generator=g) / parameter[0].numel() ** 0.5


def _run_block(block_class: type[nn.Module], c_in: int, c_out: int) -> Tensor | None:
    """Outputs as the block starts (but for conv2, filled alike), and with all its parameters filled."""
    block = block_class(c_in, c_out, 16, 2)
    g = torch.Generator().manual_seed(0)
    x, emb = torch.randn(8, c_in, 8, 6, generator=g), torch.randn(8, 16, generator=g)
    outputs = []
    for but in ("conv2", " "):
        _fill(block, but)
        outputs.append(block(x, emb))
    return None if outputs[0] is None else torch.cat(outputs)


my_block = Exercise(
    "my_block",
    reference=_Block,
    cases=lambda: [(8, 8), (8, 4)],
    run=_run_block,
    mistakes={
        "one None is missing behind emb_proj: the wrong-axis bug.": _WrongAxis,
        "the time vector goes through a SiLU before emb_proj.": _NoSiluOnTime,
        "norm2 is never called.": _NoNorm2,
        "the time comes in before norm2, straight after conv1.": _TimeAfterNorm2,
        "the time never arrives: add emb_proj(SiLU(emb)) after conv1.": _NoTime,
        "norm and SiLU stand before each convolution, not behind it.": _ConvFirst,
        "the shortcut is missing: the output is shortcut(x) plus the correction.": _NoShortcut,
        "conv2 must start at zero, so that the block starts as its shortcut.": _NotZero,
    },
    note="Dropout, which the text puts before conv2, is all that it lacks.",
)


class _BatchNormBlock(_Block):
    def __init__(self, c_in: int, c_out: int, emb_dim: int, groups: int):
        super().__init__(c_in, c_out, emb_dim, groups)
        self.norm1 = nn.BatchNorm2d(c_in)


def _apart_cases() -> list[tuple]:
    cases = []
    for block_class in (_Block, _WrongAxis, _BatchNormBlock):
        block, g = block_class(6, 6, 16, 2), torch.Generator().manual_seed(0)
        _fill(block)
        cases.append((block, torch.randn(6, 6, 6, 6, generator=g), torch.randn(6, 16, generator=g)))
    return cases


@torch.no_grad()
def _keeps_apart(block: nn.Module, x: Tensor, emb: Tensor, dx: float = 1, demb: float = 1, first: int = 1) -> bool:
    x_new, emb_new = x.clone(), emb.clone()
    x_new[0] += dx
    emb_new[0] += demb
    return torch.allclose(block(x, emb)[first:], block(x_new, emb_new)[first:], atol=1e-5)


def _run_test(test: Callable[..., object], *case: object) -> object:
    verdict = test(*case)
    return verdict if verdict is None or verdict is ... else bool(verdict)


keeps_apart = Exercise(
    "keeps_apart",
    reference=_keeps_apart,
    cases=_apart_cases,
    run=_run_test,
    mistakes={
        "a block with BatchNorm passes your test; change image 0 as well, not only its time.": (
            lambda block, x, emb: _keeps_apart(block, x, emb, dx=0)
        ),
        "the wrong-axis bug passes your test; change the time of image 0 as well.": (
            lambda block, x, emb: _keeps_apart(block, x, emb, demb=0)
        ),
        "even the right block fails your test. Output 0 may change: compare the others only.": (
            lambda block, x, emb: _keeps_apart(block, x, emb, first=0)
        ),
        "your test passes every block, wrong ones too.": lambda block, x, emb: True,
        "your verdict is the wrong way round: True means that the others stay put.": (
            lambda block, x, emb: not _keeps_apart(block, x, emb)
        ),
    },
    note="It passes our block, and fails the wrong-axis bug and BatchNorm.",
)


def _walk_cases() -> list[tuple]:
    model = UNet(UNetConfig(8, multipliers=(1, 1, 2), blocks=1, attention=(False,) * 3, groups=2, dropout=0.0)).eval()
    _fill(model)
    g = torch.Generator().manual_seed(0)
    h, emb = torch.randn(2, 8, 8, 8, generator=g), torch.randn(2, 32, generator=g)

    def step(module: nn.Module) -> Callable[[Tensor], Tensor]:
        return module if isinstance(module, Downsample | Upsample) else partial(module, emb=emb)

    down = [step(module) for module in model.down]
    up = [(step(module), not isinstance(module, Upsample)) for module in model.up]
    return [(h, down, lambda h: model.mid2(model.mid1(h, emb), emb), up)]


@torch.no_grad()
def _walk(
    h: Tensor,
    down: list,
    mid: Callable,
    up: list,
    keep_first: bool = True,
    take: int = -1,
    join: Callable = lambda h, skip: torch.cat([h, skip], dim=1),
) -> Tensor:
    skips = [h] if keep_first else []
    for step in down:
        h = step(h)
        skips.append(h)
    h = mid(h)
    for step, takes_skip in up:
        h = step(join(h, skips.pop(take)) if takes_skip else h)
    return h


def _walk_keep_before(h: Tensor, down: list, mid: Callable, up: list) -> Tensor:
    skips = []
    for step in down:
        skips.append(h)
        h = step(h)
    h = mid(h)
    for step, takes_skip in up:
        h = step(torch.cat([h, skips.pop()], dim=1) if takes_skip else h)
    return h


walk = Exercise(
    "walk",
    reference=_walk,
    cases=_walk_cases,
    mistakes={
        "the h you were given (from conv_in) is a skip, too: push it first.": partial(_walk, keep_first=False),
        "the last pushed is the first popped: pop(), not pop(0).": partial(_walk, take=0),
        "the skip is laid behind h, not before it: torch.cat([h, skip], dim=1).": partial(
            _walk, join=lambda h, skip: torch.cat([skip, h], dim=1)
        ),
        "skips are laid beside h as channels, not added to it.": partial(_walk, join=lambda h, skip: h + skip),
        "zeros in place of the skips: the network without skips.": partial(
            _walk, join=lambda h, skip: torch.cat([h, 0 * skip], dim=1)
        ),
        "push what comes out of each step, not what goes in.": _walk_keep_before,
    },
    note="With conv_in before it, norm_out, SiLU and conv_out behind, this is UNet.forward.",
)


def _floor_cases() -> list[tuple]:
    return [
        (c, math.exp(-c * c / 2) / math.sqrt(2 * math.pi), math.erfc(c / math.sqrt(2)) / 2) for c in (0.5, 1.0, 2.0)
    ]


limit_floor = Exercise(
    "limit_floor",
    reference=lambda c, phi, Q: 2 * ((1 + c * c) * Q - c * phi),
    cases=_floor_cases,
    mistakes={
        "this holds for c = 1 only; carry c through the square.": lambda c, phi, Q: 4 * Q - 2 * phi,
        "noise beyond -c is lost as well as noise beyond c: twice as much.": lambda c, phi, Q: (
            (1 + c * c) * Q - c * phi
        ),
        "the middle term of the square is -2 c x; the c is missing.": (
            lambda c, phi, Q: 2 * (c * phi + Q - 2 * phi + c * c * Q)
        ),
        "by parts, the integral of x^2 phi is c phi + Q; the c is missing.": (
            lambda c, phi, Q: 2 * (phi + Q - 2 * c * phi + c * c * Q)
        ),
        "the last term of the square is c^2, times Q.": lambda c, phi, Q: 2 * (2 * Q - c * phi),
    },
    note="c = 1 gives 0.15, c = 2 about 0.012: the limit hurts less, and never nothing.",
)


def _design_verdict(config: UNetConfig) -> str | None:
    """ "fits", or the name of the first demand that a config does not meet."""
    if config is None or config is ...:
        return None
    try:
        config = UNetConfig(**asdict(config))  # the reader's own dataclass, built in the notebook, will do
    except TypeError:
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
    note="The next cell trains it beside MINI.",
)
