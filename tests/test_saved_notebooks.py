"""What is saved is fit to be read: executed in order, clean, described in words; and its solutions are right.

nbval compares only cells that were executed, and no pictures: these tests hold what it lets pass.
"""

import ast
import contextlib
import importlib
import importlib.util
import io
import re
from pathlib import Path

import nbformat
import pytest

from ddpm_utils.checks import Exercise

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = sorted((ROOT / "ddpm_utils" / "checks").glob("ch*.py"))
MACHINE_PATH = re.compile(r"(?:/work|/root|/home|/Users|/tmp|/mnt)/|[A-Z]:\\+Users|site-packages")
SOLUTION = re.compile(r"<details>\s*<summary>\s*Solution.*?</summary>(.*?)</details>", re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
CHECK = re.compile(r"^(ch\d\d)\.(\w+)\(", re.MULTILINE)

_spec = importlib.util.spec_from_file_location("notebooks", ROOT / "tools" / "notebooks.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def test_the_series_is_complete() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(11)]


@each_notebook
def test_the_file_is_clean(path: Path) -> None:
    text, notebook = path.read_bytes(), read(path)
    nbformat.validate(notebook)
    assert b"\r" not in text and text.endswith(b"}\n")
    assert set(notebook.metadata) == {"kernelspec", "language_info"}  # no "widgets"
    assert "version" not in notebook.metadata.language_info
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert text.decode() == tool.dump(notebook), "save it with tools/notebooks.py"


@each_notebook
def test_it_was_executed_from_top_to_bottom_without_complaint(path: Path) -> None:
    notebook = read(path)
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    for output in outputs(notebook):
        assert output.output_type != "error", output.evalue
        assert output.get("name") != "stderr", output.text
        assert not any("widget" in mime for mime in output.get("data", {})), "save it with tools/notebooks.py"


@each_notebook
def test_no_path_of_the_machine_that_ran_it_is_in_it(path: Path) -> None:
    notebook = read(path)
    words = [cell.source for cell in notebook.cells] + [output.get("text", "") for output in outputs(notebook)]
    words += [str(v) for output in outputs(notebook) for m, v in output.get("data", {}).items() if "image" not in m]
    for text in words:
        found = MACHINE_PATH.search(text)
        assert not found, text[max(0, found.start() - 40) : found.end() + 40]


@each_notebook
def test_every_picture_is_described_in_words(path: Path) -> None:
    for output in outputs(read(path)):
        if "image/png" in output.get("data", {}):
            alt = output.data.get("text/plain", "")
            assert len(alt.split()) >= 2 and not alt.startswith("<"), f"{alt!r} describes no picture"
            assert output.metadata["image/png"]["alt"] == alt
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            assert "![](" not in cell.source and not re.search(r"<img(?![^>]*\balt=\"[^\"])", cell.source), cell.id


@each_notebook
def test_code_cells_are_short(path: Path) -> None:
    for cell in code_cells(read(path)):
        lines = len(cell.source.splitlines())
        if lines > 20 and not cell.source.startswith(("%", "!")):
            body = ast.parse(cell.source).body
            one = len(body) == 1 and isinstance(body[0], ast.FunctionDef | ast.ClassDef)
            assert one, f"cell {cell.id} has {lines} lines; 20 are enough, unless it is one definition"


# ---- the tool that saves them ----------------------------------------------------------------------------------------


def notebook_of(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=list(cells))


def code_with(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell("1", outputs=[output], execution_count=1)


def test_cell_ids_are_kept_where_they_are_unique_and_made_where_not() -> None:
    raw = {"cells": [{"id": "a"}, {"id": "07-01"}, {"id": "a"}, {}]}
    tool.give_ids(raw, "07")
    assert [cell["id"] for cell in raw["cells"]] == ["a", "07-01", "07-02", "07-03"]


def test_cleaning_keeps_the_picture_and_drops_the_widget() -> None:
    data = {tool.WIDGET_VIEW: {"model_id": "1"}, "image/png": "AA==", "text/plain": "A picture."}
    notebook = notebook_of(code_with(nbformat.v4.new_output("display_data", data)))
    notebook.metadata.widgets = {}
    tool.clean(notebook)
    assert set(notebook.cells[0].outputs[0].data) == {"image/png", "text/plain"}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (nbformat.v4.new_output("stream", name="stderr", text="a warning"), "a warning"),
        (nbformat.v4.new_output("display_data", {tool.WIDGET_VIEW: {}, "text/plain": "interactive"}), "picture"),
    ],
)
def test_what_a_reader_cannot_use_is_not_saved(output: nbformat.NotebookNode, reason: str) -> None:
    with pytest.raises(tool.Unfit, match=reason):
        tool.clean(notebook_of(code_with(output)))


def test_a_notebook_that_fails_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "NOTEBOOKS", tmp_path)
    path = tmp_path / "00_fails.ipynb"
    path.write_text(tool.dump(notebook_of(nbformat.v4.new_code_cell("1 / 0", id="a"))), encoding="utf-8")
    before = path.read_bytes()
    assert tool.main(["run", "00"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_what_changes_on_a_second_run_all_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "NOTEBOOKS", tmp_path)
    sources = {"same": "print(1)", "counts": "n = globals().get('n', 0) + 1\nprint(n)", "late": "print('x' in dir())"}
    cells = [nbformat.v4.new_code_cell(source, id=name) for name, source in sources.items()]
    (tmp_path / "00_x.ipynb").write_text(tool.dump(notebook_of(*cells)), encoding="utf-8")
    (tmp_path / "01_y.ipynb").write_text(tool.dump(notebook_of(cells[0])), encoding="utf-8")
    assert tool.main(["twice"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "00_x.ipynb: cells print something else the second time: counts",
        "01_y.ipynb: the same twice",
    ]


def test_the_table_counts_what_a_reader_meets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prose = "## Bug: no clamp\n\nThree more words: $x_t$\n\n```python\nnot = prose\n```\n"
    code = "live_slider('a', draw)\nch02.jump(jump)\nch02.jump(jump)\nch02.other(1)"
    picture = code_with(nbformat.v4.new_output("display_data", {"image/png": "AA==", "text/plain": "A."}))
    notebook = notebook_of(nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell(code), picture)
    assert tool.count(notebook) == (6, 1, 1, 2, 1)
    monkeypatch.setattr(tool, "NOTEBOOKS", tmp_path)
    tool.write(tmp_path / "02_x.ipynb", tool.dump(notebook))
    table = tool.table({"02_x": {"seconds": 12.3, "date": "2026-01-31", "cpus": 2}})
    assert "| [02_x](notebooks/02_x.ipynb) | 6 | 1 | 1 | 2 | 1 | 12 |" in table
    assert "measured 2026-01-31 on 2 cores" in table


def test_the_table_goes_between_its_markers_and_nowhere_else() -> None:
    page = "before\n<!-- x:start -->\nold\n<!-- x:end -->\nafter\n"
    assert tool.between_markers(page, "new\n", "x") == page.replace("old", "new")
    with pytest.raises(tool.Unfit, match="x:start"):
        tool.between_markers("no markers", "new", "x")


# ---- exercises -------------------------------------------------------------------------------------------------------


def solutions(path: Path) -> list[str]:
    folded = (
        block for cell in read(path).cells if cell.cell_type == "markdown" for block in SOLUTION.findall(cell.source)
    )
    return ["".join(PYTHON.findall(block)) for block in folded]


def exercises(path: Path) -> dict[str, Exercise]:
    chapter = importlib.import_module(f"ddpm_utils.checks.{path.stem}")
    return {name: value for name, value in vars(chapter).items() if isinstance(value, Exercise)}


@each_notebook
def test_each_folded_solution_is_right(path: Path) -> None:
    imports = [cell.source for cell in code_cells(read(path)) if "imports" in cell.metadata.get("tags", [])]
    for solution in solutions(path):
        assert CHECK.search(solution.strip().splitlines()[-1]), f"a solution must end with its check:\n{solution}"
        namespace, printed = {"__name__": "__main__"}, io.StringIO()
        exec("\n".join(imports), namespace)
        with contextlib.redirect_stdout(printed):
            exec(compile(solution, f"a solution in {path.name}", "exec"), namespace)
        assert printed.getvalue().startswith("Correct"), f"{printed.getvalue()}\n{solution}"


@each_notebook
def test_each_exercise_of_a_notebook_has_a_folded_solution(path: Path) -> None:
    asked = set(CHECK.findall("\n".join(cell.source for cell in code_cells(read(path)))))
    solved = {check for solution in solutions(path) for check in CHECK.findall(solution)}
    assert asked == solved


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_each_exercise_tells_right_from_wrong(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exercises(path), f"{path.name} declares no exercise"
    for exercise in exercises(path).values():
        exercise.self_test()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_each_exercise_is_put_to_the_reader(path: Path) -> None:
    notebooks = [notebook for notebook in NOTEBOOKS if notebook.stem.startswith(path.stem[2:])]
    if not notebooks:
        pytest.skip("its notebook is not written yet")
    code = "\n".join(cell.source for cell in code_cells(read(notebooks[0])))
    assert {(path.stem, name) for name in exercises(path)} <= set(CHECK.findall(code))
