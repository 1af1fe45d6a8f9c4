"""Figures by their pixels, sliders by what they send, exercises by what they say."""

import base64
import io
from collections.abc import Callable

import ipywidgets as ipw
import matplotlib as mpl
import numpy as np
import pytest
import torch
from ipywidgets.widgets.widget import _instances as all_widgets  # those not closed, by id
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor, nn

from ddpm_utils import plots, widgets
from ddpm_utils.checks import Exercise, close
from ddpm_utils.plots import (
    Redrawn,
    encode_png,
    filmstrip,
    image_grid,
    show,
    show_images,
    shown_width,
    style,
    tile,
    to_png,
)
from ddpm_utils.widgets import frame_slider, live_slider


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict, dict]]:
    """What is displayed: a list of (data, metadata)."""
    calls = []
    for module in (plots, widgets):
        if hasattr(module, "display"):
            monkeypatch.setattr(module, "display", lambda data, metadata, raw: calls.append((data, metadata)))
    return calls


def coloured(n: int, h: int = 4, w: int = 6) -> Tensor:
    """n images, each of one colour of its own, with a white dot in the top right corner."""
    images = torch.stack([torch.tensor([-1.0, i / n, 1 - 2 * i / n]).view(3, 1, 1).expand(3, h, w) for i in range(n)])
    images = images.clone()
    images[:, :, 0, -1] = 1
    return images


# ---- tile, encode_png -----------------------------------------------------------------------------------------------


def test_tile_puts_every_image_in_its_place() -> None:
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grid = tile(images, columns=3, padding=2)
    assert grid.shape == (2 * 4 + 2, 3 * 6 + 2 * 2, 3) and grid.dtype == np.uint8
    for i in range(5):
        for y in range(4):
            for x in range(6):
                assert grid[i // 3 * 6 + y, i % 3 * 8 + x].tolist() == images[i, :, y, x].tolist()
    assert (grid[4:6] == 255).all() and (grid[:, 6:8] == 255).all() and (grid[6:, 16:] == 255).all()


@pytest.mark.parametrize(
    ("value", "byte"), [(-1, 0), (1, 255), (0, 128), (-7, 0), (1.01, 255), (float("nan"), 0), (float("inf"), 255)]
)
def test_tile_clamps_where_a_cast_would_wrap_around(value: float, byte: int) -> None:
    assert (tile(torch.full((1, 3, 2, 2), value)) == byte).all()


def test_tile_takes_grey_images_any_dtype_and_gradients() -> None:
    grey = torch.tensor([[[[-1.0, 1.0]]]], requires_grad=True)
    assert tile(grey).tolist() == [[[0] * 3, [255] * 3]]
    assert tile(grey.bfloat16()).tolist() == tile(grey).tolist()


def test_tile_enlarges_to_sharp_squares() -> None:
    small = tile(coloured(3), columns=2)
    large = tile(coloured(3), columns=2, scale=3)
    assert large.shape == (small.shape[0] * 3, small.shape[1] * 3, 3)
    assert all((large[dy::3, dx::3] == small).all() for dy in range(3) for dx in range(3))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 2, 4, 4), (0, 3, 4, 4), (1, 4, 4, 3)])
def test_tile_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        tile(torch.zeros(shape))
    with pytest.raises(ValueError, match="columns"):
        tile(torch.zeros(1, 3, 2, 2), columns=0)


def test_encode_png_keeps_the_pixels() -> None:
    array = tile(coloured(2))
    assert (pixels(encode_png(array)) == array).all()
    assert (pixels(encode_png(array, scale=2))[1::2, ::2] == array).all()
    assert encode_png(array) == encode_png(array)
    with pytest.raises(ValueError, match="uint8"):
        encode_png(array / 255)


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", [image_grid(coloured(3), 3), image_grid(coloured(3), 3, titles="abc")])
def test_a_grid_shows_each_pixel_as_a_square_of_whole_pixels(figure: Figure) -> None:
    picture, wanted = pixels(to_png(figure)), tile(coloured(3), 3)
    scale = (picture.shape[1]) // (wanted.shape[1] + 1)
    enlarged = wanted.repeat(scale, 0).repeat(scale, 1)
    assert (picture[: enlarged.shape[0], : enlarged.shape[1]] == enlarged).all()
    assert scale >= 6 and (picture[-1] == 255).all()  # white below


