"""Train a diffusion model on CIFAR-10, and draw samples from it.

    python main.py                                  train the SMALL U-Net; run again to continue
    python main.py --minutes 30                     the same within 30 minutes, learning-rate schedule included
    python main.py --data FOLDER                    your own images: FOLDER/CLASS/IMAGE
    python main.py --preset paper --no-labels       the 35.7M-parameter U-Net of Ho et al.
    torchrun --nproc_per_node=4 main.py             one model on four GPUs
    python main.py sample --label 3 --guidance 2    draw images of class 3; `python main.py sample --help` has more
    python main.py evaluate --data FOLDER           measure a model; `python main.py evaluate --help` has more

Training writes samples/step_NNNNNN.png, checkpoints/last.safetensors and log.csv into --out.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor
from torchvision.utils import save_image
from tqdm import tqdm

from ddpm_utils.checkpoint import PRETRAINED, Trained, load_model, save_checkpoint
from ddpm_utils.data import ImageSet, load_images, to_float
from ddpm_utils.diffusion import DDPM, cosine_betas, linear_betas, posterior_variances
from ddpm_utils.evaluation import SIZES, Judge, held_out_loss, inception_fid, load_classifier, look_shuffled, prior_bits
from ddpm_utils.hardware import Setup, best_device, fastest, keep_freed_memory, measure_setups
from ddpm_utils.sampling import last, noise_model, sample_ddim, sample_ddpm, sample_dpmpp, start_noise
from ddpm_utils.training import Progress, Run, TrainConfig, load_run, option, save_run, train
from ddpm_utils.unet import PAPER, SMALL, TINY, UNet, UNetConfig

PRESETS = {"tiny": TINY, "small": SMALL, "paper": PAPER}
SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}
SAMPLERS = {
    "ddim": lambda o, *a, generator: sample_ddim(*a, steps=o.steps, eta=o.eta, generator=generator),
    "ddpm": lambda o, *a, generator: sample_ddpm(*a, steps=o.steps, generator=generator),
    "ddpm-posterior": lambda o, *a, generator: sample_ddpm(
        *a, steps=o.steps, variances=posterior_variances, generator=generator
    ),
    "dpmpp": lambda o, *a, generator: sample_dpmpp(*a, steps=o.steps),
}


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    preset: str = option("small", f"size of the U-Net: {', '.join(PRESETS)}")
    labels: bool = option(True, "condition on the class of the image")
    data: str = option("auto", "auto, cifar10, shapes, or a folder of class folders of images")
    schedule: str = option("linear", f"noise schedule: {', '.join(SCHEDULES)}")
    T: int = option(1000, "number of noising steps")
    out: str = option(".", "folder for samples/, checkpoints/ and log.csv")
    init_from: str = option("", "start a new run from the EMA weights of this checkpoint")
    sample_every: int = option(1000, "steps between two grids of samples")
    save_every: int = option(200, "steps between two checkpoints")
    device: str = option("", "cpu, cuda, mps; by default the best there is")
    bf16: bool | None = option(None, "compute in bfloat16; by default whatever is measured to be faster")

    def __post_init__(self):
        super().__post_init__()
        _one_of("preset", self.preset, PRESETS)
        _one_of("schedule", self.schedule, SCHEDULES)
        for name in ("T", "sample_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class SampleOptions:
    checkpoint: str = option(
        "", "by default checkpoints/last.safetensors, or else the model that ships with the module"
    )
    number: int = option(64, "how many images")
    sampler: str = option(
        "ddpm-posterior",
        "ddpm-posterior (ancestral, sigma^2 = posterior variance), ddpm (sigma^2 = beta), ddim, "
        "or dpmpp (DPM-Solver++ 2M: for 10 to 20 steps)",
    )
    steps: int = option(50, "how many denoising steps")
    eta: float = option(0.0, "noise of the ddim sampler, from 0 to 1")
    label: int = option(-1, "class to draw; -1: all classes in turn")
    guidance: float = option(1.0, "1: plain conditional; above 1: more typical images; 0: labels ignored")
    seed: int = option(0, "the same seed draws the same images")
    output: str = option("samples/samples.png", "where the grid goes")
    device: str = option("", "cpu, cuda, mps; by default the best there is")

    def __post_init__(self):
        _one_of("sampler", self.sampler, SAMPLERS)
        if self.eta < 0 or (self.eta and self.sampler != "ddim"):
            raise ValueError(f"eta must not be negative, and belongs to --sampler ddim alone; it is {self.eta}.")
        for name in ("number", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class EvaluateOptions:
    checkpoint: str = option("", "by default the model that ships with the module")
    data: str = option("auto", "real images to compare with: its train split; its test split gives the baseline")
    trained_on: str = option("", "the images that the model was trained on, if others than data's train split")
    compare: str = option("", "a second checkpoint, measured beside the first")
    number: int = option(2000, "samples per measurement")
    sampler: str = option("ddim", f"one of {', '.join(SAMPLERS)}")
    steps: int = option(25, "how many denoising steps")
    guidance: float = option(2.0, "of the guided samples; unguided ones are measured anyway")
    sweep: str = option("5,10,50", "other numbers of steps, measured with a quarter of the samples")
    seed: int = option(0, "of the samples and of the held-out noise")
    fid: bool = option(False, "also FID with Inception features: needs torchmetrics and a network")
    output: str = option("evaluation.json", "where the figures go")
    features: str = option("", "also keep the classifier's features of the samples, in this file (.safetensors)")
    device: str = option("", "cpu, cuda, mps; by default the best there is")

    def __post_init__(self):
        _one_of("sampler", self.sampler, SAMPLERS)
        if self.number < 4 * SIZES[0]:
            raise ValueError(
                f"number must be at least {4 * SIZES[0]}, or a quarter of it is too few for a Frechet distance; "
                f"it is {self.number}."
            )
        if not all(part.strip().isdigit() and int(part) for part in self.sweep.split(",") if part):
            raise ValueError(f"sweep must be numbers of steps, such as 5,10,50, not {self.sweep!r}.")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """One sentence instead of the whole usage: --help is there for that."""
        self.exit(2, f"main.py: {message} (--help lists the options)\n")


def main(argv: list[str] | None = None) -> int:
    """The command line: argv without the program's name. Returns the exit status; bad options exit with 2."""
    words = sys.argv[1:] if argv is None else argv
    commands = {"sample": (run_sampling, SampleOptions), "evaluate": (run_evaluation, EvaluateOptions)}
    command, options = commands.get(words[0] if words else "", (run_training, TrainOptions))
    words = words if command is run_training else words[1:]
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_options(parser, options)
    arguments = parser.parse_args(words)
    try:
        return command(options(**vars(arguments)))
    except (ValueError, FileNotFoundError) as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    except (OSError, FloatingPointError) as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()  # its threads must end before the process does, or it aborts at random


