"""What is measured: the rows of the table and, in each, who takes part. Ours comes first.

A contestant is built once, in a process of its own, and then called again and again, taking turns with the others.
Ours does what main.py does: it measures which precision and layout is fastest here, and its training step also draws
the batch, clips the gradient and keeps the average of the weights. Where it trains, freed memory is kept.
"""

import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import main
from ddpm_utils.checkpoint import Trained, load_pretrained
from ddpm_utils.data import ImageSet, random_flip, to_float
from ddpm_utils.diffusion import DDPM, linear_betas
from ddpm_utils.hardware import Setup, fastest, keep_freed_memory, measure_setups
from ddpm_utils.training import Run, TrainConfig, batch_indices, draw_batch, train_step
from ddpm_utils.unet import PAPER, SMALL, TINY, UNet, UNetConfig

ROOT = Path(main.__file__).parent


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    device: str = "cpu"
    paper: UNetConfig = PAPER
    small: UNetConfig = SMALL
    batch: int = 32  # images per step and per forward pass of the paper's network
    small_batch: int = 64  # images per training step of the small one
    samples: int = 64
    sampler: str = "ddpm-posterior"  # ours, one of main.SAMPLERS
    steps: int = 50  # of ours
    peer_steps: int = 2  # of a peer's 1000: each costs the same
    images: int = 50_000  # of an epoch
    epoch_batch: int = 128
    setup: Setup | None = None  # the one that ours has chosen; for the ceiling, which is to be of the same kind


QUICK = {
    "paper": TINY, "small": TINY, "batch": 2, "small_batch": 2, "samples": 2, "sampler": "ddpm-posterior", "steps": 2,
    "peer_steps": 1, "images": 256,
}  # fmt: skip


class Work(NamedTuple):
    """A contestant, ready."""

    run: Callable[[], object]
    note: str = ""  # how it computes, in a few words
    share: float = 1.0  # of the whole job, that one run does
    setup: Setup | None = None


class Contestant(NamedTuple):
    name: str
    build: Callable[[Sizes], Work]
    needs: str = "torch"  # the package without which it can't take part


class Row(NamedTuple):
    title: Callable[[Sizes], str]
    contestants: tuple[Contestant, ...]
    images: Callable[[Sizes], int] | None = None  # per run: the speed is told in images/s; None: in seconds
    bound: bool = False  # the other one is no peer, but what no implementation can go below
    fresh: bool = False  # each run is a process of its own, and its memory is all of it


# ---- the network: training and forward ---------------------------------------------------------------------------


def train_ours(config: UNetConfig, batch: int, device: str) -> Work:
    keep_freed_memory()
    model = UNet(config).to(device)
    setup = choose(model)
    run = Run(model, TrainConfig(batch_size=batch))
    ddpm, images = DDPM(linear_betas()), synthetic(4 * batch)

    def step() -> None:
        drawn = draw_batch(images, run.config, run.step, ddpm.T, config.num_classes, torch.device(device))
        train_step(run, model, ddpm, drawn, 1e-4, setup)

    return Work(step, size_note(model, setup), setup=setup)


def train_peer(network: nn.Module, peer: peers.Peer, batch: int, device: str, tuned: bool) -> Work:
    network.to(device)
    setup = choose(network) if tuned else Setup()
    setup.arrange(network.train())
    step = peer.training_step(network, to_float(synthetic(batch).images).to(device), setup)
    return Work(step, size_note(network, setup))


def forward(network: nn.Module, batch: int, device: str, tuned: bool) -> Work:
    network.eval().requires_grad_(False).to(device)
    setup = choose(network) if tuned else Setup()
    setup.arrange(network)
    x, t = setup.arrange(torch.randn(batch, 3, 32, 32, device=device)), torch.arange(batch, device=device)

    @torch.inference_mode()
    def run() -> None:
        with setup.autocast(x.device):
            network(x, t)

    return Work(run, size_note(network, setup))


def choose(network: nn.Module) -> Setup:
    """The fastest precision and layout here, by measurement: for ours, and for the peers when tuned."""
    return fastest(measure_setups(network, images=8, repeats=3))


