"""Chapter 03: the network that looks at a noisy image and a timestep and answers with the noise.

The architecture is the CIFAR-10 U-Net of Ho et al. 2020 (appendix B); `PAPER` has exactly its
35,746,307 parameters. Smaller presets change sizes only. Left out: resolutions other than those
that halve evenly, multi-head attention, learned variances.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embedding import sinusoidal_embedding
from .guards import (
    _check_device,
    _check_features,
    _check_fields,
    _check_floats,
    _check_int,
    _check_number,
    _check_tensor,
    _check_tuple,
    _check_weights_dtype,
)


@dataclass(frozen=True)
class UNetConfig:
    channels: int = 128  # width of the first level
    multipliers: tuple[int, ...] = (1, 2, 2, 2)  # width of each level, times channels; each level halves the image
    blocks: int = 2  # residual blocks per level on the way down (one more on the way up)
    attention: tuple[bool, ...] = (False, True, False, False)  # which levels have attention: 32, 16, 8, 4 pixels
    groups: int = 32  # of GroupNorm; fewer, larger groups are faster on a CPU
    dropout: float = 0.1
    image_channels: int = 3
    num_classes: int = 0  # 0: unconditional. Else labels are 0...num_classes - 1, and num_classes means "no label"

    def __post_init__(self):
        _check_fields(_check_int, self, "channels", "blocks", "groups", "image_channels", "num_classes")
        _check_fields(_check_number, self, "dropout")
        _check_tuple("multipliers", self.multipliers, int)
        _check_tuple("attention", self.attention, bool)
        if not self.multipliers or len(self.attention) != len(self.multipliers):
            raise ValueError("attention needs one entry per level, as multipliers has.")
        if min(self.channels, self.blocks, self.groups, self.image_channels, *self.multipliers) < 1:
            raise ValueError("channels, multipliers, blocks, groups and image_channels must be at least 1.")
        if self.channels % self.groups or self.channels % 2 or self.channels < 4:
            raise ValueError(f"channels ({self.channels}) must be even, at least 4, and a multiple of groups.")
        if not 0 <= self.dropout < 1 or self.num_classes < 0:
            raise ValueError("dropout must lie in [0, 1) and num_classes must not be negative.")


PAPER = UNetConfig()
SMALL = UNetConfig(64, multipliers=(1, 2, 2), blocks=1, attention=(False, False, True), groups=4, dropout=0.0)
TINY = UNetConfig(32, multipliers=(1, 2, 2), blocks=1, attention=(False, False, True), groups=2, dropout=0.0)


class Norm(nn.GroupNorm):
    """GroupNorm with statistics in float32, exact under bf16 too. eps as in the official code.

    On a CPU, PyTorch computes them in float32 by itself. That is fastest for wide groups; for narrow ones, casting
    the input first is.
    """

    def __init__(self, groups: int, channels: int):
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        _check_floats("x", x)
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"x must have the shape (B, {self.num_channels}, ...), not {tuple(x.shape)}.")
        wide = x.is_cpu and self.num_channels >= 16 * self.num_groups
        return super().forward(x if wide else x.float()).to(x.dtype)


class ResBlock(nn.Module):
    """Two convolutions around the embedded time, beside a shortcut: (B, c_in, H, W) -> (B, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, emb_dim: int, groups: int, dropout: float):
        super().__init__()
        self.norm1 = Norm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb_proj = nn.Linear(emb_dim, c_out)
        self.norm2 = Norm(groups, c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        _check_features("x", x, self.conv1.in_channels, self.conv1.weight)
        _check_weights_dtype("emb", emb, self.emb_proj.weight)
        if emb.shape != (len(x), self.emb_proj.in_features):
            raise ValueError(f"emb must be ({len(x)}, {self.emb_proj.in_features}), not {tuple(emb.shape)}.")
        h = self.conv1(F.silu(self.norm1(x)))  # (B, c_out, H, W)
        h = h + self.emb_proj(F.silu(emb))[:, :, None, None]  # (B, c_out, 1, 1): one number per channel, all pixels
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Single-head self-attention between the pixels: (B, c, H, W) -> (B, c, H, W)."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = Norm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        _check_features("x", x, self.qkv.in_features, self.qkv.weight)
        B, C, H, W = x.shape
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = self.qkv(pixels).chunk(3, dim=2)
        h = self.out(F.scaled_dot_product_attention(q, k, v))  # softmax(q k^T / sqrt(C)) v
        return x + h.transpose(1, 2).reshape(B, C, H, W)


class Downsample(nn.Module):
    """(B, c, H, W) -> (B, c, H/2, W/2). Padded right and bottom only, as the official code does."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        _check_features("x", x, self.conv.in_channels, self.conv.weight)
        if x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f"x must have an even height and width to be halved, not {tuple(x.shape)}.")
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """(B, c, H, W) -> (B, c, 2H, 2W): each pixel repeated, then smoothed by a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        _check_features("x", x, self.conv.in_channels, self.conv.weight)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Block(nn.Module):
    """One block of the U-Net: a ResBlock and, on some levels, attention after it."""

    def __init__(self, c_in: int, c_out: int, attention: bool, config: UNetConfig):
        super().__init__()
        self.res = ResBlock(c_in, c_out, 4 * config.channels, config.groups, config.dropout)
        self.attention = Attention(c_out, config.groups) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.res(x, emb))


