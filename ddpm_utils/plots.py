"""Figures: images as pixels (`tile`, `encode_png`), as figures (`image_grid`, `filmstrip`), on the page (`show`), and
again and again (`Redrawn`).

Images are tensors (N, C, H, W) with one or three channels: floats in [-1, 1], or uint8.
"""

import base64
import io
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import combinations

import matplotlib as mpl
import numpy as np
import torch
from IPython.display import display
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

# Okabe & Ito 2008: colours that readers with any colour vision can tell apart. Yellow, pale on white, comes last.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK, YELLOW = "#CC79A7", "#56B4E9", "#000000", "#F0E442"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)

_SCREEN_DPI = 96
_DPI = 144  # of what is drawn: 1.5 pixels per screen pixel look crisp, and files stay small
_PAGE = 1020  # drawn pixels that a figure of images may take in width, without its row labels: 680 on the screen
_CELL = 210  # drawn pixels that one image may take
_LINE = 34  # drawn pixels that a line of labels takes


def style() -> None:
    """Give every figure from now on the look of the series. Call it once, beside the imports."""
    mpl.rcParams.update(
        {
            "axes.prop_cycle": mpl.cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "figure.constrained_layout.use": True,
            "figure.figsize": (7, 2.8),
            "font.size": 10,
            "image.cmap": "viridis",
            "image.interpolation": "nearest",
            "legend.frameon": False,
        }
    )