def size_note(network: nn.Module, setup: Setup) -> str:
    device = next(network.parameters()).device
    plain = sdpa_kernel(SDPBackend.MATH)  # attention as matrix products, which every version of PyTorch counts
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32, device=device), torch.zeros(1, dtype=torch.long, device=device))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return f"{parameters / 1e6:.1f}M parameters, {counter.get_total_flops() / 1e9:.1f} GFLOP; {setup}"


def synthetic(n: int) -> ImageSet:
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % 10, tuple("0123456789"), "random images")


# ---- the ceiling: the convolutions and products alone ------------------------------------------------------------


class Recorder(TorchFunctionMode):
    """Notes every convolution, matrix product and attention that is called within it, with its arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.conv2d, F.linear, F.scaled_dot_product_attention):
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def ceiling(sizes: Sizes) -> Work:
    """Forward and backward of exactly the products that a training step makes, one after the other, and nothing else.

    Their inputs lie ready in the precision and layout in which the network computes them.
    """
    keep_freed_memory()
    model = UNet(sizes.small).to(sizes.device)
    setup = sizes.setup or choose(model)
    setup.arrange(model)
    t = torch.arange(sizes.small_batch, device=sizes.device)
    x = setup.arrange(torch.randn(len(t), 3, 32, 32, device=sizes.device))
    with setup.autocast(x.device), Recorder() as recorder:
        model(x, t)

    def ready(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        copy = value.detach().to(torch.bfloat16 if setup.bf16 else value.dtype).clone()
        return copy.requires_grad_(value.requires_grad)

    calls = []
    for function, args, kwargs in recorder.calls:
        args = [ready(value) for value in args]
        y = function(*args, **kwargs)
        wanted = [value for value in args if isinstance(value, Tensor) and value.requires_grad]
        calls.append((function, args, kwargs, wanted, torch.randn_like(y)))

    def run() -> None:
        outputs = [function(*args, **kwargs) for function, args, kwargs, *_ in calls]
        for *_, wanted, gradient in reversed(calls):
            torch.autograd.grad(outputs.pop(), wanted, gradient)

    return Work(run, f"{len(calls)} products; {setup}")


# ---- sampling ----------------------------------------------------------------------------------------------------


def sampled(sizes: Sizes) -> Trained:
    """The model that is sampled from: the one that ships with the module; one without training, for a quick run."""
    if sizes.small == SMALL:
        return load_pretrained(sizes.device)
    return Trained(UNet(sizes.small).eval().requires_grad_(False).to(sizes.device), DDPM(linear_betas()), (), {})


def sample_ours(sizes: Sizes) -> Work:
    trained = sampled(sizes)
    setup = choose(trained.model)
    options = main.SampleOptions(number=sizes.samples, sampler=sizes.sampler, steps=sizes.steps)
    return Work(lambda: main.draw_images(trained, options, setup), size_note(trained.model, setup))


def sample_peer(network: nn.Module, peer: peers.Peer, sizes: Sizes, tuned: bool) -> Work:
    network.eval().requires_grad_(False).to(sizes.device)
    setup = choose(network) if tuned else Setup()
    run = peer.sampling(setup.arrange(network), sizes.samples, sizes.peer_steps, setup)
    return Work(run, size_note(network, setup), share=sizes.peer_steps / 1000)


# ---- batches of images -------------------------------------------------------------------------------------------


def epoch_ours(sizes: Sizes) -> Work:
    keep_freed_memory()
    data, generator = synthetic(sizes.images), torch.Generator(sizes.device).manual_seed(0)
    steps, first = sizes.images // sizes.epoch_batch, 0

    def run() -> None:
        nonlocal first  # each run is the next epoch, in a new order
        for step in range(first, first + steps):
            indices = batch_indices(len(data), sizes.epoch_batch, step, 0)
            random_flip(to_float(data.images[indices].to(sizes.device)), generator)
        first += steps

    return Work(run, f"batches of {sizes.epoch_batch}")


def epoch_torchvision(sizes: Sizes) -> Work:
    loader = peers.torchvision_loader(synthetic(sizes.images), sizes.epoch_batch)

    def run() -> None:
        for images, _ in loader:
            images.to(sizes.device)

    return Work(run, f"batches of {sizes.epoch_batch}")


# ---- a fresh process ---------------------------------------------------------------------------------------------

OURS_FRESH = """
import sys
from ddpm_utils.checkpoint import load_pretrained
from ddpm_utils.diffusion import posterior_variances
from ddpm_utils.sampling import last, noise_model, sample_ddpm, start_noise
trained = load_pretrained(sys.argv[1])
x_T, generator = start_noise(1, seed=0)
steps = int(sys.argv[2])
eps_model = noise_model(trained.model)
options = {"steps": steps, "variances": posterior_variances, "generator": generator}
images = last(sample_ddpm(eps_model, trained.ddpm, x_T.to(sys.argv[1]), **options))
assert images.shape == (1, 3, 32, 32)
"""


def fresh_ours(sizes: Sizes) -> Work:
    return Work(lambda: fresh(OURS_FRESH, sizes.device, str(sizes.steps)), f"{sizes.steps} steps")


def fresh_diffusers(sizes: Sizes) -> Work:
    folder = tempfile.TemporaryDirectory()
    peers.save_diffusers(load_pretrained(), folder.name)
    command = peers.DIFFUSERS_FRESH, sizes.device, str(sizes.steps), folder.name
    return Work(lambda folder=folder: fresh(*command), f"{sizes.steps} steps")  # the folder lives as long as the work


def fresh(code: str, *arguments: str) -> float:
    """Run a program in a new interpreter. Returns the peak of its memory in MB. Raises RuntimeError where it fails."""
    code += inspect.getsource(peak_memory) + "print(peak_memory())"
    command, environment = [sys.executable, "-c", code, *arguments], {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return float(result.stdout.split()[-1])


def peak_memory() -> float:
    """The most memory that this process has held so far, in MB."""
    import re
    import resource
    from pathlib import Path

    status = Path("/proc/self/status")
    if status.exists():  # Linux; getrusage there counts in what the process that started this one held
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


# ---- the table's rows --------------------------------------------------------------------------------------------


def against_peers(build: Callable, config: Callable[[Sizes], UNetConfig]) -> tuple[Contestant, ...]:
    """Each peer twice: as its documentation uses it, and tuned. build(network, peer, sizes, tuned) makes the work."""

    def contestant(peer: peers.Peer, tuned: bool) -> Contestant:
        name = f"{peer.name}, {'tuned' if tuned else 'as documented'}"
        return Contestant(name, lambda s: build(peer.network(config(s)), peer, s, tuned), peer.package)

    return tuple(contestant(peer, tuned) for peer in peers.PEERS for tuned in (False, True))


ROWS = {
    "train-paper": Row(
        lambda s: f"training step of the paper's U-Net, {s.batch} images",
        (
            Contestant("ours", lambda s: train_ours(s.paper, s.batch, s.device)),
            *against_peers(
                lambda net, peer, s, tuned: train_peer(net, peer, s.batch, s.device, tuned), lambda s: s.paper
            ),
        ),
        images=lambda s: s.batch,
    ),
    "forward-paper": Row(
        lambda s: f"forward pass of the paper's U-Net, {s.batch} images",
        (
            Contestant("ours", lambda s: forward(UNet(s.paper), s.batch, s.device, tuned=True)),
            *against_peers(lambda net, peer, s, on: forward(net, s.batch, s.device, on), lambda s: s.paper),
        ),
        images=lambda s: s.batch,
    ),
    "train-small": Row(
        lambda s: f"training step of the small U-Net, {s.small_batch} images",
        (
            Contestant("ours", lambda s: train_ours(s.small, s.small_batch, s.device)),
            Contestant("its convolutions and matrix products alone", ceiling),
        ),
        images=lambda s: s.small_batch,
        bound=True,
    ),
    "sample": Row(
        lambda s: f"{s.samples} images of the small U-Net: {s.steps} steps ({s.sampler}) against 1000 ancestral ones",
        (
            Contestant("ours", sample_ours),
            *against_peers(sample_peer, lambda s: s.small),
        ),
    ),
    "batches": Row(
        lambda s: f"one epoch of {s.images:,} images in batches, flipped at random and scaled",
        (
            Contestant("ours", epoch_ours),
            Contestant("torchvision, DataLoader with 2 workers", epoch_torchvision, "torchvision"),
        ),
    ),
    "start": Row(
        lambda s: "import and first sample, in a fresh process",
        (
            Contestant("ours", fresh_ours),
            Contestant("diffusers, DDPMPipeline with the same weights", fresh_diffusers, "diffusers"),
        ),
        fresh=True,
    ),
}