class UNet(nn.Module):
    """eps_hat = model(xt, t): the noise in x_t, (B, 3, H, W) -> (B, 3, H, W).

    xt: float images; H and W divisible by 2 ** (levels - 1). t: (B,) timesteps 0...T-1.
    y: (B,) long labels, where config.num_classes > 0; None means "no label" for all.
    Raises ValueError where a shape, timestep or label does not fit, TypeError where a dtype does not.
    T is not known here: that t < T, DDPM sees to.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        c, emb_dim = config.channels, 4 * config.channels
        widths = [c * m for m in config.multipliers]
        self.time_mlp = nn.Sequential(nn.Linear(c, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.label_emb = nn.Embedding(config.num_classes + 1, emb_dim) if config.num_classes else None

        self.conv_in = nn.Conv2d(config.image_channels, c, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [c]  # the channels of every tensor that the way down leaves for the way up
        for i, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(Block(skips[-1], width, config.attention[i], config))
                skips.append(width)
            if i < len(widths) - 1:
                self.down.append(Downsample(width))
                skips.append(width)

        self.mid1 = Block(widths[-1], widths[-1], True, config)
        self.mid2 = Block(widths[-1], widths[-1], False, config)

        c_in = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(Block(c_in + skips.pop(), width, config.attention[i], config))
                c_in = width
            if i > 0:
                self.up.append(Upsample(width))

        self.norm_out = Norm(config.groups, c_in)
        self.conv_out = zero_init(nn.Conv2d(c_in, config.image_channels, 3, padding=1))

    def forward(self, xt: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        _check_input(self.config, xt, t, y, self.conv_in.weight)
        emb = self.time_mlp(sinusoidal_embedding(t, self.config.channels))  # (B, emb_dim)
        if self.label_emb is not None:
            y = torch.full_like(t, self.config.num_classes, dtype=torch.long) if y is None else y
            emb = emb + self.label_emb(y)

        h = self.conv_in(xt)
        skips = [h]
        for block in self.down:
            h = block(h) if isinstance(block, Downsample) else block(h, emb)
            skips.append(h)

        h = self.mid2(self.mid1(h, emb), emb)

        for block in self.up:
            h = block(h) if isinstance(block, Upsample) else block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.conv_out(F.silu(self.norm_out(h)))


def zero_init(layer: nn.Module) -> nn.Module:
    """Start a layer at zero, so that its block starts as the identity (Ho et al.'s code does this)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _check_input(config: UNetConfig, xt: Tensor, t: Tensor, y: Tensor | None, weight: Tensor) -> None:
    _check_floats("xt", xt)
    multiple = 2 ** (len(config.multipliers) - 1)
    sizes = [n and n % multiple == 0 for n in xt.shape[2:]]
    if xt.ndim != 4 or xt.shape[1] != config.image_channels or not all(sizes):
        raise ValueError(
            f"xt must be (B, {config.image_channels}, H, W), H and W multiples of {multiple}, not {tuple(xt.shape)}."
        )
    _check_features("xt", xt, config.image_channels, weight)
    _check_tensor("t", t)
    _check_device("t", t, "xt", xt)
    if t.dtype != torch.long:
        raise TypeError(f"t must be a long tensor of timesteps 0...T-1, not {t.dtype}.")
    if t.shape != xt.shape[:1]:
        raise ValueError(f"t must have the shape ({len(xt)},), one timestep per image, not {tuple(t.shape)}.")
    if (t < 0).any():
        raise ValueError(f"t must not be negative, but holds {int(t.min())}.")
    if y is None:
        return
    if not config.num_classes:
        raise ValueError("y was given, but this model has no classes (num_classes = 0).")
    _check_tensor("y", y)
    _check_device("y", y, "xt", xt)
    if y.dtype != torch.long or y.shape != t.shape:
        raise ValueError(f"y must be a long tensor of shape {tuple(t.shape)}, not {y.dtype} of shape {tuple(y.shape)}.")
    if len(y) and (y.min() < 0 or y.max() > config.num_classes):
        raise ValueError(f"y must lie in 0...{config.num_classes} ({config.num_classes} means no label).")
