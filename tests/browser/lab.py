"""JupyterLab in Chromium, for the tests: the server, and a notebook as it stands on the page."""

import ast
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from playwright.sync_api import BrowserContext, Locator, Page
from playwright.sync_api import TimeoutError as Late

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROBE = Path(__file__).with_name("probe.js")

CELL_TIMEOUT = 600  # seconds for one cell; a shared CI machine may need ten times what an idle one does
PAGE_TIMEOUT = 120  # seconds for anything that the page does by itself

THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
WIDTHS = (1280, 800)  # of the window, in pixels

SLIDER_CALL = re.compile(r"^(?:live|frame)_slider\(", re.MULTILINE)
SLIDERS = ("IntSlider", "FloatSlider", "FloatLogSlider", "SelectionSlider")
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
# What stands behind each slider on display: the page knows a widget's number, its name is in the kernel.
ON_DISPLAY = """__import__("json").dumps({
    box.model_id: [name, [[type(c).__name__, c.description, getattr(c, "continuous_update", True)]
                          for c in box.children[0].children]]
    for name, box in __import__("ddpm_utils.widgets").widgets._on_display.items()})"""

TELL = """
def _tell():
    import pathlib, time
    while not ({condition}):
        time.sleep(0.02)
    pathlib.Path({sign!r}).touch()

__import__("threading").Thread(target=_tell, daemon=True).start()
"""


def slider_cells(path: Path) -> list[int]:
    """The indices of the cells of a notebook that show a slider."""
    cells = nbformat.read(path, as_version=4).cells
    return [i for i, cell in enumerate(cells) if cell.cell_type == "code" and SLIDER_CALL.search(cell.source)]


# ---- the server -----------------------------------------------------------------------------------------------------