def tile(images: Tensor, columns: int = 8, padding: int = 1, scale: int = 1) -> np.ndarray:
    """Lay images (N, C, H, W) out in a grid on white: uint8 (height, width, 3).

    Floats are clamped to [-1, 1] first, for uint8 would wrap around; NaN becomes black.
    padding: pixels between images. scale: pixels drawn per pixel, padding included.
    Raises ValueError where images has another shape, or columns is below 1.
    """
    if images.ndim != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must have the shape (N, 3, H, W) or (N, 1, H, W), not {tuple(images.shape)}.")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}.")
    images = images.detach().cpu()
    if images.dtype != torch.uint8:
        images = ((images.float().nan_to_num(nan=-1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    n, _, h, w = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    canvas = torch.full((rows * (h + padding) - padding, columns * (w + padding) - padding, 3), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + padding), i % columns * (w + padding)
        canvas[top : top + h, left : left + w] = image.permute(1, 2, 0)  # (C, H, W) -> (H, W, C)
    return canvas.numpy().repeat(scale, 0).repeat(scale, 1)


def image_grid(
    images: Tensor, columns: int = 8, titles: Sequence[object] = (), row_labels: Sequence[object] = ()
) -> Figure:
    """A figure of images (N, C, H, W) in rows of so many columns.

    titles: nothing, or N short labels, one under each image. row_labels: nothing, or one label per row.
    """
    if len(titles) not in (0, len(images)):
        raise ValueError(f"titles must be one per image ({len(images)}), not {len(titles)}.")
    starts = range(0, len(images), columns)
    return _rows([(images[i : i + columns], titles[i : i + columns]) for i in starts], columns, row_labels)


def filmstrip(frames: Tensor, labels: Sequence[object], row_labels: Sequence[object] = ()) -> Figure:
    """A figure of an image as it changes, from left to right: frames (N, C, H, W), or (rows, N, C, H, W) for several.

    labels: N short labels, such as the timesteps, drawn once under the last row. row_labels: nothing, or one per row.
    """
    strips = frames if frames.ndim == 5 else frames[None]
    n = strips.shape[1]
    if len(labels) != n:
        raise ValueError(f"labels must be one per frame ({n}), not {len(labels)}.")
    rows = [(strip, labels if i == len(strips) - 1 else ()) for i, strip in enumerate(strips)]
    return _rows(rows, n, row_labels)


def show(fig: Figure, alt: str) -> None:
    """Display a figure as a PNG on white, and close it.

    alt: what the picture says, for those who cannot see it. Raises ValueError where it is empty.
    """
    display_png(to_png(fig), alt)


def show_images(
    images: Tensor, alt: str, columns: int = 8, titles: Sequence[object] = (), row_labels: Sequence[object] = ()
) -> None:
    """Display a grid of images: image_grid, then show."""
    show(image_grid(images, columns, titles, row_labels), alt)


def display_png(png: bytes, alt: str, beside: dict | None = None) -> None:
    """Display PNG bytes with their alt text, and the other MIME types beside, if any. ValueError where alt is empty."""
    if not alt.strip():
        raise ValueError("alt must say what the picture shows; it is empty.")
    data = {**(beside or {}), "image/png": base64.b64encode(png).decode(), "text/plain": alt}
    display(data, metadata={"image/png": {"alt": alt, "width": shown_width(png)}}, raw=True)


def to_png(picture: Figure | np.ndarray | bytes) -> bytes:
    """PNG bytes from a figure, an array (see encode_png), or PNG bytes. A figure is closed, but may be drawn again."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, np.ndarray):
        return encode_png(picture)
    if not isinstance(picture, Figure):
        raise TypeError(f"a picture is a Figure, a uint8 array or PNG bytes, not {type(picture).__name__}.")
    canvas = _canvas(picture)
    canvas.draw()
    return _canvas_png(canvas, compress_level=6)  # small


class Redrawn:
    """A figure that is drawn again and again, with other data: what frames the data is drawn once, as long as it lasts.

    Ticks and labels take most of the time of a drawing. They are kept as pixels until the limits, the ticks, an axis
    label, a place or a size change; lines, images, titles and legends are drawn each time, and the pixels are those of
    `to_png`. Its layout is found by the first drawing. Always drawn whole are figures with a grid, subfigures, round
    axes, or axes that lie one over the other.
    """

    def __init__(self, fig: Figure):
        self.fig = fig
        self._canvas = _canvas(fig)
        self._canvas.draw()
        fig.set_layout_engine("none")
        self._frame: list = []  # what the kept pixels show: nothing yet
        self._pixels = None

    def first_png(self) -> bytes:
        """PNG bytes of the figure as it was first drawn."""
        return _canvas_png(self._canvas, compress_level=1)  # quick

    def png(self) -> bytes:
        """PNG bytes of the figure as it is now."""
        if self.keep():
            self._canvas.restore_region(self._pixels)
            for artist in self._front():
                artist.draw(self._canvas.get_renderer())
        else:
            self._canvas.draw()
        return _canvas_png(self._canvas, compress_level=1)

    def keep(self) -> bool:
        """Draw what frames the data, if it is not as it was. False for a figure that must always be drawn whole."""
        if _keeps_nothing(self.fig):
            return False
        if self._frame == self._frame_now():
            return True
        with ExitStack() as left_out:  # as animated, not as invisible: hidden titles would lose their places
            for artist in self._front():
                left_out.callback(artist.set_animated, artist.get_animated())
                artist.set_animated(True)
            self._canvas.draw()
        self._pixels = self._canvas.copy_from_bbox(self.fig.bbox)
        self._frame = self._frame_now()
        return True

    def _front(self) -> list[Artist]:
        """What is drawn each time, in Matplotlib's order: of axes all but what is behind, then what is over all."""
        front = []
        for ax in sorted((ax for ax in self.fig.axes if ax.get_visible()), key=Artist.get_zorder):
            no_spines = () if ax.axison and ax.get_frame_on() else ax.spines.values()
            front += _in_order(ax, but={ax.patch, ax.xaxis, ax.yaxis, *no_spines})
        return front + _in_order(self.fig, but={self.fig.patch, *self.fig.axes})

    def _frame_now(self) -> list:
        """What tells whether anything behind has changed: an artist is stale from a change until it is drawn."""
        seen: list = [self.fig.bbox.bounds, self.fig.patch.stale]
        for ax in self.fig.axes:
            seen += [ax, ax.get_visible(), ax.axison, ax.get_position().bounds, ax.patch.stale, ax.patch.get_visible()]
            for axis in (ax.xaxis, ax.yaxis):  # not axis.stale: that is also set by limits that are set as they were
                seen += [axis.get_visible(), axis.get_view_interval().tolist(), axis.get_scale()]
                seen += [axis.label.get_text(), axis.label.stale, axis.label.get_visible(), axis.get_label_position()]
                seen += [axis.get_major_locator(), axis.get_minor_locator()]
                seen += [axis.get_major_formatter(), axis.get_minor_formatter()]
                seen += [axis.get_tick_params("major"), axis.get_tick_params("minor")]
                for label in [tick.label1 for tick in (*axis.majorTicks, *axis.minorTicks)]:
                    seen += [label.get_visible(), label.get_color(), label.get_rotation()]
                    seen += [hash(label.get_fontproperties())]  # the object itself is changed in place
        return seen


def encode_png(array: np.ndarray, scale: int = 1) -> bytes:
    """PNG bytes of a uint8 array, (H, W) or (H, W, 3), each pixel drawn as scale x scale pixels."""
    if array.dtype != np.uint8:
        raise ValueError(f"array must be uint8, as tile gives it, not {array.dtype}.")
    return _encode(Image.fromarray(np.ascontiguousarray(array.repeat(scale, 0).repeat(scale, 1))))


def shown_width(png: bytes) -> int:
    """The width in screen pixels at which a PNG is meant to be shown: a figure's is less than its pixels."""
    image = Image.open(io.BytesIO(png))
    return round(image.width * _SCREEN_DPI / image.info.get("dpi", (_SCREEN_DPI,))[0])


def _in_order(parent: Artist, but: set[Artist]) -> list[Artist]:
    return sorted((child for child in parent.get_children() if child not in but), key=Artist.get_zorder)


def _keeps_nothing(fig: Figure) -> bool:
    """Whether some of what frames the data lies over other data."""
    if fig.subfigs or any(ax.name != "rectilinear" for ax in fig.axes):
        return True
    grids = [line for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for line in axis.get_gridlines()]
    places = [ax.get_position() for ax in fig.axes if ax.patch.get_visible()]  # a twin has no patch
    return any(line.get_visible() for line in grids) or any(a.overlaps(b) for a, b in combinations(places, 2))


def _canvas(fig: Figure) -> FigureCanvasAgg:
    plt.close(fig)  # or Jupyter would display it a second time, at the end of the cell
    fig.set(dpi=_DPI, facecolor="white")
    return FigureCanvasAgg(fig)


def _canvas_png(canvas: FigureCanvasAgg, compress_level: int) -> bytes:
    """compress_level: 1 (quick) to 9 (small)."""
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return _encode(image, dpi=(_DPI, _DPI), compress_level=compress_level)


def _encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def _rows(rows: list[tuple[Tensor, Sequence[object]]], columns: int, row_labels: Sequence[object]) -> Figure:
    """One axes per row of images, all to one scale, with the row's labels under its images."""
    if len(row_labels) not in (0, len(rows)):
        raise ValueError(f"row_labels must be one per row ({len(rows)}), not {len(row_labels)}.")
    columns = min(columns, len(rows[0][0]))
    h, w = rows[0][0].shape[2:]
    scale = max(1, min(_PAGE // columns, _CELL) // (w + 1))
    scale -= scale % 3 if scale > 3 else 0  # whole pixels on the screen, too: every 3 drawn make 2 there
    left = max((16 + 12 * len(str(label)) for label in row_labels), default=0)
    lines = [max((1 + str(label).count("\n") for label in labels), default=0) for _, labels in rows]
    width, height = left + columns * (w + 1) * scale, sum(_LINE * n + (h + 1) * scale for n in lines)
    fig = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="none")
    top = height
    for i, (images, labels) in enumerate(rows):
        strip = tile(images, columns)
        box = (left, top - strip.shape[0] * scale, strip.shape[1] * scale, strip.shape[0] * scale)
        ax = fig.add_axes([pixels / (width, height)[j % 2] for j, pixels in enumerate(box)])
        ax.imshow(strip, interpolation="nearest", aspect="auto")
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0, labelsize=9, pad=3)
        ax.set_xticks([j * (w + 1) + (w - 1) / 2 for j in range(len(labels))], [str(label) for label in labels])
        ax.set_yticks([(h - 1) / 2] if row_labels else [], [str(row_labels[i])] if row_labels else [])
        top -= _LINE * lines[i] + (h + 1) * scale
    return fig
