"""Build the series as an HTML book that needs no kernel and no network: build/book/index.html.

    python tools/book.py record           execute the notebooks that changed, and save the frames of their sliders
    python tools/book.py record 01 02     those whose names start so
    python tools/book.py build            make the pages, in seconds; a slider without frames stays a still picture

The pages show the notebooks as they are saved. Executing them serves the frames alone, and stops after the last slider.
Frames are kept in build/book-frames, and are made again when the notebook's code or the module has changed.
"""

import argparse
import base64
import hashlib
import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbformat import NotebookNode

import notebooks
from notebooks import ROOT, Unfit

BOOK = ROOT / "book"
BUILD = ROOT / "build"
FRAMES = BUILD / "book-frames"
RECORDER = ROOT / "tools" / "record_sliders.py"
SLIDER = re.compile(r"\b(?:frame|live)_slider\(")
LINK = re.compile(r"(?<!!)\[((?:[^][]|\[[^][]*\])*)\]\((?![a-z]+:|\))([^)\s#]*)(#[^)\s]*)?\)")  # [words](name#anchor)
IMAGE = re.compile(r"<img\s[^>]*?src=\"(?!https?:)([^\"]+)\"|!\[[^]]*\]\((?!https?:|attachment:)([^)\s]+)\)")
FENCED = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
IMAGES = {".png", ".jpg", ".svg", ".webp"}
LANGUAGES = {".py": "python", ".yml": "yaml", ".toml": "toml", ".cff": "yaml", ".json": "json", ".csv": "text"}
MATHJAX = "sphinx-mathjax-offline"  # a package, in spite of its name


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("record", help="execute notebooks and save the frames of their sliders")
    command.add_argument("names", nargs="*", help="beginnings of names, such as 02; none means all")
    command = commands.add_parser("build", help="make the pages from the saved notebooks and the frames")
    command.add_argument("--out", type=Path, default=BUILD / "book", help="folder for the pages; it is made anew")
    args = parser.parse_args(argv)
    try:
        if args.command == "record":
            return record(args.names)
        return build(args.out)
    except Unfit as problem:
        print(problem, file=sys.stderr)
        return 1


# ---- record ---------------------------------------------------------------------------------------------------------


def record(names: list[str]) -> int:
    """Make the frames of the notebooks named, where there are none or the code has changed. The exit status."""
    status = 0
    for path in notebooks.find(names):
        if recording(path):
            print(f"{path.name}: its frames are up to date")
            continue
        try:
            print(f"{path.name}: {execute(path)}", flush=True)
        except Unfit as problem:
            print(f"{path.name} has no frames: {problem}", file=sys.stderr)
            status = 1
    return status


def execute(path: Path) -> str:
    """Execute a notebook up to its last slider, and save its sliders' frames. Returns what was made, in words."""
    notebook, made_from = up_to_last_slider(path), fingerprint(path)
    if not notebook.cells:
        return "no slider"
    folder, unfinished = FRAMES / path.stem, FRAMES / f"{path.stem}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    begin = f"import sys; sys.path.insert(0, {str(RECORDER.parent)!r})\nfrom pathlib import Path\n"
    begin += f"from record_sliders import record_sliders\nrecord_sliders(Path({str(unfinished)!r}))"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
    start = time.perf_counter()
    notebooks.run_cells(notebook, path.parent)
    sliders = json.loads((unfinished / "sliders.json").read_text(encoding="utf-8"))
    (unfinished / "made_from").write_text(made_from)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    frames = sum(len(slider["frames"]) for slider in sliders)
    return f"{len(sliders)} sliders, {frames} frames, {time.perf_counter() - start:.0f} s"


def up_to_last_slider(path: Path) -> NotebookNode:
    """The notebook, not executed, without the cells that follow its last slider."""
    notebook = notebooks.unexecuted(path)
    sliders = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and SLIDER.search(cell.source)]
    notebook.cells = notebook.cells[: sliders[-1] + 1] if sliders else []
    return notebook