class Lab:
    """JupyterLab on a free port of this machine, behind a token, with nothing of the user's own settings.

    It serves copies of the notebooks and of the stored results that they draw: a test may change them. Its kernels use
    the built-in shapes as images.
    """

    def __init__(self, folder: Path):
        self.token = secrets.token_hex(24)
        self.folder = folder
        shutil.copytree(NOTEBOOKS[0].parent, folder / "work" / "notebooks", ignore=lambda *_: {".ipynb_checkpoints"})
        overrides = folder / "config" / "labconfig" / "default_setting_overrides.json"
        overrides.parent.mkdir(parents=True)
        overrides.write_text(json.dumps(SETTINGS), encoding="utf-8")
        own = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("JUPYTER")}
        environment |= {f"JUPYTER_{name}": str(folder / name.split("_")[0].lower()) for name in own}
        environment |= {f"JUPYTERLAB_{name}_DIR": str(folder / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
        environment |= {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_TOKEN": self.token, "DDPM_DATA": "shapes"}
        if "PYTEST_XDIST_WORKER" in os.environ:  # a thread that waits by spinning keeps a core from the other process:
            environment["OMP_WAIT_POLICY"] = "PASSIVE"  # two samplings at a time took four times as long each, not two
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser", "--allow-root"]
        command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--ServerApp.root_dir={folder / 'work'}"]
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.url = self._wait_for_url()
        except BaseException:
            self.stop()
            raise

    def _wait_for_url(self) -> str:
        """The address, once the server answers there. RuntimeError, with the server's own words, where it does not."""
        note = self.folder / "runtime" / f"jpserver-{self.process.pid}.json"
        deadline = time.monotonic() + PAGE_TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                url = json.loads(note.read_text(encoding="utf-8"))["url"]
                request = urllib.request.Request(f"{url}api/status", headers={"Authorization": f"token {self.token}"})
                with urllib.request.urlopen(request, timeout=10):
                    return url
            except (OSError, ValueError):
                time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text(encoding='utf-8')[-3000:]}")

    def refuses_strangers(self) -> bool:
        """Whether a request without the token is turned away."""
        try:
            urllib.request.urlopen(f"{self.url}api/contents", timeout=30).close()
        except urllib.error.HTTPError as error:
            return error.code == 403
        return False

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# ---- a notebook on the page -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slider:
    """One slider on the page: the index of its cell, its place among the sliders there, and how it is written of."""

    cell: int
    place: int
    label: str  # name of the call and description of the control
    live: bool  # draws while it is moved, not only when it is let go


@dataclass
class Moves:
    """What came of moving a slider: times from key to picture, how often the pixels changed, what flickered."""

    slider: Slider
    milliseconds: list[float] = field(default_factory=list)
    changes: int = 0
    while_dragged: int = 0  # pictures before the mouse let go
    faults: list[str] = field(default_factory=list)


class NotebookPage:
    """A notebook in JupyterLab. start: with a kernel, as a reader opens it; without, nothing can run."""

    def __init__(self, lab: Lab, context: BrowserContext, path: Path, start: bool = True):
        self.path = path
        self.name = path.stem
        self.page: Page = context.new_page()
        self.page.set_default_timeout(1000 * PAGE_TIMEOUT)
        self.errors: list[str] = []  # exceptions on the page that nobody caught
        self.page.on("pageerror", lambda error: self.errors.append(str(error).splitlines()[0]))
        try:
            self._open(lab, start)
        except BaseException:
            self.page.close()  # a page left open would disturb those to come
            raise

    def _open(self, lab: Lab, start: bool) -> None:
        self.page.goto(f"{lab.url}lab?token={lab.token}&reset", wait_until="domcontentloaded")
        self.page.wait_for_function("window.jupyterapp?.restored !== undefined")
        self.page.evaluate("jupyterapp.restored")
        preference = {"shouldStart": start, "canStart": start, "autoStartDefault": start}
        target = {"path": f"notebooks/{self.path.name}", "factory": "Notebook", "kernelPreference": preference}
        self.page.evaluate("target => jupyterapp.commands.execute('docmanager:open', target).then(() => null)", target)
        cells = len(nbformat.read(lab.folder / "work" / "notebooks" / self.path.name, as_version=4).cells)
        self.page.wait_for_function("cells => probe.panel()?.content?.widgets?.length === cells", arg=cells)
        self.page.evaluate("jupyterapp.shell.collapseLeft()")
        self.page.evaluate("probe.laidOut()")
        if start:
            self.page.wait_for_function("probe.kernel()?.status === 'idle'", polling=250)

    def close(self) -> None:
        """Close the page, and end its kernel."""
        self.page.evaluate("probe.panel().sessionContext.shutdown()")
        self.page.close()

    # ---- running ----

    def run_all(self) -> None:
        self.page.evaluate("probe.start('notebook:run-all-cells')")

    def run_cell(self, index: int) -> None:
        self.page.evaluate("index => probe.startCell(index)", index)

    def interrupt(self) -> None:
        """What the Stop button does."""
        self.page.evaluate("jupyterapp.commands.execute('notebook:interrupt-kernel').then(() => null)")

    def wait(self) -> None:
        """Wait until all cells have ended, and their sliders are on the page. AssertionError where a cell hangs."""
        while (cell := self.page.evaluate("probe.running()")) is not None:
            try:
                changed = "cell => probe.running() !== cell"
                self.page.wait_for_function(changed, arg=cell, polling=250, timeout=1000 * CELL_TIMEOUT)
            except Late:
                raise AssertionError(f"{self.name}, cell {cell}: not done after {CELL_TIMEOUT} seconds") from None
        try:
            self.page.wait_for_function("probe.widgetCells().every(cell => cell.ready)", polling=100)
        except Late:
            late = [cell["index"] for cell in self.page.evaluate("probe.widgetCells()") if not cell["ready"]]
            raise AssertionError(f"{self.name}: the widgets of cells {late} show no picture") from None

    def tell_when(self, condition: str, sign: Path) -> None:
        """Have the kernel make the file sign once a Python condition holds there, also while a cell is running."""
        self.page.evaluate(
            "code => probe.tell(code).then(() => null)", TELL.format(condition=condition, sign=str(sign))
        )

    def wait_for(self, sign: Path) -> None:
        """Wait until the file sign is there. AssertionError where it does not come."""
        deadline = time.monotonic() + CELL_TIMEOUT
        while not sign.exists():
            assert time.monotonic() < deadline, f"{self.name}: no sign of what was awaited after {CELL_TIMEOUT} seconds"
            over = self.page.evaluate("probe.running()") is None and not sign.exists()
            assert not over, f"{self.name}: all cells ended before what was awaited; {self.problems()}"
            self.page.wait_for_timeout(100)

    def printed(self, cell: int) -> str:
        """What a cell printed."""
        return self.page.evaluate("cell => probe.printed(cell)", cell)

    def problems(self) -> list[str]:
        """Errors and what was written to stderr, broken widgets, and the page's own errors."""
        found = [f"cell {cell}: {what}" for cell, what in self.page.evaluate("probe.problems()")]
        found += [f"cell {cell}: a widget that cannot be shown" for cell in self.page.evaluate("probe.brokenWidgets()")]
        return [f"{self.name}, {problem}" for problem in found + [f"page error: {error}" for error in self.errors]]

    def ask(self, expression: str) -> object:
        """The value of an expression in the kernel, where its repr is a literal."""
        return ast.literal_eval(self.page.evaluate("expression => probe.ask(expression)", expression))

    def widget_models(self) -> int:
        """How many widgets the kernel holds: sliders, pictures, layouts and styles."""
        return self.page.evaluate("probe.widgetModels()")

    # ---- sliders ----

    def sliders(self) -> list[Slider]:
        """All sliders on the page, in order. AssertionError where the kernel knows of others."""
        known = json.loads(self.ask(ON_DISPLAY))
        shown = {cell["model"]: cell["index"] for cell in self.page.evaluate("probe.widgetCells()")}
        assert shown.keys() == known.keys(), f"{self.name}: widgets in cells {shown}, sliders in the kernel {known}"
        found = []
        for model, cell in shown.items():
            name, controls = known[model]
            moved = [(description, live) for kind, description, live in controls if kind in SLIDERS]
            found += [Slider(cell, i, f"{name}/{description}", live) for i, (description, live) in enumerate(moved)]
        return found

    def press_keys(self, slider: Slider, presses: int) -> Moves:
        """Move a slider with the arrow keys, from end to end and back. One picture is awaited per key."""
        handle = self._track(slider).locator(".noUi-handle")
        handle.focus()
        moves, key = Moves(slider), "ArrowRight"
        self.page.evaluate("cell => probe.watch(cell)", slider.cell)
        last = self._pixels(slider)
        for _ in range(presses):
            now, low, high = (float(handle.get_attribute(f"aria-value{what}")) for what in ("now", "min", "max"))
            key = "ArrowLeft" if now >= high else "ArrowRight" if now <= low else key
            self.page.evaluate("probe.arm()")
            self.page.keyboard.press(key)
            self._wait(slider, "probe.latency() !== null || probe.unanswered()", "the key was not answered")
            latency = self.page.evaluate("probe.latency()")
            self._wait(slider, "probe.settled(100)", "the picture does not come to rest", polling=50)
            pixels = self._pixels(slider)
            moves.milliseconds += [] if latency is None else [latency]
            moves.changes += pixels != last
            last = pixels
        moves.faults = self.page.evaluate("probe.unwatch()")
        return moves

    def drag(self, slider: Slider) -> Moves:
        """Drag a slider with the mouse across half of its track, and let it go."""
        track = self._track(slider)
        rail, handle = (track.locator(part).bounding_box() for part in (".noUi-base", ".noUi-handle"))
        x, y = (handle[a] + handle[b] / 2 for a, b in (("x", "width"), ("y", "height")))
        to = rail["x"] + rail["width"] * (0.85 if x < rail["x"] + rail["width"] / 2 else 0.15)
        moves = Moves(slider)
        self.page.evaluate("cell => probe.watch(cell)", slider.cell)
        before = self._pixels(slider)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(to, y, steps=8)
        if slider.live:
            self._wait(slider, "probe.shown() > 0 || probe.unanswered()", "dragging draws nothing")
            moves.while_dragged = self.page.evaluate("probe.shown()")
        self.page.mouse.up()
        self._wait(slider, "probe.shown() > 0 || probe.unanswered()", "letting go draws nothing")
        self._wait(slider, "probe.settled()", "the picture does not come to rest", polling=50)
        moves.changes = int(self._pixels(slider) != before)
        moves.faults = self.page.evaluate("probe.unwatch()")
        return moves

    def _track(self, slider: Slider) -> Locator:
        """The slider on the page, scrolled into view with its picture."""
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(slider.cell)
        cell.locator("img.widget-image").scroll_into_view_if_needed()
        track = cell.locator(".jp-OutputArea-output .noUi-target").nth(slider.place)
        track.scroll_into_view_if_needed()
        return track

    def _pixels(self, slider: Slider) -> str:
        return self.page.evaluate("cell => probe.pixels(cell)", slider.cell)

    def _wait(self, slider: Slider, condition: str, otherwise: str, polling: int | str = "raf") -> None:
        try:
            self.page.wait_for_function(condition, polling=polling)
        except Late:
            raise AssertionError(f"{self.name}, cell {slider.cell}, {slider.label}: {otherwise}") from None

    # ---- looks ----

    def look(self, theme: str, width: int) -> None:
        """Change JupyterLab's theme and the width of the window; open all folded hints, answers and solutions."""
        self.page.set_viewport_size({"width": width, "height": 2000})
        change = "theme => jupyterapp.commands.execute('apputils:change-theme', { theme }).then(() => null)"
        self.page.evaluate(change, THEMES[theme])
        self.page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=THEMES[theme])
        self.page.evaluate("probe.unfolded()")

    def pictures(self) -> list[tuple[int, str]]:
        """The pictures that can be seen in outputs: index of the cell, and description."""
        return [(cell, alt) for cell, alt in self.page.evaluate("probe.pictures()")]

    def too_wide(self, cells: Container[int] | None = None) -> list[str]:
        """Pictures, formulas and text that stand out to the right or are cut off there: in these cells, or in all."""
        return [
            f"{self.name}, cell {cell}: {what!r} is {excess:.0f} pixels too wide"
            for cell, what, excess in self.page.evaluate("probe.tooWide()")
            if cells is None or cell in cells
        ]

    def photograph_cell(self, cell: int, file: Path) -> None:
        """Write a picture of what a cell shows into a file."""
        output = self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-Cell-outputWrapper")
        output.scroll_into_view_if_needed()
        self.page.evaluate("probe.laidOut()")  # cells that scroll into view move those below them
        output.screenshot(path=file)

    def photograph(self, folder: Path, name: str) -> None:
        """Write the whole notebook into folder, page by page: name-00.png and so on."""
        pages, top = 0, 0
        while True:
            at, height, total = self.page.evaluate("top => probe.scrollTo(top)", top)
            self.page.screenshot(path=folder / f"{name}-{pages:02d}.png")
            pages, top = pages + 1, at + height - 40  # what is cut at the bottom of a page stands on the next
            if at + height >= total - 1:
                return