def test_titles_stand_under_their_rows() -> None:
    bare, titled = (pixels(to_png(image_grid(coloured(5), 2, titles))) for titles in ((), "abcde"))
    assert titled.shape[1] == bare.shape[1] and titled.shape[0] > bare.shape[0]
    dark = (titled < 60).all(axis=2).any(axis=1)  # rows of pixels with black in them: the letters
    bands = np.flatnonzero(np.diff(dark.astype(int)) == 1)
    assert len(bands) == 3


def test_a_filmstrip_of_several_images_has_a_row_for_each_and_labels_once() -> None:
    frames = torch.stack([coloured(4), coloured(4).flip(0)])
    plain, labelled = filmstrip(frames, [""] * 4), filmstrip(frames, [0, 10, 500, 999], ["a", "b"])
    assert len(plain.axes) == len(labelled.axes) == 2
    assert [text.get_text() for text in labelled.axes[1].get_xticklabels()] == ["0", "10", "500", "999"]
    assert not labelled.axes[0].get_xticklabels()
    assert [axes.get_yticklabels()[0].get_text() for axes in labelled.axes] == ["a", "b"]
    assert pixels(to_png(labelled)).shape[1] > pixels(to_png(plain)).shape[1]


def test_labels_must_be_as_many_as_what_they_label() -> None:
    with pytest.raises(ValueError, match="titles"):
        image_grid(coloured(3), titles="ab")
    with pytest.raises(ValueError, match="labels"):
        filmstrip(coloured(3), "ab")
    with pytest.raises(ValueError, match="row_labels"):
        image_grid(coloured(3), columns=2, row_labels="a")


def test_show_displays_white_pixels_with_words_and_closes_the_figure(shown: list) -> None:
    fig, ax = plt.subplots(figsize=(4, 2), facecolor="black")
    ax.plot([1, 2])
    show(fig, "A rising line.")
    [(data, metadata)] = shown
    png = base64.b64decode(data["image/png"])
    assert data["text/plain"] == metadata["image/png"]["alt"] == "A rising line."
    assert pixels(png)[0, 0].tolist() == [255, 255, 255]  # opaque: no fourth number
    assert metadata["image/png"]["width"] == shown_width(png) == 4 * 96 < pixels(png).shape[1]
    assert b"Software" not in png and not plt.fignum_exists(fig.number)


def test_the_same_figure_gives_the_same_bytes() -> None:
    def make() -> Figure:
        fig, ax = plt.subplots()
        ax.plot([3, 1, 2], label="zigzag")
        ax.legend()
        return fig

    assert to_png(make()) == to_png(make())


def test_an_array_is_shown_at_its_own_size() -> None:
    assert shown_width(encode_png(tile(coloured(1)))) == 6


def test_a_picture_needs_words(shown: list) -> None:
    with pytest.raises(ValueError, match="alt"):
        show_images(coloured(2), " ")
    assert not shown


def test_style_touches_matplotlib_only_when_called() -> None:
    with mpl.rc_context():
        mpl.rcdefaults()
        style()
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"][0] == "#0072B2"
        assert mpl.rcParams["image.interpolation"] == "nearest"
        assert len(set(plots.COLOURS)) == 8


# ---- figures that are drawn again -----------------------------------------------------------------------------------


def lines() -> tuple[Figure, Axes, Line2D]:
    fig, ax = plt.subplots(figsize=(4, 2), layout="constrained")
    (line,) = ax.plot([0, 1, 0], label="a line")
    ax.set(xlabel="x", ylabel="y", ylim=(0, 9), title="above a factor")
    ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))  # a factor above the axis: the title gives way to it
    ax.title.set_ha("right")
    ax.legend()
    return fig, ax, line