def recording(path: Path) -> list[dict]:
    """What record_sliders wrote about the notebook's sliders; nothing where the code has changed since."""
    folder = FRAMES / path.stem
    if not (folder / "made_from").exists() or (folder / "made_from").read_text() != fingerprint(path):
        return []
    return json.loads((folder / "sliders.json").read_text(encoding="utf-8"))


def fingerprint(path: Path) -> str:
    """A hash of all that a notebook's frames depend on: its code, the module, the weights, the images, the recorder."""
    code = "\n".join(cell.source for cell in up_to_last_slider(path).cells if cell.cell_type == "code")
    digest = hashlib.sha256(f"{os.environ.get('DDPM_DATA', 'shapes')}\n{code}".encode())
    module = ROOT / "ddpm_utils"
    for file in sorted([*module.glob("*.py"), *module.glob("weights/*.safetensors"), RECORDER]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


# ---- build ----------------------------------------------------------------------------------------------------------


def build(out: Path) -> int:
    """Write the book's source into build/book-source, and let Sphinx make the pages in out. The exit status."""
    mathjax = importlib.util.find_spec(MATHJAX)
    if mathjax is None or importlib.util.find_spec("myst_nb") is None:
        raise Unfit("the book needs more than the notebooks do: pip install -r requirements-book.txt")
    if out.exists() and any(out.iterdir()) and not (out / "objects.inv").exists():
        raise Unfit(f"{out} is full of other things than a book, and stays as it is: choose another folder")
    source = BUILD / "book-source"
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(BOOK, source)
    script = Path(mathjax.origin).parent / "static" / "mathjax" / "tex-svg-full.js"  # all in one: it loads nothing
    copy(script, source / "_static" / "mathjax.js")
    files = [*notebooks.find([]), *sorted((ROOT / "ddpm_utils").glob("*.py")), ROOT / "main.py", ROOT / "README.md"]
    pages = [file.relative_to(ROOT) for file in files]
    for page in pages:  # the list grows: what a page links to becomes a page
        pages += [file for file in dict.fromkeys(stage(page, source)) if file not in pages]
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    return subprocess.run([*command, "-d", BUILD / "book-doctrees", source, out]).returncode


def stage(page: Path, source: Path) -> list[Path]:
    """Write the source of one page, a file of the repository, into the folder source. Returns the files it links to."""
    text, linked = (ROOT / page).read_text(encoding="utf-8"), []
    target = source / page
    if page.suffix == ".ipynb":
        notebook = nbformat.reads(text, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = with_links(cell.source, page, linked)
                copy_images(cell.source, page, source)
        show_pictures(notebook, page, source)
        text = nbformat.writes(notebook)
    elif page.suffix == ".md":
        copy_images(text, page, source)
        text = "---\norphan: true\n---\n" + with_links(text, page, linked)
    else:
        title, language, fence = page.name.replace("_", r"\_"), LANGUAGES.get(page.suffix, "text"), "`" * 12
        text = f"{fence}{{code-block}} {language}\n:caption: {page.as_posix()}\n:linenos:\n\n{text}\n{fence}\n"
        text = f"---\norphan: true\n---\n# {title}\n\n{text}"
        target = view_of(target)
    write(target, text)
    return linked


def view_of(file: Path) -> Path:
    """The Sphinx source that shows a file of the repository: the file itself, or a page around it."""
    return file if file.suffix in (".ipynb", ".md") else file.with_name(f"{file.name}.md")


def with_links(text: str, page: Path, linked: list[Path]) -> str:
    """Markdown whose links to the repository's files lead to their pages; the files are added to linked.

    A link to what cannot be a page, such as a folder, becomes plain words.
    """

    def changed(match: re.Match) -> str:
        words, name, anchor = match.groups()
        heading = re.sub(r"[^#\w-]", "", (anchor or "").lower())  # as Sphinx names it; JupyterLab keeps case and colons
        if not name:
            return f"[{words}]({heading})"
        file = Path(os.path.normpath(page.parent / name))
        if not (ROOT / file).exists():
            return match.group()  # code that looks like a link; or a broken one, which Sphinx will report
        if not (ROOT / file).is_file() or file.suffix in IMAGES:
            return words
        linked.append(file)
        return f"[{words}]({view_of(Path(name)).as_posix()}{heading})"

    parts = FENCED.split(text)  # every second part is a fenced block
    return "".join(part if i % 2 else LINK.sub(changed, part) for i, part in enumerate(parts))


def copy_images(text: str, page: Path, source: Path) -> None:
    """Copy the images that the Markdown of a page shows into the same place below source."""
    for image in IMAGE.findall(text):
        file = Path(os.path.normpath(page.parent / "".join(image)))
        copy(ROOT / file, source / file)


def show_pictures(notebook: NotebookNode, page: Path, source: Path) -> None:
    """Turn the notebook's pictures into HTML with their alt texts, and those of its sliders into sliders that move.

    The pictures themselves become files in _static, beside the pages. Raises Unfit where a recorded slider has no cell.
    """
    sliders = {slider["alt"]: slider for slider in recording(ROOT / page)}
    here, static = f"{'../' * len(page.parent.parts)}_static/{page.stem}", source / "_static" / page.stem
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    still = sum(len(SLIDER.findall(cell.source)) for cell in code) - len(sliders)
    if still:
        print(f"{page.name}: {still} sliders stay still pictures; python tools/book.py record {page.name[:2]}")
    for cell in code:
        for i, output in enumerate(cell.outputs):
            if "image/png" not in output.get("data", {}):
                continue
            png, alt = base64.b64decode(output.data["image/png"]), output.data["text/plain"]
            write(static / f"{cell.id}-{i}.png", png)
            width = output.metadata["image/png"]["width"]
            picture = f'<img class="still" src="{here}/{cell.id}-{i}.png" alt="{html.escape(alt)}" width="{width}">'
            slider = sliders.pop(alt, None)
            if slider:
                shutil.copytree(FRAMES / page.stem / slider["folder"], static / slider["folder"])
                picture = moving(slider, picture, f"{here}/{slider['folder']}")
            output.data = NotebookNode({"text/html": picture})
            output.metadata = NotebookNode()
    if sliders:
        names = ", ".join(slider["name"] for slider in sliders.values())
        raise Unfit(f"{page.name} was saved without the sliders {names}: save it with tools/notebooks.py")


def moving(slider: dict, still: str, folder: str) -> str:
    """HTML of a slider: its controls and frames, which slider.js brings to life, and the still picture without it."""
    controls = []
    for control in slider["controls"]:
        stops, start, name = control["stops"], control["start"], html.escape(control["label"])
        if len(stops) == 1:
            controls.append(f"<span><span>{name}</span> {html.escape(stops[0])}</span>")
            continue
        data = html.escape(json.dumps(stops))
        controls.append(
            f'<label><span>{name}</span> <input type="range" min="0" max="{len(stops) - 1}" value="{start}"'
            f' autocomplete="off" data-stops="{data}"> <output>{html.escape(stops[start])}</output></label>'
        )
    frames = html.escape(json.dumps(slider["frames"]))
    return (
        f'<figure class="slider" data-folder="{folder}" data-frames="{frames}">\n'
        f'<div class="controls" hidden>{"".join(controls)}</div>\n<p role="alert" hidden></p>\n'
        f'{still}\n<img class="frame" alt="{html.escape(slider["alt"])}" hidden>\n</figure>'
    )


def copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def write(target: Path, content: str | bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content if isinstance(content, bytes) else content.encode())


if __name__ == "__main__":
    sys.exit(main())
