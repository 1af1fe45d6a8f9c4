"""How fast? Ours beside the peers and, for the small network, beside what its arithmetic alone costs.

    python tests/benchmarks/bench.py                          measure all rows, on all cores (about 10 minutes on two)
    python tests/benchmarks/bench.py --rows start,batches     these rows; the others keep their stored figures
    python tests/benchmarks/bench.py --device cuda            the same on a GPU, stored beside the processor's figures
    python tests/benchmarks/bench.py --quick --output FILE    does it run at all? tiny sizes, one turn each
    python tests/benchmarks/bench.py --table                  print the table of the stored figures
    python tests/benchmarks/bench.py --write README.md        put it between the page's markers

Each contestant lives in a process of its own. They take turns, one at a time and in a changing order, so that whatever
slows the machine down for a while falls on all of them; a ratio is taken within each turn. The first turn warms up and
is not counted. Every row is stored as soon as it is done.

sampler.json, beside this file, names the sampler and the number of steps that the row "sample" gives ours. The remark
below the table says how its samples compare with those of 1000 ancestral steps, as `tools/steps.py` measured it.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import torch  # noqa: E402 (what the folders above hold is needed first, and the processes below need it too)
from rows import QUICK, ROWS, Sizes, peak_memory  # noqa: E402

from ddpm_utils.evaluation import Measured  # noqa: E402
from notebooks import Unfit, between_markers, write  # noqa: E402

RESULTS = Path(__file__).with_name("results.json")
SAMPLER = Path(__file__).with_name("sampler.json")
QUALITY = ROOT / "notebooks" / "data" / "06_steps.json"
TURNS = 5


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which ones, of {','.join(ROWS)}")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each contestant (default: all cores)")
    parser.add_argument("--turns", type=int, default=TURNS, help="how often each contestant is measured")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one turn: only to see that it runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file of the figures; read by --table too")
    parser.add_argument("--table", action="store_true", help="print the table of the stored figures, measure nothing")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into FILE, measure nothing")
    args = parser.parse_args(argv)
    names = [name for name in args.rows.split(",") if name]
    if unknown := set(names) - ROWS.keys():
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if args.quick and args.output == RESULTS:
        parser.error("--quick needs an --output: its figures say nothing about speed")
    if args.threads < 1 or args.turns < 1:
        parser.error("--threads and --turns must be at least 1")
    try:
        if args.write:
            write(
                args.write, between_markers(args.write.read_text(encoding="utf-8"), table(load(args.output)), "bench")
            )
        elif args.table:
            print(table(load(args.output)), end="")
        else:
            measure(names, args)
    except Unfit as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


# ---- measuring ------------------------------------------------------------------------------------------------------


def measure(names: list[str], args: argparse.Namespace) -> None:
    """Measure the rows named, one after the other, and store each as soon as it is done."""
    chosen = json.loads(SAMPLER.read_text(encoding="utf-8"))
    sizes = Sizes(device=args.device, sampler=chosen["sampler"], steps=chosen["steps"])
    if args.quick:
        sizes = Sizes(**QUICK, device=args.device)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # read by the processes to come, when they start
    for name in names:
        row, start = ROWS[name], time.perf_counter()
        taking_part = [c for c in row.contestants if importlib.util.find_spec(c.needs)]
        for contestant in set(row.contestants) - set(taking_part):
            print(f"{name}: without {contestant.name}, as {contestant.needs} is not installed", flush=True)
        result = context(args) | {"title": row.title(sizes), "images": row.images(sizes) if row.images else None}
        result["contestants"] = take_turns(name, [c.name for c in taking_part], sizes, args)
        known = load(args.output)
        known.setdefault(args.device, {})[name] = result
        write(args.output, json.dumps(known, indent=1) + "\n")
        print(f"{name}: done in {time.perf_counter() - start:.0f} s", flush=True)


def context(args: argparse.Namespace) -> dict:
    """Where and when: what a figure of speed means nothing without."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    packages = ("torch", "torchvision", "diffusers", "denoising-diffusion-pytorch")
    return {
        "date": str(date.today()),
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "flags": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{f}\b", cpuinfo)],
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "",
        "threads": args.threads,
        "load": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in packages if version(name)},
    }


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def take_turns(name: str, contestants: list[str], sizes: Sizes, args: argparse.Namespace) -> list[dict]:
    """Seconds of each turn and the peak of memory, of each contestant."""
    turns = 1 if args.quick else args.turns
    with processes(name, contestants, args) as connections:
        notes = {}
        for connection in connections.values():
            ask(connection, "memory")  # answered when all its imports are done: they would disturb who is built first
        for contestant, connection in connections.items():  # one at a time: some measure while they are built
            notes[contestant], setup = ask(connection, "build", sizes)
            sizes = replace(sizes, setup=sizes.setup or setup)  # ours comes first
            print(f"{name}: {contestant}: {notes[contestant]}", flush=True)
        seconds = {contestant: [] for contestant in contestants}
        for turn in range(turns + 1):
            for contestant in order(contestants, turn):
                spent = ask(connections[contestant], "run")
                print(f"{name}: {contestant}: {spent:.3f} s{'' if turn else ' (warming up)'}", flush=True)
                if turn:
                    seconds[contestant].append(spent)
        return [
            {"name": c, "note": notes[c], "seconds": seconds[c], "memory_mb": round(ask(connections[c], "memory"))}
            for c in contestants
        ]


