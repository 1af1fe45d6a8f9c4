"""Chapter 04: the training loop.

Everything random in step k is drawn from (seed, k) alone. So a run that was stopped continues as if
it never had been, to the last bit on a CPU, and several processes agree on one batch without a word.
"""

import copy
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .checkpoint import load_checkpoint, model_info, save_checkpoint, unet_config, weights_of
from .data import ImageSet, random_flip, to_float
from .diffusion import DDPM
from .guards import _check_fields, _check_int, _check_number, _check_seed
from .hardware import Setup
from .muon import Muon
from .unet import UNet

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")  # what Adam, and Muon for its matrices, remember of past gradients


def option(default, text: str):
    """A dataclass field with the sentence that `main.py --help` prints for it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    steps: int = option(100_000, "training steps of the whole run (the paper: 800000)")
    minutes: float = option(0.0, "train for a budget of time instead of steps; 0 means: steps count")
    batch_size: int = option(128, "images per step, over all processes together")
    lr: float = option(4e-4, "peak learning rate of Adam (the paper: 2e-4)")
    muon: bool = option(False, "move the blocks' matrices by Muon instead of Adam: a lower loss in the same time")
    lr_final: float = option(
        0.02, "share of lr left at the end of a cosine decay; 1 keeps it constant, as the paper does"
    )
    warmup_steps: int = option(500, "steps in which the learning rate rises to its peak (the paper: 5000)")
    grad_clip: float = option(1.0, "largest norm of the gradient; a larger one is scaled down to it")
    ema_decay: float = option(0.9995, "decay of the averaged weights, which draw the samples (the paper: 0.9999)")
    label_dropout: float = option(0.15, "share of images trained without their label; needed for guidance")
    snr_cap: float = option(
        0.0, "weigh timesteps of a higher signal-to-noise ratio down to this one (5 is usual); 0: all alike, eq. 14"
    )
    flip: bool = option(True, "mirror every other image, at random")
    seed: int = option(0, "where all randomness comes from")

    def __post_init__(self):
        _check_fields(_check_int, self, "steps", "batch_size", "warmup_steps")
        _check_fields(_check_number, self, "minutes", "lr", "lr_final", "grad_clip", "ema_decay")
        _check_fields(_check_number, self, "label_dropout", "snr_cap")
        _check_seed("seed", self.seed)
        for name in ("flip", "muon"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}.")
        for name in ("steps", "batch_size", "lr", "warmup_steps", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, not {getattr(self, name)}.")
        for name in ("minutes", "snr_cap"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}.")
        for name, top in (("lr_final", 1.0), ("ema_decay", 1.0), ("label_dropout", 1.0)):
            if not 0 <= getattr(self, name) <= top:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}.")


class EMA:
    """An exponential moving average of a model's weights: a steadier model than any single step's.

    The decay warms up as (1 + step) / (10 + step), so that a short run forgets its random start.
    """

    def __init__(self, model: nn.Module, decay: float):
        _check_number("decay", decay, 0.0, 1.0)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        _check_int("step", step, low=0)
        _check_like(self.model, model)
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)


class Batch(NamedTuple):
    x0: Tensor  # (B, 3, H, W) in [-1, 1]
    t: Tensor  # (B,) long
    eps: Tensor  # (B, 3, H, W)
    y: Tensor | None  # (B,) long, some replaced by "no label"; None for a model without classes


class Progress(NamedTuple):
    step: int  # steps done so far
    loss: float  # of this step's batch
    lr: float
    images_per_second: float  # since this session of the run began
    seconds: float  # spent on the run so far, earlier sessions counted in
    seconds_left: float


class Run:
    """Everything that changes while a model trains: weights, their average, the optimizer's moments, step, time."""

    def __init__(self, model: UNet, config: TrainConfig, images_before: int = 0):
        self.model = model.train()
        self.ema = EMA(model, config.ema_decay)
        self.optimizer = Muon(model, config.lr) if config.muon else torch.optim.Adam(model.parameters(), lr=config.lr)
        self.config = config
        self.images_before = images_before  # that an earlier run has trained the weights on
        self.step = 0
        self.seconds = 0.0

    @property
    def fraction(self) -> float:
        """How much of the run is done, by time or by steps: 0...1."""
        minutes, steps = self.config.minutes, self.config.steps
        return min(1.0, self.seconds / (60 * minutes) if minutes else self.step / steps)