def run_training(options: TrainOptions) -> int:
    """Train, or continue, the run in options.out, alone. Returns the exit status."""
    device, first = join_processes(options.device)
    keep_freed_memory()
    data, ddpm = load_images(options.data), DDPM(SCHEDULES[options.schedule](options.T))
    with alone_in(Path(options.out)) if first else contextlib.nullcontext():
        run, setup = start_run(options, ddpm, data, device, first)
        if first:
            parameters = sum(p.numel() for p in run.model.parameters())
            where = f"{device}, {setup}; {options.preset} U-Net, {parameters:,} parameters"
            print(f"{data.source}, {len(data)} images; {where}.")
            return follow_run(options, run, ddpm, data, setup)
        for _ in train(run, ddpm, data, setup):
            pass
        return 0


def join_processes(device_name: str) -> tuple[torch.device, bool]:
    """The device of this process, and whether it is the one that speaks and writes: the first, or the only one."""
    device = pick_device(device_name)
    if "RANK" not in os.environ:  # set by torchrun
        return device, True
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device, dist.get_rank() == 0


def start_run(
    options: TrainOptions, ddpm: DDPM, data: ImageSet, device: torch.device, first: bool
) -> tuple[Run, Setup]:
    """The run to go on with: a new one, or the one in options.out's checkpoint."""
    config = TrainConfig(**{field.name: getattr(options, field.name) for field in fields(TrainConfig)})
    unet = replace(PRESETS[options.preset], num_classes=len(data.class_names) if options.labels else 0)
    checkpoint = checkpoint_in(options.out)
    if first:
        for half_written in checkpoint.parent.glob(f"{checkpoint.name}.*.partial"):  # by a process that was killed
            half_written.unlink()
    if checkpoint.exists():
        run, setup = load_run(checkpoint, ddpm, data, config, device)
        if run.model.config != unet:
            raise ValueError(f"{checkpoint} holds another model (--preset or --labels differ); choose another --out.")
        if first:
            print(f"Continuing {checkpoint} at step {run.step}.")
        return run, setup
    torch.manual_seed(config.seed)  # the initial weights
    model, images_before = initial_model(unet, options.init_from)
    run = Run(model.to(device), config, images_before)
    shared = [pick_setup(run.model, config, options.bf16) if first else None]
    if dist.is_initialized():  # measured apart, the processes might not agree
        dist.broadcast_object_list(shared, src=0)
    return run, shared[0]


