"""What `make book` makes of a slider and of a link. The pages themselves: tests/browser/test_book.py."""

import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import ipywidgets as ipw
import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_utils import widgets

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> object:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


load("notebooks")  # which book imports
book, recorder = load("book"), load("record_sliders")


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Path]:
    """A folder into which every slider saves its frames, for as long as the test runs."""
    original = widgets.live_slider
    recorder.record_sliders(tmp_path)
    yield tmp_path
    widgets.live_slider = original


def described(folder: Path) -> list[dict]:
    return json.loads((folder / "sliders.json").read_text(encoding="utf-8"))


def plain(grey: float) -> np.ndarray:
    return np.full((4, 6, 3), grey, dtype=np.uint8)


# ---- recording -------------------------------------------------------------------------------------------------------


def test_every_frame_of_a_frame_slider_is_saved_to_the_last_pixel(recorded: Path) -> None:
    frames = list(np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8))
    widgets.frame_slider("a", frames, [999, 500, 100, 10, "end"], frames[0], "Five pictures.", scale=2)
    (slider,) = described(recorded)
    assert (slider["name"], slider["alt"]) == ("a", "Five pictures.")
    assert slider["controls"] == [{"label": "t", "stops": ["999", "500", "100", "10", "end"], "start": 0}]
    assert slider["frames"] == [{"width": 12}] * 5
    for i, frame in enumerate(frames):
        saved = np.asarray(Image.open(recorded / slider["folder"] / f"{i}.webp"))
        assert np.array_equal(saved, frame.repeat(2, 0).repeat(2, 1))