def order(contestants: list[str], turn: int) -> list[str]:
    """Everyone once, each turn beginning with another one."""
    first = turn % len(contestants)
    return contestants[first:] + contestants[:first]


@contextmanager
def processes(name: str, contestants: list[str], args: argparse.Namespace) -> Iterator[dict[str, Connection]]:
    """One process for each contestant, and the connection to it; they end with the block."""
    spawn, started, connections = multiprocessing.get_context("spawn"), [], {}
    try:
        for contestant in contestants:
            connections[contestant], theirs = spawn.Pipe()
            # not a daemon: a contestant may start processes of its own
            process = spawn.Process(target=serve, args=(theirs, name, contestant, args.device, args.threads))
            process.start()
            theirs.close()
            started.append(process)
        yield connections
    finally:
        for connection in connections.values():
            connection.close()  # which the process takes as the end
        for process in started:
            process.join(20)
            process.terminate()


def ask(connection: Connection, command: str, argument: Sizes | None = None) -> Any:
    """Send a command to a contestant and wait for its answer. Raises Unfit, with its message, where it fails."""
    try:
        connection.send((command, argument))
        answer, failure = connection.recv()
    except (EOFError, BrokenPipeError) as error:
        raise Unfit("a contestant's process ended before its work was done") from error
    if failure:
        raise Unfit(failure)
    return answer


def serve(connection: Connection, name: str, contestant: str, device: str, threads: int) -> None:
    """In the contestant's process: do what is asked until the connection is closed."""
    multiprocessing.set_start_method(None, force=True)  # for a contestant's own processes: what is usual here, again
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what is called float32
    row = ROWS[name]
    build = next(c.build for c in row.contestants if c.name == contestant)
    before, fresh_peak, work = peak_memory(), 0.0, None
    while True:
        try:
            command, argument = connection.recv()
        except EOFError:
            return
        try:
            if command == "build":
                work = build(argument)
                answer = work.note, work.setup
            elif command == "run":
                start = time.perf_counter()
                returned = work.run()
                if device == "cuda":
                    torch.cuda.synchronize()
                answer = (time.perf_counter() - start) / work.share
                fresh_peak = max(fresh_peak, returned) if row.fresh else 0.0
            elif row.fresh:
                answer = fresh_peak
            elif device == "cuda":
                answer = torch.cuda.max_memory_allocated() / 2**20
            else:
                answer = peak_memory() - before
            connection.send((answer, ""))
        except Exception:  # whatever it is, the one who asked must know
            connection.send((None, f"{contestant}: {traceback.format_exc()}"))


# ---- the table ------------------------------------------------------------------------------------------------------

HEADER = """| what | ours | against | theirs | ours is faster by | memory, ours / theirs | on a GPU |
|---|--:|---|--:|--:|--:|--:|
"""