def follow_run(options: TrainOptions, run: Run, ddpm: DDPM, data: ImageSet, setup: Setup) -> int:
    """Train to the end, or to Ctrl-C, with a log, checkpoints and samples on the way. Returns the exit status."""
    out, checkpoint = Path(options.out), checkpoint_in(options.out)

    def keep() -> None:
        save_run(checkpoint, run, ddpm, data, setup)

    def draw() -> None:
        picture = out / "samples" / f"step_{run.step:06d}.png"
        write_grid(picture, Trained(run.ema.model, ddpm, data.class_names, {}), SampleOptions(guidance=2.0), setup)

    if run.fraction >= 1:
        print(f"This run is finished ({run.step} steps). Give more --steps or --minutes to go on, or another --out.")
        return 0
    stopped = stop_flag()
    with open_log(out / "log.csv", run.step) as log, tqdm(initial=run.step, unit="step") as bar:
        bar.total = None if run.config.minutes else run.config.steps
        for progress in train(run, ddpm, data, setup):
            bar.set_postfix_str(describe(progress), refresh=False)
            bar.update()
            if run.step % 10 == 0:
                columns = progress.step, progress.loss, progress.lr, progress.images_per_second, progress.seconds
                print(*(f"{value:.6g}" for value in columns), sep=",", file=log, flush=True)
            if run.step % options.save_every == 0 or stopped:
                keep()
            if stopped:
                print(f"\nStopped at step {run.step}; the same command continues from there.")
                return 130
            if run.step % options.sample_every == 0:
                draw()
    keep()
    draw()
    print(f"Done: {run.step} steps in {run.seconds / 60:.0f} minutes. See {out / 'samples'}; weights: {checkpoint}.")
    return 0


def checkpoint_in(out: str) -> Path:
    """Where a run in the folder out keeps its state."""
    return Path(out) / "checkpoints" / "last.safetensors"


def run_sampling(options: SampleOptions) -> int:
    """Draw a grid of images. Returns the exit status."""
    device = pick_device(options.device)
    default = checkpoint_in(".")
    path = Path(options.checkpoint) if options.checkpoint else default if default.exists() else PRETRAINED
    trained = load_model(path, device)
    setup = fastest(measure_setups(trained.model))
    write_grid(Path(options.output), trained, options, setup)
    print(f"{options.number} images from {path.name} ({setup}): {options.output}")
    return 0


