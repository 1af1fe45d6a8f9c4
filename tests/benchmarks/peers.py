"""The libraries that ours is compared with, each used as its documentation does.

"As documented": float32 and PyTorch's own layout, as the documentation's code runs where there is no GPU. "Tuned":
precision and layout are whatever is measured to be fastest for that network on this machine, as for ours. torch.compile
is left out on all sides: it takes a minute or more to start.
"""

import tempfile
from bisect import bisect_left
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

from ddpm_utils.checkpoint import Trained
from ddpm_utils.data import ImageSet
from ddpm_utils.diffusers_format import save_diffusers
from ddpm_utils.diffusion import DDPM, linear_betas
from ddpm_utils.hardware import Setup
from ddpm_utils.unet import UNet, UNetConfig


class Peer(NamedTuple):
    name: str
    package: str  # to import
    network: Callable[[UNetConfig], nn.Module]  # one of that size; called as network(x, t), it gives the noise
    training_step: Callable[[nn.Module, Tensor, Setup], Callable[[], object]]
    sampling: Callable[[nn.Module, int, int, Setup], Callable[[], object]]  # network, images, steps, setup


class Wrapped(nn.Module):
    """A peer's network in the form that ddpm_utils.hardware.measure_setups asks for."""

    def __init__(self, network: nn.Module, answer: Callable):
        super().__init__()
        self.network, self.answer = network, answer
        self.config = SimpleNamespace(image_channels=3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.answer(self.network(x, t))


# ---- diffusers: the tutorial "Train a diffusion model", and the loop of DDPMPipeline ---------------------------------


def diffusers_network(config: UNetConfig) -> nn.Module:
    """The same network, layer by layer, with the same weights."""
    from diffusers import UNet2DModel

    with tempfile.TemporaryDirectory() as folder:
        save_diffusers(Trained(UNet(config), DDPM(linear_betas()), (), {}), folder)
        network = UNet2DModel.from_pretrained(folder, subfolder="unet")
    return Wrapped(network, lambda output: output.sample)


def diffusers_training_step(network: nn.Module, images: Tensor, setup: Setup) -> Callable[[], None]:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        noise = torch.randn_like(images)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(images),), device=images.device)
        noisy = scheduler.add_noise(images, noise, t)
        with setup.autocast(images.device):
            predicted = network(setup.arrange(noisy), t)
            loss = F.mse_loss(predicted, noise)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def diffusers_sampling(network: nn.Module, number: int, steps: int, setup: Setup) -> Callable[[], None]:
    """The first `steps` steps of its 1000."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(1000)
    device = next(network.parameters()).device

    @torch.no_grad()
    def run() -> None:
        x = torch.randn(number, 3, 32, 32, device=device)
        for t in scheduler.timesteps[:steps]:
            with setup.autocast(device):
                eps = network(setup.arrange(x), t)
            x = scheduler.step(eps.float(), t, x).prev_sample

    return run


DIFFUSERS_FRESH = """
import sys
from diffusers import DDPMPipeline
pipeline = DDPMPipeline.from_pretrained(sys.argv[3]).to(sys.argv[1])
images = pipeline(batch_size=1, num_inference_steps=int(sys.argv[2])).images
assert images[0].size == (32, 32)
"""


# ---- denoising-diffusion-pytorch: the README's "Usage", and what its Trainer does in a step --------------------------


def lucidrains_network(config: UNetConfig) -> nn.Module:
    """Its own U-Net at the widths that come nearest to the other's parameters: there is no equal one."""
    from denoising_diffusion_pytorch import Unet

    def network(dim: int) -> nn.Module:
        return Unet(dim=dim, dim_mults=config.multipliers, flash_attn=True)

    def parameters(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        wanted, dims = parameters(UNet(config)), range(4, 4 * config.channels, 2)
        i = bisect_left(dims, wanted, key=lambda dim: parameters(network(dim)))
        nearest = min(dims[max(i - 1, 0) : i + 1], key=lambda dim: abs(parameters(network(dim)) - wanted))
    return Wrapped(network(nearest), lambda output: output)


def lucidrains_training_step(network: nn.Module, images: Tensor, setup: Setup) -> Callable[[], None]:
    from denoising_diffusion_pytorch import GaussianDiffusion
    from ema_pytorch import EMA

    diffusion = GaussianDiffusion(network.network, image_size=32, timesteps=1000).to(images.device)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)
    images = setup.arrange((images + 1) / 2)  # it takes 0...1

    def step() -> None:
        with setup.autocast(images.device):
            loss = diffusion(images)
        loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    return step


def lucidrains_sampling(network: nn.Module, number: int, steps: int, setup: Setup) -> Callable[[], None]:
    from denoising_diffusion_pytorch import GaussianDiffusion

    device = next(network.parameters()).device
    diffusion = GaussianDiffusion(network.network, image_size=32, timesteps=1000).to(device).eval()

    def run() -> None:
        x = setup.arrange(torch.randn(number, 3, 32, 32, device=device))
        for t in range(999, 999 - steps, -1):
            with setup.autocast(device):
                x, _ = diffusion.p_sample(x, t)

    return run


PEERS = (
    Peer("diffusers", "diffusers", diffusers_network, diffusers_training_step, diffusers_sampling),
    Peer(
        "denoising-diffusion-pytorch",
        "denoising_diffusion_pytorch",
        lucidrains_network,
        lucidrains_training_step,
        lucidrains_sampling,
    ),
)


# ---- torchvision: dataset, transforms and loader as in its documentation and PyTorch's tutorials ---------------------


class InMemory(CIFAR10):
    """torchvision's CIFAR10, with the pixels given instead of read from its files."""

    def __init__(self, images: ImageSet, transform: Callable):
        self.data = images.images.permute(0, 2, 3, 1).numpy()  # (N, 32, 32, 3) uint8, as it keeps them
        self.targets = images.labels.tolist()
        self.transform, self.target_transform = transform, None


def torchvision_loader(images: ImageSet, batch_size: int) -> DataLoader:
    half = (0.5, 0.5, 0.5)
    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(half, half)]
    dataset = InMemory(images, transforms.Compose(steps))
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=2, drop_last=True)
