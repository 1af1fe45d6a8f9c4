"""Every notebook as it is opened, before anything has run: no kernel, no trust; two themes, two widths."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import NOTEBOOKS, THEMES, WIDTHS, Lab, NotebookPage, slider_cells
from playwright.sync_api import BrowserContext

IPYWIDGETS = "page error: Cannot read properties of null (reading 'kernel')"  # from ipywidgets' own part of JupyterLab


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def unrun(request: pytest.FixtureRequest, lab: Lab, context: BrowserContext) -> Iterator[NotebookPage]:
    notebook = NotebookPage(lab, context, request.param, start=False)
    yield notebook
    notebook.close()


def test_the_server_wants_its_token(lab: Lab) -> None:
    assert lab.refuses_strangers()


def test_it_opens_without_kernel_or_trust(unrun: NotebookPage) -> None:
    assert unrun.page.evaluate("!probe.kernel()")
    assert unrun.page.evaluate("probe.cells().some(cell => !cell.model.trusted)")  # those that need no trust have it
    assert not [problem for problem in unrun.problems() if IPYWIDGETS not in problem]


def test_every_slider_has_left_a_still_picture(unrun: NotebookPage) -> None:
    stills = {cell for cell, *_ in unrun.pictures()}
    assert not [f"{unrun.name}, cell {cell}" for cell in slider_cells(unrun.path) if cell not in stills]


def test_every_picture_is_described(unrun: NotebookPage) -> None:
    """JupyterLab gives <img> no alt: the words are in the file, for GitHub, nbconvert and screen readers of these."""
    assert not [f"{unrun.name}, cell {cell}" for cell, alt in unrun.pictures() if not alt.strip()]


def test_the_mathematics_renders(unrun: NotebookPage) -> None:
    assert not [f"{unrun.name}, cell {cell}" for cell in unrun.page.evaluate("probe.badFormulas()")]
    source = unrun.path.read_text(encoding="utf-8")
    assert unrun.page.evaluate("probe.formulas()") >= min(1, source.count("$$"))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_everything_fits_its_place(unrun: NotebookPage, theme: str, width: int, screenshots: Path | None) -> None:
    unrun.look(theme, width)
    if screenshots:
        unrun.photograph(screenshots, f"{unrun.name}-{theme}-{width}")
    assert not unrun.too_wide()
