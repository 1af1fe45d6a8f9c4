"""Execute the notebooks and save them clean; count what is in them.

    python tools/notebooks.py run                    all of them, each in a fresh kernel
    python tools/notebooks.py run 02 --times         those whose names start so; note the seconds they took
    python tools/notebooks.py twice                  Run All twice in one kernel; say what differs the second time
    python tools/notebooks.py table                  print the table; --write README.md puts it between its markers

Clean: executed 1...n, fixed cell ids, no widgets (the pictures beside them stay), no times, versions or paths.
Saving twice changes nothing. A notebook that raises, or writes to stderr, is left as it was, and the exit status is 1.
"""

import argparse
import copy
import json
import os
import re
import sys
import time
from datetime import date
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
TIMES = ROOT / "tools" / "notebook_times.json"
CELL_TIMEOUT = 300  # seconds
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}


class Unfit(Exception):
    """A notebook that must not be saved; the message says why."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="execute notebooks and save them")
    command.add_argument("names", nargs="*", help="beginnings of names, such as 02; none means all")
    command.add_argument("--times", type=Path, nargs="?", const=TIMES, help="write the seconds into this JSON file")
    command = commands.add_parser("twice", help="execute notebooks twice in one kernel and compare; saves nothing")
    command.add_argument("names", nargs="*", help="beginnings of names, such as 02; none means all")
    command = commands.add_parser("table", help="count what is in the notebooks")
    command.add_argument("--times", type=Path, default=TIMES, help="JSON file that holds the seconds")
    command.add_argument("--write", type=Path, metavar="FILE", help="put the table into FILE, between its markers")
    args = parser.parse_args(argv)
    try:
        if args.command == "run":
            return run(args.names, args.times)
        if args.command == "twice":
            return twice(args.names)
        text = table(json.loads(args.times.read_text(encoding="utf-8")) if args.times.exists() else {})
        if args.write:
            write(args.write, between_markers(args.write.read_text(encoding="utf-8"), text, "times"))
        else:
            print(text)
        return 0
    except Unfit as problem:
        print(problem, file=sys.stderr)
        return 1


# ---- run ------------------------------------------------------------------------------------------------------------


def run(names: list[str], times: Path | None) -> int:
    """Execute and save the notebooks named, in order; the seconds go into the JSON file times. The exit status."""
    status = 0
    for path in find(names):
        load = round(os.getloadavg()[0], 1)
        try:
            seconds = execute(path)
        except Unfit as problem:
            print(f"{path.name} is left as it was: {problem}", file=sys.stderr)
            status = 1
            continue
        print(f"{path.name}: {seconds:.1f} s", flush=True)
        if times:
            known = json.loads(times.read_text(encoding="utf-8")) if times.exists() else {}
            measured = {"seconds": round(seconds, 1), "date": str(date.today()), "cpus": os.cpu_count(), "load": load}
            write(times, json.dumps(known | {path.stem: measured}, indent=1, sort_keys=True) + "\n")
    return status


def find(names: list[str]) -> list[Path]:
    """The notebooks whose names start with one of names, or all, in order. Unfit where a name fits none."""
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    for name in names:
        if not any(path.name.startswith(Path(name).name) for path in paths):
            raise Unfit(f"no notebook's name starts with {name}")
    return [path for path in paths if not names or path.name.startswith(tuple(Path(name).name for name in names))]


def execute(path: Path) -> float:
    """Execute a notebook in a fresh kernel, in its own folder, and save it clean. Returns the seconds it took."""
    notebook = unexecuted(path)
    seconds = run_cells(notebook, path.parent)
    clean(notebook)
    write(path, dump(notebook))
    return seconds


def unexecuted(path: Path) -> NotebookNode:
    """The notebook with nothing but its sources, tags and ids."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    give_ids(raw, path.stem[:2])  # before nbformat reads it, which would make up ids at random
    notebook = nbformat.reads(json.dumps(raw), as_version=4)
    for cell in notebook.cells:
        cell.metadata = NotebookNode({"tags": cell.metadata.tags} if cell.metadata.get("tags") else {})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            if not cell.source.strip():
                raise Unfit(f"cell {cell.id} is empty")
    return notebook


def run_cells(notebook: NotebookNode, folder: Path) -> float:
    """Fill in the outputs of all cells, from one fresh kernel in folder. Returns the seconds it took."""
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
    )
    environment = {"DDPM_DATA": "shapes", **os.environ}  # the same images everywhere, unless others are asked for
    start = time.perf_counter()
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise Unfit(str(error)) from error
    return time.perf_counter() - start


