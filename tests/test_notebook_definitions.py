"""What a notebook builds is what the module holds: definitions of the same name are the same code.

Left out of the comparison, because a notebook may do without: docstrings, annotations, comments, and guards
(an `if` that only raises; a call of a `_check...` function).
"""

import ast
import difflib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "ddpm_utils").glob("*.py"))


class _Bare(ast.NodeTransformer):
    """Takes the annotations, docstrings and guards out of a definition."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._body(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return ast.Assign([node.target], node.value) if node.value else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        only_raises = all(isinstance(statement, ast.Raise) for statement in node.body) and not node.orelse
        return None if only_raises else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        call = node.value.func if isinstance(node.value, ast.Call) else None
        name = getattr(call, "id", getattr(call, "attr", ""))
        return None if name.startswith("_check") else self.generic_visit(node)

    def _body(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        fields = [child for child in node.body if isinstance(node, ast.ClassDef) and isinstance(child, ast.AnnAssign)]
        for field in fields:
            field.annotation = ast.Constant(...)  # its kind does not matter, but that there is one makes it a field
        node.body = [child if child in fields else self.visit(child) for child in node.body]
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        # what guards left behind goes; so does a method that was nothing but guards
        node.body = [child for child in node.body if child and not _empty(child)] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef):
            self.visit(node.args)
        return node


def _empty(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and all(isinstance(statement, ast.Pass) for statement in node.body)


def bare(source: str) -> dict[str, str]:
    """The top-level functions and classes of a program, bare, by name; and each class's methods as "Class.method".

    A notebook may grow a class method by method: a function f, then `Class.f = f`. That f counts as a method, and no
    longer as a function; and the class itself is then not held to be whole.
    """
    found, grown = {}, set()
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                node = ast.fix_missing_locations(_Bare().visit(node))
                found[node.name] = ast.unparse(node)
                methods = node.body if isinstance(node, ast.ClassDef) else []
                found |= {f"{node.name}.{m.name}": ast.unparse(m) for m in methods if isinstance(m, ast.FunctionDef)}
            case ast.Assign([ast.Attribute(ast.Name(owner), attribute)], ast.Name(name)) if name in found:
                found[f"{owner}.{attribute}"] = found.pop(name)
                grown.add(owner)
    return {name: code for name, code in found.items() if name not in grown}


def module_definitions() -> dict[str, tuple[str, str]]:
    """name -> (file, code) of every definition at the top level of the module's files, but for private functions."""
    found = {}
    for path in MODULES:
        for name, code in bare(path.read_text(encoding="utf-8")).items():
            if not name.startswith("_"):
                found[name] = (path.name, code)
    return found


def differences(program: str, known: dict[str, tuple[str, str]], title: str) -> list[str]:
    """Where a program's definitions differ from those known by the same name: a diff, line by line."""
    lines = []
    for name, code in bare(program).items():
        file, wanted = known.get(name, ("", code))
        if code != wanted:
            pair = wanted.splitlines(), code.splitlines()
            lines += difflib.unified_diff(*pair, f"ddpm_utils/{file}: {name}", title, lineterm="", n=99)
    return lines


def notebook_source(notebook: nbformat.NotebookNode) -> str:
    """The code cells as one program, without IPython's % and ! lines."""
    cells = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    lines = (line for cell in cells for line in cell.splitlines())
    return "\n".join(line for line in lines if not line.startswith(("%", "!")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_definition_of_the_modules_name_is_the_modules_code(path: Path) -> None:
    program = notebook_source(nbformat.read(path, as_version=4))
    found = differences(program, module_definitions(), path.name)
    assert not found, "\n" + "\n".join(found)


MODULE = '''
def f(x: Tensor, k: int = 2) -> Tensor:
    """Doc."""
    _check(x)
    if k < 1:
        raise ValueError("k")
    y: Tensor = x * k  # why
    return y
'''


@pytest.mark.parametrize(
    ("notebook", "same"),
    [
        ("def f(x, k=2):\n    y = x * k\n    return y", True),
        ("def f(x, k=3):\n    y = x * k\n    return y", False),
        ("def f(x, k=2):\n    y = x + k\n    return y", False),
        ("def f(x, k=2):\n    if k < 1:\n        k = 1\n    y = x * k\n    return y", False),
    ],
)
def test_the_comparison_forgives_only_what_it_should(notebook: str, same: bool) -> None:
    assert (bare(notebook) == bare(MODULE)) == same


def test_a_class_is_compared_method_by_method() -> None:
    guarded = "        if x:\n            raise ValueError\n"
    module = f"class A(B):\n    def __init__(self, x: int):\n{guarded}        self.x: int = x\n"
    assert bare(module) == bare("class A(B):\n    def __init__(self, x):\n        self.x = x")
    assert bare(module) != bare("class A(C):\n    def __init__(self, x):\n        self.x = x")
    assert bare(module + "    def g(self): return 1") != bare(module)


def test_a_dataclass_keeps_its_fields_and_may_lose_its_guards() -> None:
    fields = "@dataclass(frozen=True)\nclass A:\n    n: int = 1\n    m: str\n"
    assert bare(fields + "    def __post_init__(self):\n        if self.n < 1:\n            raise ValueError") == bare(
        fields
    )
    assert bare(fields.replace("n: int = 1", "n = 1")) != bare(fields)
    assert bare(fields.replace("frozen=True", "")) != bare(fields)


def test_a_class_may_grow_method_by_method() -> None:
    body = "    def __init__(self):\n        self.x = 1\n"
    f, g = "def f(self):\n    return self.x\n", "def g(self):\n    return 2\n"
    whole = f"class A:\n{body}\n    def f(self):\n        return self.x\n\n    def g(self):\n        return 2\n"
    known = {name: ("a.py", code) for name, code in bare(whole).items()}
    assert not differences(f"class A:\n{body}\n{f}\nA.f = f\n{g}\nA.g = g\n", known, "grown")
    assert not differences(f"class A:\n{body}\n{f}\nA.f = f\n", known, "grown in part")
    assert not differences(f"{f}\nA.f = f\n", known, "grown elsewhere")
    assert differences(f"class A:\n{body}\n{g.replace('2', '3')}\nA.g = g\n", known, "grown wrong")
    assert differences(f"class A:\n{body.replace('1', '2')}\n{g}\nA.g = g\n", known, "born wrong")
    assert differences(f"class A:\n{body}", known, "written in one piece, but in part")