def test_a_live_slider_is_drawn_for_each_combination_of_stops(recorded: Path) -> None:
    widgets.live_slider(
        "b",
        lambda t, cosine, scale: plain(t // 10 + 100 * cosine + 20 * (scale > 1)),
        plain(0),
        "Greys.",
        t=ipw.IntSlider(37, 0, 999, description="t"),
        cosine=ipw.ToggleButtons(options=[("linear", False), ("cosine", True)], description="schedule"),
        scale=ipw.FloatLogSlider(1.0, min=-2, max=2, step=0.5, readout_format=".2f", description="scale"),
    )
    (slider,) = described(recorded)
    t, schedule, scale = slider["controls"]
    assert [t["label"], schedule["stops"], schedule["start"]] == ["t", ["linear", "cosine"], 0]
    assert (t["stops"][0], t["stops"][-1], t["stops"][t["start"]]) == ("0", "999", "37")
    assert (scale["stops"][0], scale["stops"][-1], scale["stops"][scale["start"]]) == ("0.01", "100.00", "1.00")
    stops = list(itertools.product(t["stops"], schedule["stops"], scale["stops"]))
    assert 40 < len(stops) == len(slider["frames"]) <= recorder.MOST_FRAMES
    for i, (t_, schedule_, scale_) in enumerate(stops):
        grey = int(t_) // 10 + 100 * (schedule_ == "cosine") + 20 * (float(scale_) > 1)
        assert np.array_equal(np.asarray(Image.open(recorded / "00" / f"{i}.webp")), plain(grey))


def test_recording_leaves_the_notebook_as_it_was(tmp_path: Path) -> None:
    drawn, t = [], ipw.IntSlider(3, 0, 5, description="t")

    def draw(t: int) -> np.ndarray:
        drawn.append(t)
        return plain(float(torch.rand(()) * 255))

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    before = torch.rand(1)
    recorder.record(draw, {"t": t}, tmp_path)
    assert torch.equal(torch.cat([before, torch.rand(2)]), expected)
    assert drawn == [0, 1, 2, 3, 4, 5, 3] and t.value == 3  # the last picture drawn is the one that stands there


def test_where_draw_fails_the_reason_is_recorded(recorded: Path) -> None:
    def draw(t: int) -> np.ndarray:
        if t > 2:
            raise ValueError("t must be at most 2.\nMore lines.")
        return plain(t)

    widgets.live_slider("d", draw, plain(0), "Greys.", t=ipw.IntSlider(0, 0, 3, description="t"))
    assert described(recorded)[0]["frames"] == [{"width": 6}] * 3 + [{"problem": "ValueError: t must be at most 2."}]


@pytest.mark.parametrize(
    ("control", "values"),
    [
        (ipw.Checkbox(True), ["off", "on"]),
        (ipw.Dropdown(options=["a", "b"]), ["a", "b"]),
        (ipw.SelectionSlider(options=[1, 10]), ["1", "10"]),
        (ipw.FloatSlider(0.3, min=-0.5, max=0.5, step=0.4), ["-0.50", "-0.10", "0.30"]),
        (ipw.IntSlider(4, 0, 10, 4), ["0", "4", "8"]),
        (ipw.Text("words"), ["words"]),
        (ipw.IntRangeSlider(value=(1, 2), min=0, max=5), ["(1, 2)"]),
    ],
    ids=lambda x: type(x).__name__,
)
def test_the_values_of_a_control(control: ipw.ValueWidget, values: list[str]) -> None:
    assert recorder.values_of(control)[1] == values


@pytest.mark.parametrize("counts", [[1000], [1000, 2], [13, 64], [10, 19, 100], [6, 6, 51, 6], [1, 1], [2, 2, 2, 2]])
@pytest.mark.parametrize("most", [60, 120])
def test_stops_are_shared_out_within_the_limit(counts: list[int], most: int) -> None:
    shares = recorder.share_out(counts, most)
    assert all(1 <= share <= min(count, recorder.MOST_STOPS) for share, count in zip(shares, counts, strict=True))
    assert np.prod(shares) <= most
    for i, share in enumerate(shares):  # no room for one more
        more = np.prod(shares) // share * (share + 1)
        assert share == min(counts[i], recorder.MOST_STOPS) or more > most


@pytest.mark.parametrize(("n", "wanted", "start"), [(1000, 24, 37), (10, 10, 7), (19, 3, 8), (5, 2, 2), (7, 1, 3)])
def test_stops_are_spread_evenly_with_the_start_among_them(n: int, wanted: int, start: int) -> None:
    chosen = recorder.spread(n, wanted, start)
    assert start in chosen and chosen == sorted(set(chosen)) and len(chosen) == wanted
    assert wanted < 3 or (chosen[0] in (0, start) and chosen[-1] in (n - 1, start))
    assert wanted < 3 or max(np.diff(chosen)) <= 2 * (n - 1) / (wanted - 1)


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_links_into_the_repository_lead_to_pages() -> None:
    linked: list[Path] = []
    text = (
        "[02](02_forward_process.ipynb) [a `b`](../ddpm_utils/unet.py) [c](../README.md#Two-commands:) [d](../tests) "
        "[e](https://example.org/x.py) ![f](../ddpm_utils/weights/gallery.png) `g[0](x)`\n"
        "[i](#Bug:-rand,-or-randn?) `j[]()`\n"
        "```\n[h](../ddpm_utils/unet.py)\n```\n"
    )
    assert book.with_links(text, Path("notebooks/01_x.ipynb"), linked) == (
        "[02](02_forward_process.ipynb) [a `b`](../ddpm_utils/unet.py.md) [c](../README.md#two-commands) d "
        "[e](https://example.org/x.py) ![f](../ddpm_utils/weights/gallery.png) `g[0](x)`\n"
        "[i](#bug-rand-or-randn) `j[]()`\n"
        "```\n[h](../ddpm_utils/unet.py)\n```\n"
    )
    assert [file.as_posix() for file in linked] == [
        "notebooks/02_forward_process.ipynb",
        "ddpm_utils/unet.py",
        "README.md",
    ]


def test_a_slider_without_script_is_its_still_picture() -> None:
    control = {"label": "<t>", "stops": ["0", "9"], "start": 1}
    alone = {"label": "seed", "stops": ["1"], "start": 0}
    slider = {"alt": 'A "star".', "controls": [control, alone], "frames": [{"width": 6}] * 2}
    page = book.moving(slider, "<img still>", "../x")
    assert '<div class="controls" hidden>' in page and "<img still>" in page
    assert page.count("<input") == 1 and 'value="1"' in page and "&lt;t&gt;" in page
    assert 'alt="A &quot;star&quot;."' in page
