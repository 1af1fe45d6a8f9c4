"""The book of `make book` in Chromium, opened from its files: every page, every slider, every link, without a network.

    make test-book

The frames of the sliders of 01 and 02 are recorded if they are not there; the other pages are opened as they are.
"""

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = [sys.executable, str(ROOT / "tools" / "book.py")]
MEGABYTES = 8  # that a page with all its pictures may weigh
MATHS = "typeof MathJax === 'undefined' || MathJax.startup.promise.then(() => true)"
PICTURES = "async () => { for (const i of document.images) { i.loading = 'eager'; await i.decode(); } }"
CUT_OFF = """() => [...document.querySelectorAll("div.math")].filter(box =>
    box.querySelector("mjx-container").getBoundingClientRect().left < box.getBoundingClientRect().left - 1
    || box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX != "auto").map(box => box.textContent)"""
RAW = """() => {
    const page = (document.querySelector("article") || document.body).cloneNode(true);
    page.querySelectorAll("pre, code, script, style, mjx-container").forEach(e => e.remove());
    return page.textContent;
}"""
SHOWN = "async f => { const i = f.querySelector('img.frame'); await i.decode(); return i.currentSrc; }"


@dataclass
class Opened:
    """What was seen of a page."""

    problems: list[str] = field(default_factory=list)
    formulas: int = 0
    unset: list[str] = field(default_factory=list)  # formulas that were not typeset, not understood, or cut off
    text: str = ""
    links: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    undescribed: list[str] = field(default_factory=list)  # pictures without a description
    bytes: int = 0


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages."""
    out = tmp_path_factory.mktemp("book")
    for command in (["record", "01", "02"], ["build", "--out", str(out)]):
        done = subprocess.run([*TOOL, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def pages(chromium: Browser, book: Path, screenshots: Path | None) -> dict[Path, Opened]:
    """Every page, opened once."""
    opened = {}
    for path in sorted(book.rglob("*.html")):
        if "_static" not in path.parts:
            opened[path.relative_to(book)] = look(chromium, path, screenshots)
    return opened


def look(chromium: Browser, path: Path, screenshots: Path | None) -> Opened:
    seen = Opened()
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})

    def files_only(route: Route) -> None:
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            route.abort()

    context.route("**/*", files_only)
    page = context.new_page()
    page.on("requestfailed", lambda request: seen.problems.append(f"request failed: {request.url}"))
    page.on("pageerror", lambda error: seen.problems.append(f"script: {error}"))
    page.on("console", lambda m: seen.problems.append(f"console: {m.text}") if m.type == "error" else None)
    page.goto(path.as_uri())
    page.evaluate(MATHS)
    page.evaluate(PICTURES)
    seen.formulas = page.locator(".math").count()
    seen.unset = page.locator(".math:not(:has(mjx-container svg)), .math:has([data-mml-node=merror])").all_inner_texts()
    seen.unset += page.evaluate(CUT_OFF)
    seen.text = page.evaluate(RAW)
    for selector in (".system-message", ".problematic", ".output.stderr", ".output.traceback"):
        seen.problems += [f"{selector}: {text}" for text in page.locator(selector).all_inner_texts()]
    seen.links = page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
    seen.ids = set(page.eval_on_selector_all("[id]", "all => all.map(e => e.id)"))
    seen.undescribed = page.eval_on_selector_all("article img", "all => all.filter(i => !i.alt).map(i => i.src)")
    pictures = page.eval_on_selector_all("img.still, article img", "all => all.map(i => i.src)")
    folders = page.eval_on_selector_all("figure.slider", "all => all.map(f => f.dataset.folder)")
    files = [path, *{Path(unquote(urlsplit(url).path)) for url in pictures if url.startswith("file:")}]
    files = {file.resolve() for file in files} | {f.resolve() for d in folders for f in (path.parent / d).iterdir()}
    seen.bytes = sum(file.stat().st_size for file in files)
    if screenshots:
        for theme in ("light", "dark"):
            page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
            page.screenshot(path=screenshots / f"book_{path.stem}_{theme}.png", full_page=True)
    context.close()
    return seen


def test_there_is_a_page_for_every_notebook(pages: dict[Path, Opened]) -> None:
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks == {path.stem for path in pages if path.parent.name == "notebooks"}
    assert Path("index.html") in pages


def test_no_page_asks_for_what_is_not_there(pages: dict[Path, Opened]) -> None:
    assert not {str(path): seen.problems for path, seen in pages.items() if seen.problems}


def test_the_mathematics_is_typeset(pages: dict[Path, Opened]) -> None:
    assert not {str(path): seen.unset for path, seen in pages.items() if seen.unset}
    for path, seen in pages.items():
        if path.parent.name == "notebooks":
            assert seen.formulas > 5, path
            raw = re.search(r".{0,40}(?:\$|\\[a-z]+|\\[(\[]).{0,40}", seen.text)
            assert not raw, f"{path}: {raw.group()}"


def test_every_picture_is_described(pages: dict[Path, Opened]) -> None:
    assert not {str(path): seen.undescribed for path, seen in pages.items() if seen.undescribed}


def test_every_link_within_the_book_leads_somewhere(book: Path, pages: dict[Path, Opened]) -> None:
    ids = {(book / path).resolve(): seen.ids for path, seen in pages.items()}
    broken = []
    for path, seen in pages.items():
        for link in map(urlsplit, seen.links):
            target = Path(unquote(link.path)).resolve()
            if link.scheme == "file" and (
                not target.is_file() or (link.fragment and unquote(link.fragment) not in ids.get(target, set()))
            ):
                broken.append(f"{path}: {link.geturl()}")
    assert not broken


def test_no_page_is_too_heavy(pages: dict[Path, Opened]) -> None:
    sizes = {str(path): round(seen.bytes / 1e6, 1) for path, seen in pages.items()}
    assert max(sizes.values()) <= MEGABYTES, sizes


def test_each_slider_moves_its_picture_by_keyboard(book: Path, page: Page, pages: dict[Path, Opened]) -> None:
    moved = 0
    for path in pages:
        page.goto((book / path).as_uri())
        for figure in page.locator("figure.slider").all():
            for control in figure.locator("input").all():
                moved += 1
                output = control.locator("xpath=following-sibling::output")
                frames, labels = [], []
                for key in ("Home", "ArrowRight", "End", "ArrowLeft"):
                    control.press(key)
                    frames.append(picture(figure.evaluate(SHOWN)))
                    labels.append(output.inner_text())
                    assert control.get_attribute("aria-valuetext") == labels[-1]
                assert labels[0] != labels[1] and labels[2] != labels[3], f"{path}: {labels}"
                assert frames[0] != frames[2], f"{path}: {control.get_attribute('data-stops')} shows one picture"
    assert moved >= 10  # those of 01 and 02


def picture(url: str) -> str:
    return hashlib.sha256(Path(unquote(urlsplit(url).path)).read_bytes()).hexdigest()


def test_hints_and_solutions_unfold(book: Path, page: Page) -> None:
    page.goto((book / "notebooks" / "02_forward_process.html").as_uri())
    folded = page.locator("details:not([open])", has=page.locator("summary", has_text="Solution")).first
    code = folded.locator(".highlight").first
    assert not code.is_visible()
    folded.locator("summary").click()
    page.locator("details[open] .highlight").first.wait_for(state="visible")


def test_without_scripts_the_still_picture_stays(chromium: Browser, book: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((book / "notebooks" / "02_forward_process.html").as_uri())
    figures = page.locator("figure.slider")
    assert figures.count() >= 5
    for figure in figures.all():
        assert figure.locator("img.still").is_visible()
        assert not figure.locator("img.frame").is_visible() and not figure.locator("input").first.is_visible()
    context.close()