def train(run: Run, ddpm: DDPM, data: ImageSet, setup: Setup = Setup()) -> Iterator[Progress]:
    """Train until the run's steps or minutes are used up, yielding after every step (Algorithm 1).

    Continues from run.step. In a torch.distributed group, each process trains on its share of the
    batch and the gradients are averaged. Raises FloatingPointError, before any weight has
    changed, where the loss is not finite.
    """
    device = next(run.model.parameters()).device
    setup.arrange(run.model)
    setup.arrange(run.ema.model)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if run.config.batch_size % world:
        raise ValueError(f"batch_size ({run.config.batch_size}) must be a multiple of the {world} processes.")
    model = nn.parallel.DistributedDataParallel(run.model) if world > 1 else run.model
    first_step, seconds_before, start = run.step, run.seconds, time.perf_counter()
    busy = 0.0  # seconds within this loop, without what the caller does between two steps
    while run.fraction < 1:
        step_start = time.perf_counter()
        batch = draw_batch(data, run.config, run.step, ddpm.T, run.model.config.num_classes, device)
        batch = Batch(*(part if part is None else part.chunk(world)[rank] for part in batch))
        lr = learning_rate(run.config, run.step, run.fraction)
        loss = train_step(run, model, ddpm, batch, lr, setup, rank)

        now = time.perf_counter() - start
        busy += time.perf_counter() - step_start
        # one clock for all processes, or they would not stop at the same step
        run.seconds = _same_for_all(seconds_before + now, device)
        per_step = now / (run.step - first_step)
        left = run.config.minutes * 60 - run.seconds if run.config.minutes else (run.config.steps - run.step) * per_step
        yield Progress(
            run.step, loss, lr, run.config.batch_size * (run.step - first_step) / busy, run.seconds, max(0.0, left)
        )


def train_step(
    run: Run, model: nn.Module, ddpm: DDPM, batch: Batch, lr: float, setup: Setup = Setup(), rank: int = 0
) -> float:
    """One step of Algorithm 1: loss, gradient, Adam, EMA. model: run.model, or a wrapper of it. Returns the loss."""

    def eps_model(xt: Tensor, t: Tensor) -> Tensor:
        with setup.autocast(xt.device):
            return model(setup.arrange(xt), t, batch.y).float()

    cuda = [batch.x0.device] if batch.x0.is_cuda else []
    with torch.random.fork_rng(cuda):  # dropout draws from torch's own generator; the caller's is left alone
        torch.manual_seed(_seed(run.config.seed, "dropout", run.step, rank))
        losses = ddpm.loss(eps_model, batch.x0, batch.t, batch.eps)  # (B,)
    weights = loss_weights(ddpm, run.config.snr_cap).to(losses.device)  # (T,)
    loss = (weights[batch.t] * losses).mean()
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), run.config.grad_clip)
    mean_loss = _same_for_all(loss.item(), loss.device, average=True)
    if not math.isfinite(mean_loss + norm.item()):
        raise FloatingPointError(
            f"step {run.step + 1}: the loss is {mean_loss}, the gradient's norm {norm.item()}; no weight was "
            "changed by it. Try a smaller lr, a longer warm-up, or training without bf16."
        )
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    with setup.autocast(batch.x0.device):  # for Muon's products of matrices; Adam has none
        run.optimizer.step()
    run.ema.update(run.model, run.step)
    run.step += 1
    return mean_loss


def loss_weights(ddpm: DDPM, snr_cap: float) -> Tensor:
    """(T,) float: min(SNR_t, snr_cap) / SNR_t with SNR = alpha_bar / (1 - alpha_bar); ones where snr_cap is 0.

    In the first timesteps, where little noise is left to tell, the loss is largest: unweighted, they make most of the
    gradient. Capped, more of it is left for those where shapes are decided. Source: Hang et al. 2023, "Min-SNR"
    (arXiv:2303.09556).
    """
    _check_number("snr_cap", snr_cap, 0.0)
    if not snr_cap:
        return torch.ones(ddpm.T)
    return (snr_cap * (1 - ddpm.alpha_bars) / ddpm.alpha_bars).clamp(max=1).float().cpu()


def learning_rate(config: TrainConfig, step: int, fraction: float) -> float:
    """Linear warm-up over warmup_steps, then (or meanwhile) half a cosine from lr to lr_final * lr."""
    _check_int("step", step, low=0)
    _check_number("fraction", fraction, 0.0, 1.0)
    warmup = min(1.0, (step + 1) / config.warmup_steps)
    cosine = (1 + math.cos(math.pi * fraction)) / 2  # 1 ... 0
    return config.lr * warmup * (config.lr_final + (1 - config.lr_final) * cosine)