def twice(names: list[str]) -> int:
    """Run All, and Run All again in the same kernel: nothing may fail, warn or print otherwise. The exit status."""
    status = 0
    for path in find(names):
        notebook = unexecuted(path)
        again = copy.deepcopy(notebook.cells)
        for cell in again:
            cell.id += "-again"
        first, notebook.cells = notebook.cells, notebook.cells + again
        problem = ""
        try:
            run_cells(notebook, path.parent)
            clean(notebook)
            cells = [(a, b) for a, b in zip(first, again, strict=True) if "nbval-ignore-output" not in tags(a)]
            problem = ", ".join(a.id for a, b in cells if printed(a) != printed(b))
            problem = problem and f"cells print something else the second time: {problem}"
        except Unfit as error:
            problem = str(error)
        print(f"{path.name}: {problem or 'the same twice'}", flush=True)
        status = 1 if problem else status
    return status


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def printed(cell: NotebookNode) -> list[str]:
    """What a cell's outputs say in words: printed text, and pictures' descriptions."""
    return [out.get("text") or out.get("data", {}).get("text/plain") for out in cell.get("outputs", [])]


def give_ids(raw: dict, prefix: str) -> None:
    """Keep the cell ids that are unique; the others become 02-01, 02-02, ... in order of appearance."""
    raw["nbformat"], raw["nbformat_minor"] = 4, 5
    ids = [cell.get("id") for cell in raw["cells"]]
    taken = set(ids)
    for i, cell in enumerate(raw["cells"]):
        if ids[i] is None or ids[i] in ids[:i]:
            cell["id"] = next(new for n in range(1, 10_000) if (new := f"{prefix}-{n:02d}") not in taken)
            taken.add(cell["id"])


def clean(notebook: NotebookNode) -> None:
    """Leave nothing in an executed notebook that a reader cannot use or that changes from run to run."""
    notebook.metadata = NotebookNode(METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise Unfit(f"cell {cell.id} writes to stderr: {output.text.strip()}")
            if WIDGET_VIEW in output.get("data", {}):
                del output.data[WIDGET_VIEW]
                if "image/png" not in output.data:
                    raise Unfit(f"cell {cell.id} shows a widget without a picture beside it; use ddpm_utils.widgets")


def dump(notebook: NotebookNode) -> str:
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def write(path: Path, text: str) -> None:
    """Replace a file in one go, so that nobody ever reads half of it."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8", newline="\n")
    beside.replace(path)


# ---- table ----------------------------------------------------------------------------------------------------------

HEADER = """| notebook | words | figures | sliders | exercises | bugs shown | seconds |
|---|--:|--:|--:|--:|--:|--:|
"""


def table(times: dict[str, dict]) -> str:
    """The table of all notebooks, in Markdown; times is what `run --times` writes."""
    rows, total = [], [0.0] * 6
    for path in find([]):
        seconds = times.get(path.stem, {}).get("seconds")
        counts = [*count(nbformat.read(path, as_version=4)), seconds or 0]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        shown = [f"{n:,}" for n in counts[:-1]] + ["–" if seconds is None else f"{seconds:.0f}"]
        rows.append(f"| [{path.stem}](notebooks/{path.name}) | {' | '.join(shown)} |\n")
    rows.append(f"| all | {' | '.join(f'{n:,.0f}' for n in total)} |\n")
    measured = sorted({f"{time['date']} on {time['cpus']} cores" for time in times.values()})
    note = f"\nSeconds in a fresh kernel, measured {', '.join(measured)}.\n" if measured else ""
    return HEADER + "".join(rows) + note


def count(notebook: NotebookNode) -> tuple[int, int, int, int, int]:
    """Words of prose, figures, sliders, exercises, and demonstrations of a bug in a notebook."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    prose = re.sub(r"^```.*?^```", "", prose, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)  # where a link leads is not read
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    figures = sum("image/png" in out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", []))
    words = len(re.findall(r"[^\W\d_][\w'’-]*", re.sub(r"\$\$.*?\$\$|\$[^$]*\$|<[^>]*>", "", prose, flags=re.DOTALL)))
    sliders = len(re.findall(r"\b(?:frame|live)_slider\(", code))
    exercises = len(set(re.findall(r"^ch\d\d\.(\w+)\(", code, flags=re.MULTILINE)))
    bugs = len(re.findall(r"^#+ Bug:", prose, flags=re.MULTILINE))
    return words, figures, sliders, exercises, bugs


def between_markers(page: str, text: str, name: str) -> str:
    """The page with text between <!-- name:start --> and <!-- name:end -->. Unfit where these are missing."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if start not in page or end not in page:
        raise Unfit(f"the page has no {start} and {end}")
    return page[: page.index(start) + len(start)] + "\n" + text + page[page.index(end) :]


if __name__ == "__main__":
    sys.exit(main())