def load(path: Path) -> dict:
    """What is stored: device -> row -> figures; empty where nothing is."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def table(results: dict) -> str:
    """The table of the stored figures, in Markdown: one line per row and contestant beside ours."""
    lines = []
    cpu, gpu = results.get("cpu", {}), results.get("cuda", {})
    for name, row in ROWS.items():
        measured = cpu.get(name) or gpu.get(name)
        title = measured["title"] if measured else row.title(Sizes())
        for i, contestant in enumerate(row.contestants[1:]):
            cells = cpu_cells(cpu.get(name), contestant.name, row.bound)
            on_gpu = faster(gpu.get(name), contestant.name, row.bound)
            first = [title, cells[0]] if i == 0 else ["", ""]  # the same for all its lines: told once
            lines.append(f"| {' | '.join([*first, *cells[1:], on_gpu])} |\n")
    sampled = cpu.get("sample") or gpu.get("sample")
    remarks = [f"{sampled['title']}: {quality(load(SAMPLER), load(QUALITY))}"] if sampled else []
    remarks += [*conditions(cpu), *conditions(gpu)]
    return HEADER + "".join(lines) + "".join(f"\n{remark}\n" for remark in remarks)


def cpu_cells(measured: dict | None, name: str, bound: bool) -> list[str]:
    ours, theirs = pair(measured, name)
    if not theirs:
        return ["–", name, "–", "–", "–"]
    return [
        f"{speed(ours, measured['images'])} ({ours['note']})",
        f"{name} ({theirs['note']})",
        speed(theirs, measured["images"]),
        faster(measured, name, bound),
        " / ".join(memory(contestant["memory_mb"]) for contestant in (ours, theirs)),
    ]


def pair(measured: dict | None, name: str) -> tuple[dict | None, dict | None]:
    """Ours, and the contestant of that name, if both were measured."""
    contestants = {c["name"]: c for c in measured["contestants"]} if measured else {}
    return contestants.get("ours"), contestants.get(name)


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """How many times as long theirs takes, turn by turn."""
    return [b / a for a, b in zip(ours, theirs, strict=True)]


def faster(measured: dict | None, name: str, bound: bool) -> str:
    """Median and range of the ratios; marked where ours is the slower one, which no one can help beside a bound."""
    ours, theirs = pair(measured, name)
    if not theirs:
        return "–"
    found = ratios(ours["seconds"], theirs["seconds"])
    low, middle, high = min(found), statistics.median(found), max(found)
    if bound:
        return f"{middle:.0%} of it ({low:.0%}–{high:.0%})"
    text = f"{number(middle)} ({number(low)}–{number(high)})"
    return f"**{text}: slower**" if middle < 1 else text


def speed(contestant: dict, images: int | None) -> str:
    seconds = statistics.median(contestant["seconds"])
    return f"{number(images / seconds)} images/s" if images else f"{number(seconds)} s"


def number(value: float) -> str:
    """Three digits, and no more places than that."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def memory(megabytes: float) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def quality(chosen: dict, measured: dict) -> str:
    """What the samples are worth beside those of the longest ancestral chain, by the figures of tools/steps.py."""
    found = measured.get("rows", [])
    ours = next((row for row in found if (row["sampler"], row["steps"]) == (chosen["sampler"], chosen["steps"])), None)
    ancestral = [row for row in found if row["sampler"] == "ddpm-posterior"]
    if not ours or not ancestral:
        return "the quality of its samples has not been compared yet."
    longest = max(ancestral, key=lambda row: row["steps"])
    p, q = (Measured(*(100 * part for part in row["recognised"])) for row in (ours, longest))
    d, e = (Measured(*row["frechet"]) for row in (ours, longest))
    apart = [abs(a.value - b.value) / math.hypot(a.error, b.error) for a, b in ((p, q), (d, e))]
    return (
        f"of {measured['number']} unguided images of the shipped model (`tools/steps.py`, in "
        f"{QUALITY.relative_to(ROOT).as_posix()}), our classifier recognises {p:.1f}% after {ours['steps']} steps and "
        f"{q:.1f}% after {longest['steps']} ancestral ones; the Frechet distances are {d:.2f} and {e:.2f} (less is "
        f"better). They differ by {apart[0]:.1f} and {apart[1]:.1f} times the difference's standard error."
    )


def conditions(rows: dict[str, dict]) -> Iterator[str]:
    """Under which conditions the rows were measured: one sentence for each set of conditions."""
    seen: dict[str, list[dict]] = {}
    for row in rows.values():
        turns = len(row["contestants"][0]["seconds"])
        where = f"{row['gpu']}, " if row["gpu"] else ""
        where += f"{row['cpu']}, {row['cores']} cores ({', '.join(row['flags'])}), {row['threads']} threads"
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        text = f"Median and range of {turns} turns, measured {row['date']} on {where}; {versions}; load at the start "
        seen.setdefault(text, []).append(row)
    for text, alike in seen.items():
        loads = sorted(row["load"] for row in alike)
        yield text + (f"{loads[0]}" if loads[0] == loads[-1] else f"{loads[0]}–{loads[-1]}") + "."


if __name__ == "__main__":
    sys.exit(main())