def draw_batch(data: ImageSet, config: TrainConfig, step: int, T: int, num_classes: int, device: torch.device) -> Batch:
    """The batch of one step: images in a new order every epoch, flipped at random, with times and noise."""
    _check_int("T", T, low=1)
    _check_int("num_classes", num_classes, low=0)
    if num_classes and num_classes < len(data.class_names):
        raise ValueError(f"num_classes ({num_classes}) must not be below the images' {len(data.class_names)} classes.")
    indices = batch_indices(len(data), config.batch_size, step, config.seed)
    generator = torch.Generator(device).manual_seed(_seed(config.seed, "batch", step))
    x0 = to_float(data.images[indices].to(device))
    if config.flip:
        x0 = random_flip(x0, generator)
    t = torch.randint(T, (len(x0),), generator=generator, device=device)
    eps = torch.randn(x0.shape, generator=generator, device=device)
    y = None
    if num_classes:
        dropped = (
            torch.rand(len(x0), generator=generator, device=device) < config.label_dropout
        )  # each image on its own
        y = torch.where(dropped, num_classes, data.labels[indices].to(device))
    return Batch(x0, t, eps, y)


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """(batch_size,) indices: step's piece of an endless row of epochs, each a new permutation of 0...n-1."""
    _check_int("n", n, low=1)
    _check_int("batch_size", batch_size, low=1)
    _check_int("step", step, low=0)
    _check_seed("seed", seed)
    first = step * batch_size
    epochs = range(first // n, (first + batch_size - 1) // n + 1)
    orders = torch.cat([_epoch_order(n, epoch, seed) for epoch in epochs])
    return orders[first - epochs[0] * n :][:batch_size]


def save_run(path: str | Path, run: Run, ddpm: DDPM, data: ImageSet, setup: Setup) -> None:
    """Write all of a run to one checkpoint, atomically (see save_checkpoint). load_model reads its EMA weights too."""
    tensors = {"betas": ddpm.betas}
    tensors |= {f"model.{name}": value for name, value in run.model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in run.ema.model.state_dict().items()}
    for name, parameter in run.model.named_parameters():
        state = run.optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": state[moment] for moment in MOMENTS if moment in state}
    info = model_info(run.model, data.class_names) | {
        "step": run.step,
        "images_seen": run.images_before + run.step * run.config.batch_size,
        "seconds": run.seconds,
        "train": asdict(run.config),
        "setup": asdict(setup),
        "data": [data.source, len(data)],
    }
    save_checkpoint(path, tensors, info)


def load_run(
    path: str | Path, ddpm: DDPM, data: ImageSet, config: TrainConfig, device: torch.device
) -> tuple[Run, Setup]:
    """Continue a saved run. Only steps and minutes may differ from what it was started with; else ValueError."""
    tensors, info = load_checkpoint(path)
    if "train" not in info or not any(name.startswith("model.") for name in tensors):
        raise ValueError(f"{path} holds weights to sample from, but no training run to continue.")
    free = {"steps", "minutes"}
    old, new = {"snr_cap": 0.0, "muon": False} | info["train"], asdict(config)  # older files know neither
    changed = [
        f"{name} was {old.get(name)}, now {new[name]}"
        for name in new
        if name not in free and old.get(name) != new[name]
    ]
    if info["data"] != [data.source, len(data)]:
        changed.append(f"the images were {info['data'][0]} ({info['data'][1]}), now {data.source} ({len(data)})")
    if not torch.equal(tensors["betas"], ddpm.betas.cpu()):
        changed.append("the noise schedule is another")
    if changed:
        raise ValueError(f"{path} cannot be continued with other settings: {'; '.join(changed)}.")
    run = Run(UNet(unet_config(info)).to(device), config)
    run.model.load_state_dict(weights_of(tensors, "model."))
    run.ema.model.load_state_dict(weights_of(tensors, "ema."))
    run.step, run.seconds = info["step"], info["seconds"]
    images_here = run.step * config.batch_size
    run.images_before = info.get("images_seen", images_here) - images_here  # older files do not tell
    for name, parameter in run.model.named_parameters():
        moments = {key: tensors[f"{key}.{name}"].to(device) for key in MOMENTS if f"{key}.{name}" in tensors}
        if moments:
            run.optimizer.state[parameter] = {"step": torch.tensor(float(run.step)), **moments}
    return run, Setup(**info["setup"])


def _check_like(average: nn.Module, model: nn.Module) -> None:
    if [p.shape for p in average.parameters()] != [p.shape for p in model.parameters()]:
        raise ValueError("model must have weights of the same shapes as the average that it goes into.")


@lru_cache(maxsize=2)  # a batch touches two epochs at most, unless the set is smaller than a batch
def _epoch_order(n: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(_seed(seed, "epoch", epoch)))


def _seed(*what: int | str) -> int:
    """A seed for each purpose: near numbers must not give related streams, so they are hashed."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:4], "big")


def _same_for_all(value: float, device: torch.device, average: bool = False) -> float:
    """The first process's value, or the average, in every process of a group; without a group, the value itself."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    shared = torch.tensor(value, device=device, dtype=torch.float32)
    if average:
        dist.all_reduce(shared)
        return shared.item() / dist.get_world_size()
    dist.broadcast(shared, src=0)
    return shared.item()
