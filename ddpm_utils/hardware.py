"""Where the numbers are computed: which device, in which precision and memory layout.

No chapter teaches this file; it keeps such questions out of those that do.
"""

import ctypes
import platform
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Setup:
    """How a network computes. bf16: convolutions and products in bfloat16 (the weights stay float32).
    channels_last: images stored pixel by pixel instead of channel by channel; the shapes stay (B, C, H, W)."""

    bf16: bool = False
    channels_last: bool = False

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)

    def arrange(self, x: nn.Module | Tensor):
        """The same tensor or module, in this layout."""
        return x.to(memory_format=torch.channels_last) if self.channels_last else x

    def __str__(self) -> str:
        return (
            f"{'bfloat16' if self.bf16 else 'float32'}, {'channels last' if self.channels_last else 'channels first'}"
        )


def best_device() -> torch.device:
    """An NVIDIA or AMD GPU if there is one, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def measure_setups(model: nn.Module, images: int = 16, repeats: int = 2) -> dict[Setup, float]:
    """Seconds per 32x32 image, forward and (where weights require gradients) backward, for each way to compute.

    Measured, because support in name says little about speed: a processor without bfloat16
    instructions emulates them, many times slower. The model's weights and gradients stay as they were.
    """
    parameter = next(model.parameters())
    x = torch.zeros(images, model.config.image_channels, 32, 32, device=parameter.device)
    t = torch.zeros(images, device=parameter.device, dtype=torch.long)
    weights = [p for p in model.parameters() if p.requires_grad]
    was_training = model.training
    seconds = {}
    for setup in [Setup(bf16, channels_last) for bf16 in (False, True) for channels_last in (False, True)]:
        setup.arrange(model.train())
        times = []
        for _ in range(repeats + 1):  # the first one warms up
            start = time.perf_counter()
            with setup.autocast(parameter.device):
                loss = model(setup.arrange(x), t).square().mean()
            if weights:
                torch.autograd.grad(loss.float(), weights, allow_unused=True)[0].sum().item()
            times.append(time.perf_counter() - start)
        seconds[setup] = min(times[1:]) / images
        model.to(memory_format=torch.contiguous_format)
    model.train(was_training)
    return seconds


def fastest(seconds: dict[Setup, float]) -> Setup:
    """The best of measured setups. bfloat16 must win by 10% to be chosen: a draw goes to the exact one."""
    return min(seconds, key=lambda setup: seconds[setup] * (1.1 if setup.bf16 else 1.0))


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory for what comes next, for as long as this process lives; True if it agrees.

    Every training step frees gigabytes and takes them again. Given back to the system in between, each page has to be
    mapped and cleared anew. Only glibc, the C library of most Linux systems, is asked; elsewhere nothing happens. The
    price: the process holds on to its peak of memory until it ends.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a program that brings its own allocator along
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, -1))  # no block of its own; never trim the heap
