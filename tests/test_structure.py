"""The house rules that can be checked: the order of the chapters, no matplotlib without need, docstrings."""

import ast
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ddpm_utils

FOLDER = Path(ddpm_utils.__file__).parent
ORDER = [
    "guards",
    "embedding",
    "diffusion",
    "unet",
    "data",
    "hardware",
    "checkpoint",
    "diffusers_format",
    "sampling",
    "muon",
    "training",
    "evaluation",
    "plots",
    "widgets",
]


def local_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddpm_utils."):
            yield node.module.split(".")[1]


def test_every_file_is_in_the_order():
    assert {path.stem for path in FOLDER.glob("*.py")} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_files_above_it(name):
    assert set(local_imports(FOLDER / f"{name}.py")) <= set(ORDER[: ORDER.index(name)])


def test_training_and_sampling_need_no_matplotlib():
    code = "import main, sys; print([m for m in ('matplotlib', 'ipywidgets', 'IPython') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ORDER)
def test_everything_public_says_what_it_is(name):
    module = import_module(f"ddpm_utils.{name}")
    assert module.__doc__
    for key, value in vars(module).items():
        if not key.startswith("_") and getattr(value, "__module__", "") == module.__name__ and callable(value):
            assert inspect.getdoc(value), f"{name}.{key} has no docstring"


CAN_RUN_CODE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}


def test_nothing_that_is_loaded_can_hold_code():
    """No pickle in any form. (torchvision unpickles CIFAR-10, but only files whose hash it knows.)"""
    for path in [*FOLDER.rglob("*.py"), FOLDER.parent / "main.py", *FOLDER.parent.glob("tools/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names):
                    found = {alias.name.split(".")[0] for alias in names} & CAN_RUN_CODE
                case ast.ImportFrom(module) if module:
                    found = {module.split(".")[0]} & CAN_RUN_CODE
                case ast.Attribute(ast.Name("torch"), "load" | "jit" | "hub" | "package"):
                    found = {f"torch.{node.attr}"}
                case ast.keyword("allow_pickle" | "weights_only"):
                    found = {node.arg}
                case ast.Call(ast.Name("eval" | "exec" | "__import__" as name)):
                    found = {name}
                case _:
                    found = set()
            assert not found, f"{path.name}, line {getattr(node, 'lineno', '?')}: {found}"


def test_the_readme_points_to_sections_that_exist():
    root = FOLDER.parent
    page = (root / "README.md").read_text(encoding="utf-8")
    links = re.findall(r'\[(\d\d), "([^"]+)"\]\((notebooks/\d\d_\w+\.ipynb)\)', page)
    assert len(links) > 10
    for number, section, path in links:
        cells = json.loads((root / path).read_text(encoding="utf-8"))["cells"]
        lines = "".join(
            "".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "markdown"
        ).splitlines()
        assert Path(path).name.startswith(number)
        assert section in [line.lstrip("#").strip() for line in lines if line.startswith("#")], (path, section)
