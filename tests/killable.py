"""main.py in a process of its own, with a nano network: to be killed at any moment. Imports little, to start fast."""

import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

import torch
from safetensors import safe_open

import main
from ddpm_utils import checkpoint
from ddpm_utils.unet import TINY

# A server that has imported everything forks a process per run. Windows has no fork: there, each run imports anew.
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_context = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    _context.set_forkserver_preload(["pytest", "torchvision", "tqdm", "ddpm_utils.training", "ddpm_utils.evaluation"])
_numbers = itertools.count()
_LAST_WORDS = {"fsync": os, "replace": os}  # what save_checkpoint calls, in order


def start(folder: Path, *options: str, die: str = "", note: bool = False) -> multiprocessing.Process:
    """Start `main.py --out folder options`; what it says goes to the file process.said.

    die: "before" or "after" and a function that save_checkpoint calls, or "halfway fsync" (while the file is written):
    the process kills itself there, at step 5.
    note: write step and hash of everything saved to the file folder/saved.txt.
    """
    said = folder.parent / f"{folder.name}-{next(_numbers)}.txt"
    process = _context.Process(target=_train, args=(folder, said, options, die, note))
    process.said = said
    process.start()
    return process


def saved_in(folder: Path) -> tuple[int, str]:
    """Step and hash of the checkpoint in a run's folder. load_checkpoint refuses one that is not whole."""
    path = folder / "checkpoints" / "last.safetensors"
    _, info = checkpoint.load_checkpoint(path)
    with safe_open(path, "pt") as file:
        return info["step"], json.loads(file.metadata()["ddpm_utils"])["sha256"]


def _train(folder: Path, said: Path, options: tuple[str, ...], die: str, note: bool) -> None:
    torch.set_num_threads(1)
    main.tqdm.set_lock(threading.RLock())  # its own would outlive a killed process
    sys.stdout = sys.stderr = open(said, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 (until it is killed)
    main.PRESETS["tiny"] = main.replace(TINY, channels=8, groups=1)
    main.measure_setups = lambda model: {main.Setup(): 1e-3}
    main.write_grid = lambda *arguments: None
    if die:
        _die(*die.split())
    if note:
        _note(folder)
    status = main.main(["--preset", "tiny", "--batch-size", "4", "--device", "cpu", "--out", str(folder), *options])
    sys.stdout.close()
    os._exit(status)


def _die(when: str, name: str) -> None:
    real, calls = getattr(_LAST_WORDS[name], name), itertools.count(1)

    def deadly(*arguments, **more):
        of_the_log = name == "replace" and "safetensors" not in str(arguments[0])
        if of_the_log or next(calls) < 5:
            return real(*arguments, **more)
        if when == "after":
            real(*arguments, **more)
        if when == "halfway":  # as if killed while writing: half of the file is there
            os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    setattr(_LAST_WORDS[name], name, deadly)


def _note(folder: Path) -> None:
    save_run = main.save_run

    def noted(*arguments):
        save_run(*arguments)
        with open(folder / "saved.txt", "a") as file:
            print(*saved_in(folder), file=file)

    main.save_run = noted
