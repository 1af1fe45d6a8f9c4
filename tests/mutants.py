"""Tests run against ddpm_utils with one file of it changed: what test_museum.py starts, as a program of its own.

    python tests/mutants.py JOBS.json

JOBS.json: a list of [folder, file, tests]. folder/ddpm_utils holds the changed file; whatever else the package needs
is taken from where it always lies (see `lay_out`). Each job has a process of its own and leaves folder/result.json.
"""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "ddpm_utils"
# Where a process can be forked safely, one that has imported all this forks once per job: half a second for each.
FORKS = sys.platform == "linux"
PRELOAD = ("pytest", "torchvision.datasets", "safetensors.torch", "scipy.linalg", "matplotlib.pyplot", "ipywidgets")


def lay_out(folder: Path, file: str, text: str) -> None:
    """A package ddpm_utils in folder, with text for its file; its other files are those of the real package."""
    package = folder / "ddpm_utils"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(PACKAGE)!r})\n", encoding="utf-8")
    if file:
        (package / file).write_text(text, encoding="utf-8")


class Failures:
    """Notes for each exception in a test: the test, the phase (collect, setup, call), the exception's type."""

    def __init__(self):
        self.seen, self.passed = [], 0

    def pytest_exception_interact(self, node, call, report):
        self.seen.append([node.nodeid, call.when, call.excinfo.typename])

    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed


def run(folder: str, file: str, tests: list[str]) -> None:
    """Run the tests in this process, and leave folder/result.json."""
    import pytest
    import torch

    torch.set_num_threads(1)  # several processes with several threads each would stall each other
    os.chdir(folder)
    sys.path[:0] = [folder, str(PACKAGE.parent)]  # the second for main.py
    with open("said.txt", "w", encoding="utf-8") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    Path("empty.ini").write_text("[pytest]\n", encoding="utf-8")
    failures = Failures()
    options = ["-q", "-c", "empty.ini", "-p", "no:cacheprovider", *(["-x"] if file else [])]
    code = pytest.main([*options, *(str(PACKAGE.parent / "tests" / test) for test in tests)], plugins=[failures])
    tested = sys.modules.get(f"ddpm_utils.{file.removesuffix('.py')}" if file else "ddpm_utils")
    result = {
        "exit": int(code),
        "file": getattr(tested, "__file__", None),
        "failures": failures.seen,
        "passed": failures.passed,
    }
    Path("result.json").write_text(json.dumps(result), encoding="utf-8")


def main(jobs: list[list]) -> None:
    if not FORKS:
        for job in jobs:
            subprocess.run([sys.executable, __file__, "--one", json.dumps(job)], check=False)
        return
    for name in PRELOAD:
        import_module(name)
    running = 0
    for job in jobs:
        if running == min(2, os.cpu_count() or 1):
            os.wait()
            running -= 1
        if os.fork() == 0:
            try:
                run(*job)
            finally:
                os._exit(0)  # what the job has to say is in its folder
        running += 1
    for _ in range(running):
        os.wait()


if __name__ == "__main__":
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if sys.argv[1] == "--one":
        run(*json.loads(sys.argv[2]))
    else:
        main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