def bars_and_image() -> tuple[Figure, list[Callable[[], object]]]:
    """A figure of most of what sliders move, and the moves."""
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7, 2), layout="constrained")
    bars = left.bar(range(3), [1, 2, 3])
    image = middle.imshow(np.eye(4), vmin=0, vmax=2)
    fig.colorbar(image, ax=middle, label="value")
    points = right.plot([0.0, 1.0], [0.0, 2.0], "o", clip_on=False)[0]
    steps = right.stairs([1, 2], [0, 0.5, 1], fill=True, color="orange")
    words = fig.text(0.5, 0.01, "below all")
    right.twinx().plot([0, 1], [3, 4], "--", color="green")
    right.inset_axes([0.6, 0.6, 0.3, 0.3]).plot([0, 1])
    return fig, [
        lambda: bars[1].set_height(0.5),
        lambda: image.set_data(2 * np.eye(4)),
        lambda: points.set_data([0.5, 0.9], [-0.3, 1.5]),
        lambda: steps.set_data([2, 0.5]),
        lambda: words.set_text("something else"),
        lambda: right.set_title("a title that comes later"),
    ]


def same_as_drawn_whole(redrawn: Redrawn) -> bool:
    return bool((pixels(redrawn.png()) == pixels(to_png(redrawn.fig))).all())


def test_a_figure_drawn_again_has_the_pixels_of_one_drawn_whole() -> None:
    fig, moves = bars_and_image()
    redrawn = Redrawn(fig)
    assert (pixels(redrawn.first_png()) == pixels(to_png(fig))).all()
    assert same_as_drawn_whole(redrawn)
    kept = redrawn._pixels
    for move in moves:
        before = pixels(redrawn.png())
        move()
        assert (pixels(redrawn.png()) != before).any() and same_as_drawn_whole(redrawn)
    assert redrawn._pixels is kept


@pytest.mark.parametrize(
    "change",
    [
        lambda ax: ax.set_ylim(0, 5),
        lambda ax: ax.set_xscale("symlog"),
        lambda ax: ax.set_xlabel("another"),
        lambda ax: ax.set_xlabel(""),
        lambda ax: ax.set_xticks([0, 2], ["from", "to"]),
        lambda ax: ax.tick_params(labelsize=6),
        lambda ax: ax.tick_params(which="minor", length=9) or ax.minorticks_on(),
        lambda ax: ax.get_xticklabels()[2].set_color("red"),
        lambda ax: ax.xaxis.set_label_position("top"),
        lambda ax: ax.yaxis.tick_right(),
        lambda ax: ax.yaxis.label.set_color("red"),
        lambda ax: ax.set_facecolor("lightyellow"),
        lambda ax: ax.set_position([0.3, 0.3, 0.5, 0.5]),
        lambda ax: ax.axis("off"),
        lambda ax: ax.xaxis.set_visible(False),
        lambda ax: ax.spines["left"].set_color("red"),
        lambda ax: ax.set_visible(False),
        lambda ax: ax.grid(True),
        lambda ax: ax.figure.set_size_inches(5, 3),
        lambda ax: ax.figure.add_axes([0.5, 0.5, 0.3, 0.3]),
        lambda ax: ax.figure.suptitle("over all"),
        lambda ax: (ax.lines[0].set_ydata([0, 20, 0]), ax.relim(), ax.autoscale(), ax.autoscale_view()),
    ],
)
def test_what_frames_the_data_is_drawn_anew_when_it_changes(change: Callable[[Axes], object]) -> None:
    fig, ax, line = lines()
    redrawn = Redrawn(fig)
    redrawn.keep()
    before = pixels(redrawn.png())
    change(ax)
    after = pixels(redrawn.png())
    assert after.shape != before.shape or (after != before).any()
    assert same_as_drawn_whole(redrawn)
    line.set_ydata([3, 1, 2])
    assert same_as_drawn_whole(redrawn)