@torch.no_grad()
def run_evaluation(options: EvaluateOptions) -> int:
    """Measure a model and write the figures as JSON. Returns the exit status."""
    device = pick_device(options.device)
    path = Path(options.checkpoint or PRETRAINED)
    trained = load_model(path, device)
    models = {"measured": trained} | ({"compared": load_model(options.compare, device)} if options.compare else {})
    train_set, test_set = load_images(options.data), load_images(options.data, "test")
    known = load_images(options.trained_on) if options.trained_on else train_set
    classifier, _ = load_classifier()
    judge = Judge(classifier, train_set, known)
    setup = fastest(measure_setups(trained.model))

    def drawn(model: Trained, guidance: float, steps: int, number: int) -> tuple[Tensor, Tensor]:
        wish = SampleOptions(number=number, sampler=options.sampler, steps=steps, guidance=guidance, seed=options.seed)
        return draw_images(model, wish, setup)

    sets = {"real": judge(*look_shuffled(classifier, test_set.images, test_set.labels))}
    if options.trained_on:
        copies = load_images(options.trained_on, "test")
        sets["real, as trained on"] = judge(*look_shuffled(classifier, copies.images, copies.labels))
    wishes = {
        "unguided": (trained, 1.0, options.steps, options.number),
        "guided": (trained, options.guidance, options.steps, options.number),
    }
    for steps in (int(part) for part in options.sweep.split(",") if part):
        wishes[f"guided, {steps} steps"] = (trained, options.guidance, steps, options.number // 4)
    if "compared" in models:
        wishes["compared"] = (models["compared"], 1.0, options.steps, options.number)
    fid, kept = {}, {}
    for name, wish in wishes.items():
        start = time.perf_counter()
        images, labels = drawn(*wish)
        seconds = time.perf_counter() - start
        seen, intended = look_shuffled(classifier, images, labels)
        sets[name] = judge(seen, intended)
        kept |= {f"{name}.features": seen.features, f"{name}.labels": intended}
        recognised, *_, distance = sets[name]["recognised"], *sets[name]["frechet"].values()
        print(f"{name}: {seconds:.0f} s, recognised {recognised:.3f}, Frechet distance {distance:.3f}", flush=True)
        if options.fid and name in ("unguided", "guided"):
            fid[name] = inception_fid(images, to_float(train_set.images))

    def timed() -> float:
        start = time.perf_counter()
        drawn(trained, options.guidance, options.steps, 64)
        return time.perf_counter() - start

    eps_model = noise_model(trained.model, setup=setup)
    results = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}, {setup}",
        "options": {k: v for k, v in vars(options).items() if k not in ("output", "features", "device")},
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "data": [train_set.source, len(train_set), len(test_set), known.source, len(known)],
        "models": {name: size_and_training(model) for name, model in models.items()},
        "sets": sets,
        "fid": fid,
        "held_out": [row._asdict() for row in held_out_loss(eps_model, trained.ddpm, test_set.images, options.seed)],
        "prior_bits": prior_bits(trained.ddpm, test_set.images),
        "seconds_64_guided": sorted(timed() for _ in range(3))[1],
    }
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    Path(options.output).write_text(json.dumps(results, indent=1) + "\n")
    if options.features:
        save_checkpoint(options.features, kept, {"options": results["options"], "weights_sha256": results["sha256"]})
    print(f"All figures: {options.output}")
    return 0


def size_and_training(trained: Trained) -> dict:
    return {"parameters": sum(p.numel() for p in trained.model.parameters()), "images_seen": trained.images_seen}


def write_grid(path: Path, trained: Trained, options: SampleOptions, setup: Setup) -> None:
    """Draw options.number images and write them as one picture."""
    images, _ = draw_images(trained, options, setup)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = 10 if len(trained.class_names) == 10 else 8
    save_image(images, path, nrow=columns, normalize=True, value_range=(-1, 1), padding=1)


