"""Tests in a real browser: `make test-browser`, or `pytest tests/browser`; not part of `pytest tests`."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import PROBE, Lab
from latency import Latencies
from playwright.sync_api import Browser, BrowserContext, Error, Playwright, sync_playwright

RESULTS = Path(__file__).with_name("results.json")
# Without a screen, a sandbox (there is none in a container) or a graphics card; and nothing that calls home.
FLAGS = [f"--{flag}" for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run")]
FLAGS += [f"--disable-{what}" for what in ("background-networking", "component-update", "sync")]
NAMES = ("chromium", "chromium-browser", "google-chrome")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("browser")
    group.addoption("--screenshots", type=Path, metavar="DIR", help="write pictures of the pages into DIR, to look at")
    group.addoption("--write-latency", action="store_true", help=f"write the answer times into {RESULTS.name}")


# ---- the browser and the server -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


def launch(playwright: Playwright) -> Browser:
    """Chromium: that of the environment variable CHROMIUM, else the system's, else Playwright's own."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    try:
        return playwright.chromium.launch(executable_path=path, args=FLAGS)
    except Error as error:
        if path:
            raise
        pytest.exit(
            f"There is no Chromium here ({', '.join(NAMES)} on the PATH, or a path in CHROMIUM). Install it "
            f"(apt-get install chromium), or run: python -m playwright install chromium\n{str(error).splitlines()[0]}",
            returncode=1,
        )


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    server = Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def context(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    context.add_init_script(path=PROBE)
    yield context
    context.close()


@pytest.fixture(scope="session")
def screenshots(request: pytest.FixtureRequest) -> Path | None:
    """The folder for screenshots, if any were asked for."""
    folder = request.config.getoption("--screenshots")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


# ---- answer times ---------------------------------------------------------------------------------------------------


LATENCIES = pytest.StashKey[Latencies]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LATENCIES] = Latencies()


@pytest.fixture(scope="session")
def latencies(pytestconfig: pytest.Config) -> Latencies:
    return pytestconfig.stash[LATENCIES]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With pytest -n: what a worker measured goes to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        measured = session.config.stash[LATENCIES]
        session.config.workeroutput["latencies"] = {"live": measured.live, "let_go": measured.let_go}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    sent = getattr(node, "workeroutput", {}).get("latencies", {})
    for kind, notebooks in sent.items():
        getattr(node.config.stash[LATENCIES], kind).update(notebooks)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    measured = config.stash[LATENCIES]
    rows = measured.table()
    if not rows:
        return
    terminalreporter.section("from key to picture")
    for row in rows:
        terminalreporter.write_line(
            f"{row['notebook']:26} {row['sliders']:7} {row['moves']:4} moves: "
            f"median {row['median_ms']:4} ms, p90 {row['p90_ms']:4} ms"
        )
    if config.getoption("--write-latency"):
        RESULTS.write_text(json.dumps(measured.record(), indent=1) + "\n", encoding="utf-8")
        terminalreporter.write_line(f"written to {RESULTS}")