def test_limits_set_as_they_were_change_nothing() -> None:
    fig, ax, line = lines()
    redrawn = Redrawn(fig)
    redrawn.keep()
    kept = redrawn._pixels
    ax.set(ylim=(0, 9), xlim=ax.get_xlim())
    line.set_ydata([3, 1, 2])
    assert same_as_drawn_whole(redrawn) and redrawn._pixels is kept


@pytest.mark.parametrize("make", [lambda: plt.figure(), lambda: plt.subplots(subplot_kw={"polar": True})[0]])
def test_other_figures_can_be_drawn_again_too(make: Callable[[], Figure]) -> None:
    fig = make()
    ax = fig.axes[0] if fig.axes else fig.subfigures(1, 2)[0].subplots()
    (line,) = ax.plot([0, 1], [0, 1])
    redrawn = Redrawn(fig)
    redrawn.keep()
    line.set_ydata([1, 0.5])
    assert same_as_drawn_whole(redrawn)


# ---- sliders --------------------------------------------------------------------------------------------------------


def slider_parts(name: str) -> tuple[list[ipw.Widget], ipw.HTML, ipw.Image]:
    bar, problem, picture, _words = widgets._on_display[name].children
    return list(bar.children), problem, picture


def test_a_frame_slider_shows_the_frame_that_it_stands_at(shown: list) -> None:
    frames = [tile(coloured(3)[i : i + 1]) for i in range(3)]
    frame_slider("frames", frames, [0, 500, 999], filmstrip(coloured(3), "abc"), "Three colours.", scale=5)
    [slider], _, picture = slider_parts("frames")
    assert slider.options == (("0", 0), ("500", 1), ("999", 2)) and slider.description == "t"
    for i, label in enumerate(["0", "500", "999"]):
        slider.label = label
        assert (pixels(picture.value) == frames[i].repeat(5, 0).repeat(5, 1)).all()