def draw_images(trained: Trained, options: SampleOptions, setup: Setup) -> tuple[Tensor, Tensor]:
    """options.number images, (N, 3, H, W), drawn in chunks that fit any memory, and the class that each should show."""
    model, ddpm, classes = setup.arrange(trained.model), trained.ddpm, trained.model.config.num_classes
    device = next(model.parameters()).device
    if options.label >= 0 and not classes:
        raise ValueError("label was given, but this model was trained without classes.")
    if options.label >= classes > 0:
        raise ValueError(f"label must lie in 0...{classes - 1}: {', '.join(trained.class_names)}.")
    x_T, generator = start_noise(options.number, options.seed)
    in_turn = torch.arange(options.number) % max(classes, 1)
    y = in_turn if options.label < 0 else torch.full_like(in_turn, options.label)
    images = []
    for part in torch.arange(options.number).split(64):
        labels = y[part].to(device) if classes else None
        eps_model = noise_model(model, labels, options.guidance if classes else 1.0, setup)
        steps = SAMPLERS[options.sampler](options, eps_model, ddpm, x_T[part].to(device), generator=generator)
        images.append(last(steps).cpu())
    return torch.cat(images), y


def initial_model(config: UNetConfig, path: str) -> tuple[UNet, int]:
    """A new model, or one that starts from the EMA weights of another run; and how many images it has seen."""
    if not path:
        return UNet(config), 0
    trained = load_model(path)
    if trained.model.config != config:
        raise ValueError(f"{path} holds another model than --preset and --labels ask for.")
    return trained.model.requires_grad_(True), trained.images_seen


def pick_device(name: str) -> torch.device:
    try:
        device = torch.device(name) if name else best_device()
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, for a name or a device that is not there
        raise ValueError(f"device {name} cannot be used here ({str(error).splitlines()[0]}).") from error
    return device


def pick_setup(model: UNet, config: TrainConfig, bf16: bool | None) -> Setup:
    """The fastest way to compute here, and a word on how long the run will take."""
    seconds = measure_setups(model)
    setup = fastest({s: seconds[s] for s in seconds if bf16 is None or s.bf16 == bf16})
    for candidate, value in seconds.items():
        print(f"  {candidate}: {1 / value:.0f} images per second{'  <- taken' if candidate == setup else ''}")
    hours = seconds[setup] * config.batch_size * config.steps / 3600
    print(f"At this speed {config.steps} steps take about {hours:.1f} hours here; --minutes sets a budget instead.")
    return setup


def describe(progress: Progress) -> str:
    left = progress.seconds_left
    clock = f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.0f} min"
    return f"loss {progress.loss:.4f}, {progress.images_per_second:.0f} img/s, {clock} left"


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Held by one process at a time, of those training into a folder. It ends with the process, however that ends."""
    lock = FileLock(out / "training.lock", timeout=0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process is training into {out}. Stop it first, or give another --out.") from error
    except OSError as error:
        raise OSError(f"{out} cannot be written to ({error}).") from error
    try:
        yield
    finally:
        lock.release()


def open_log(path: Path, step: int) -> TextIO:
    """log.csv, ready to append to; lines beyond the step that the run continues from are dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines()[1:] if path.exists() and step else []
    kept = [line for line in lines if line.count(",") == 4 and int(line.split(",")[0]) <= step]
    complete = path.with_name(f"{path.name}.partial")
    complete.write_text("\n".join(["step,loss,lr,images_per_second,seconds", *kept, ""]))
    os.replace(complete, path)  # in one go: a process killed in between leaves the old rows
    return path.open("a")


def stop_flag() -> list[int]:
    """A list that is no longer empty once Ctrl-C was pressed: a run stops between two steps, not within one."""
    pressed: list[int] = []

    def on_signal(number: int, _frame) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    signal.signal(signal.SIGINT, on_signal)
    return pressed


def add_options(parser: argparse.ArgumentParser, options: type) -> None:
    """One command-line option per field of the dataclass, with its default and its help."""
    for item in fields(options):
        default = "" if item.default in ("", None) else f" (default: {item.default})"
        text = item.metadata["help"] + default
        name = "--" + item.name.replace("_", "-")
        if item.type in (bool, "bool | None", bool | None):
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=item.default, help=text)
        else:
            parser.add_argument(
                name, type=type(item.default), default=item.default, help=text, metavar=item.name.upper()
            )


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}.")


if __name__ == "__main__":
    sys.exit(main())