def test_a_slider_leaves_its_still_and_its_words(shown: list) -> None:
    still = tile(coloured(2))
    live_slider("stills", lambda k: still // k, still, "Two colours.", k=ipw.IntSlider(2, 1, 9))
    [(data, metadata)] = shown
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert (pixels(base64.b64decode(data["image/png"])) == still).all()
    assert data["text/plain"] == metadata["image/png"]["alt"] == "Two colours."


def test_a_live_slider_draws_anew_with_all_values(shown: list) -> None:
    def draw(k: int, kind: str) -> np.ndarray:
        return np.full((2, 2, 3), k + {"a": 0, "b": 100}[kind], dtype=np.uint8)

    controls = {"k": ipw.IntSlider(3, 0, 9), "kind": ipw.Dropdown(options=["a", "b"])}
    live_slider("values", draw, draw(0, "a"), "Grey.", **controls)
    _, _, picture = slider_parts("values")
    assert (pixels(picture.value) == 3).all()
    controls["k"].value = 7
    controls["kind"].value = "b"
    assert (pixels(picture.value) == 107).all()


def test_a_live_figure_is_drawn_anew_and_never_left_open(shown: list) -> None:
    fig, ax = plt.subplots(figsize=(7, 2))
    (line,) = ax.plot([0, 1])
    ax.set_ylim(0, 9)

    def draw(k: int) -> Figure:
        line.set_ydata([0, k])
        return fig

    wanted_still, control = to_png(draw(9)), ipw.IntSlider(1, 1, 9)
    live_slider("figure", draw, draw(9), "A line.", k=control)
    assert base64.b64decode(shown[0][0]["image/png"]) == wanted_still  # not what draw then made of the same figure
    _, _, picture = slider_parts("figure")
    before, control.value = picture.value, 9
    assert (pixels(before) != pixels(picture.value)).any() and picture.width == "672"
    assert not plt.get_fignums()


def test_an_error_in_draw_is_told_and_the_slider_goes_on(shown: list) -> None:
    def draw(k: int) -> np.ndarray:
        if k == 2:
            raise ValueError("k is <2>\nmore")
        return np.full((2, 2, 3), k, dtype=np.uint8)

    control = ipw.IntSlider(1, 1, 9)
    live_slider("error", draw, draw(1), "Grey.", k=control)
    _, problem, picture = slider_parts("error")
    assert problem.layout.display == "none"
    control.value = 2
    assert "ValueError: k is &lt;2&gt;" in problem.value and "more" not in problem.value
    assert problem.layout.display == "block" and (pixels(picture.value) == 1).all()
    control.value = 3
    assert problem.layout.display == "none" and (pixels(picture.value) == 3).all()


def test_a_cell_that_runs_again_leaves_no_widget_behind(shown: list) -> None:
    still = encode_png(np.zeros((2, 2, 3), dtype=np.uint8))
    live_slider("again", lambda k: still, still, "Black.", k=ipw.IntSlider(1, 1, 9))
    counts = []
    for _ in range(3):
        live_slider("again", lambda k: still, still, "Black.", k=ipw.IntSlider(1, 1, 9))
        counts.append(len(all_widgets))
    assert len(set(counts)) == 1


def test_a_control_that_was_closed_is_refused_in_words(shown: list) -> None:
    still, control = encode_png(np.zeros((2, 2, 3), dtype=np.uint8)), ipw.IntSlider(1, 1, 9)
    live_slider("closed", lambda k: still, still, "Black.", k=control)
    with pytest.raises(ValueError, match="make them in the call"):
        live_slider("closed", lambda k: still, still, "Black.", k=control)


def test_what_is_no_picture_is_refused(shown: list) -> None:
    with pytest.raises(TypeError, match="NoneType"):
        live_slider("none", lambda k: None, b"", "Nothing.", k=ipw.IntSlider(1, 1, 9))
    with pytest.raises(ValueError, match="as many labels as frames"):
        frame_slider("count", [b"", b""], [1, 2, 3], b"", "Nothing.")


# ---- exercises ------------------------------------------------------------------------------------------------------

root = Exercise(
    "root",
    reference=lambda beta: beta.sqrt(),
    cases=lambda: [(torch.tensor([0.25, 0.5]),), (torch.tensor([0.01]),)],
    mistakes={
        "this is beta; the equation wants sqrt(beta).": lambda beta: beta,
        "this sums over the batch.": lambda beta: beta.sqrt().sum(),
        "this fails, as the right answer never does.": lambda beta: beta.no_such_method(),
    },
    note="Noise adds by its variance.",
)


def unsolved(beta: Tensor) -> Tensor:
    raise NotImplementedError


def half_solved(beta: Tensor) -> Tensor:
    return beta * ...


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (lambda beta: beta**0.5, "Correct. Noise adds by its variance."),
        (lambda beta: 1 * beta, "Not yet: this is beta; the equation wants sqrt(beta)."),
        (lambda beta: sum(beta.sqrt()), "Not yet: this sums over the batch."),
        (lambda beta: beta.sqrt() + 1, "Not yet: the largest difference is 1 (case 1 of 2)."),
        (lambda beta: beta.sqrt() * torch.nan, "Not yet: there is NaN in it (case 1 of 2)."),
        (lambda beta: beta.sqrt()[:1], "Not yet: the shape is (1,); it should be (2,) (case 1 of 2)."),
        (
            lambda beta: beta.sqrt().double(),
            "Not yet: the dtype is torch.float64; it should be torch.float32 (case 1 of 2).",
        ),
        (lambda beta: 0.5, "Not yet: 0.5 is given where a tensor of shape (2,) is wanted (case 1 of 2)."),
        (lambda beta: 1 / 0, "Not yet: it stops with ZeroDivisionError: division by zero (case 1 of 2)."),
    ],
)
def test_an_exercise_says_what_is_the_matter(answer: object, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert root(answer) is None
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize("answer", [None, ..., unsolved, half_solved, lambda beta: None, lambda beta: ...])
def test_an_exercise_waits_for_those_who_have_not_begun(answer: object) -> None:
    assert root.verdict(answer).startswith("Not solved yet: root.")


def test_an_exercise_leaves_arguments_and_random_numbers_alone() -> None:
    shared = torch.tensor([0.25])
    exercise = Exercise("e", lambda x: x + torch.rand(1), lambda: [(shared,), (shared,)])
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    assert exercise.verdict(lambda x: x.add_(torch.rand(1))).startswith("Correct")
    assert torch.rand(1) == wanted and shared == 0.25


def test_a_value_and_a_class_can_be_asked_for() -> None:
    number = Exercise("number", 0.5, mistakes={"that is beta.": 0.25})
    number.self_test()
    assert number.verdict(torch.tensor(0.5)) == number.verdict(0.5) == "Correct."
    assert number.verdict(0.25) == "Not yet: that is beta."
    assert number.verdict("half") == "Not yet: 'half' is given where a number is wanted."
    word = Exercise("word", "c", mistakes={"that one is right; the wrong one was asked for.": "a"})
    word.self_test()
    assert word.verdict("b") == "Not yet: 'b' is not the answer."
    block = Exercise(
        "block",
        reference=nn.Linear,
        cases=lambda: [(4, 8), (8, 8)],
        mistakes={"this is the identity.": lambda c_in, c_out: nn.Identity()},
        run=lambda make, c_in, c_out: make(c_in, c_out)(torch.ones(2, c_in)),
    )
    block.self_test()
    assert block.verdict(lambda c_in, c_out: nn.Linear(c_in, c_in)).startswith("Not yet: the shape is (2, 4)")


def test_a_comparison_that_fails_is_told_and_not_raised() -> None:
    exercise = Exercise("e", lambda: 1.0, compare=lambda got, want: "" if got.item() == want else "it differs")
    assert exercise.verdict(lambda: [1]).startswith("Not yet: a list of 1 cannot be compared with what is wanted: Attr")


def test_an_error_is_a_known_mistake_only_if_it_says_the_same() -> None:
    exercise = Exercise("e", lambda x: 1.0, lambda: [(1.0,)], {"x is a number.": lambda x: x.size()})
    assert exercise.verdict(lambda x: x.size(0)) == "Not yet: x is a number."
    assert exercise.verdict(lambda x: x.shape) != "Not yet: x is a number."


@pytest.mark.parametrize(
    ("mistakes", "cases"),
    [
        ({"no mistake at all.": lambda x: abs(x) ** 0.5}, [(4.0,)]),  # the same as the reference
        ({"one.": lambda x: x, "another.": lambda x: 1 * x}, [(4.0,)]),  # one hides the other
        ({"hidden by the cases.": lambda x: x}, [(1.0,)]),
    ],
)
def test_self_test_finds_what_the_cases_do_not_separate(mistakes: dict, cases: list) -> None:
    with pytest.raises(AssertionError):
        Exercise("e", lambda x: x**0.5, lambda: cases, mistakes).self_test()


@pytest.mark.parametrize(
    ("got", "want", "phrase"),
    [
        ((1, torch.ones(2)), (1.0, torch.ones(2)), ""),
        ((1, torch.zeros(2)), (1, torch.ones(2)), "value 1: the largest difference is 1"),
        (1, (1, 2), "1 is given where 2 values are wanted"),
        (torch.tensor(True), True, ""),
        (1, True, "1 is not the answer"),
        (np.float32(2), 2, ""),
        (torch.tensor([1, 2]), 1, "a tensor of shape (2,) is given where a number is wanted"),
        (torch.tensor([torch.inf]), torch.tensor([1.0]), "the largest difference is inf"),
        (torch.tensor([torch.inf]), torch.tensor([torch.inf]), ""),
    ],
)
def test_close_says_what_differs(got: object, want: object, phrase: str) -> None:
    assert close(got, want) == phrase
