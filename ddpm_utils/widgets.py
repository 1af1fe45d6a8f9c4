"""Sliders that leave a picture behind: live in JupyterLab, a still image where no kernel runs (GitHub, print).

`frame_slider` moves through pictures made beforehand; `live_slider` draws anew at every move.
"""

import html
from collections.abc import Callable, Iterator, Sequence

import ipywidgets as ipw
import numpy as np
from matplotlib.figure import Figure

from .plots import Redrawn, display_png, encode_png, shown_width, to_png

Picture = Figure | np.ndarray | bytes  # a figure, a uint8 array (H, W, 3) as `tile` gives it, or PNG bytes

_on_display: dict[str, ipw.Widget] = {}  # name of a slider -> its widgets; here, for a cell that runs again forgets


def frame_slider(
    name: str,
    frames: Sequence[Picture],
    labels: Sequence[object],
    still: Picture,
    alt: str,
    description: str = "t",
    scale: int = 1,
) -> None:
    """Display one slider that moves through ready pictures. It starts at the first.

    name: unlike that of any other slider in the notebook; a slider of the same name is closed first.
    frames, labels: as many of each; the label stands beside the slider. scale: enlarges frames that are arrays.
    still, alt: the picture, and the words, for readers without a kernel; a filmstrip over t serves well.
    Raises ValueError where frames and labels differ in number.
    """
    if len(frames) != len(labels) or len(frames) < 2:
        raise ValueError(f"{name} needs as many labels as frames, two or more: not {len(labels)} and {len(frames)}.")
    pngs = [encode_png(frame, scale) if isinstance(frame, np.ndarray) else to_png(frame) for frame in frames]
    options = [(str(label), i) for i, label in enumerate(labels)]
    slider = ipw.SelectionSlider(options=options, description=description)
    live_slider(name, lambda i: pngs[i], still, alt, i=slider)


def live_slider(name: str, draw: Callable[..., Picture], still: Picture, alt: str, **controls: ipw.ValueWidget) -> None:
    """Display controls, and under them the picture draw(**values), drawn anew at each change of a value.

    name, still, alt: as in frame_slider. controls: ipywidgets by the name of draw's argument, made for this call alone.
    What draw raises on the first call is raised; later it is written under the controls, and the picture stays.

    Speed: a draw that returns tile(...) answers in a few milliseconds. A figure costs tens of them, least when draw
    changes the artists of one figure made outside it (line.set_ydata) and returns that same figure: see plots.Redrawn.
    """
    still_png = to_png(still)  # before draw, which may draw on the same figure
    _close(name)
    if any(control.comm is None for control in controls.values()):
        raise ValueError(f"the controls of {name} were closed with an earlier slider: make them in the call itself.")

    drawer = Drawer(draw)

    def render() -> bytes:
        return drawer.png(**{key: control.value for key, control in controls.items()})

    png = render()
    layout = ipw.Layout(margin="0")  # a margin would add to a width of 100%, and stand out where that is all there is
    picture = ipw.Image(value=png, format="png", width=shown_width(png), layout=layout)
    problem = ipw.HTML(layout=ipw.Layout(display="none"))
    # for screen readers, out of sight: an Image widget takes no alt text, and fails in the browser when given a tooltip
    words = ipw.HTML(html.escape(alt), layout=ipw.Layout(height="1px", margin="0", overflow="hidden"))

    def redraw(_change: dict) -> None:
        try:
            png = render()
            picture.width, picture.value = str(shown_width(png)), png
            problem.layout.display = "none"
        except Exception as error:  # in a callback it would vanish into a log that nobody reads
            reason = html.escape(f"{type(error).__name__}: {error}".splitlines()[0])
            problem.value = f'<span role="alert"><b>The picture could not be drawn.</b> {reason}</span>'
            problem.layout.display = "block"

    for control in controls.values():
        control.layout.width = "min(100%, 400px)"
        control.style.description_width = "initial"
        control.observe(redraw, "value")
    bar = ipw.Box(list(controls.values()), layout=ipw.Layout(flex_flow="row wrap"))
    _on_display[name] = ipw.VBox([bar, problem, picture, words])
    display_png(still_png, alt, beside=_on_display[name]._repr_mimebundle_())
    drawer.keep()


class Drawer:
    """A draw function's pictures as PNG bytes: quicker from the second on where all are one and the same figure."""

    def __init__(self, draw: Callable[..., Picture]):
        self._draw = draw
        self._redrawn: Redrawn | None = None

    def png(self, **values: object) -> bytes:
        drawn = self._draw(**values)
        if not isinstance(drawn, Figure):
            return to_png(drawn)
        if self._redrawn is None or self._redrawn.fig is not drawn:
            self._redrawn = Redrawn(drawn)
            return self._redrawn.first_png()
        return self._redrawn.png()

    def keep(self) -> None:
        """Do beforehand what would make the second picture late."""
        if self._redrawn:
            self._redrawn.keep()


def _close(name: str) -> None:
    """Close the slider of that name, if any: widgets live until closed, and each run of a cell makes new ones."""
    if name in _on_display:
        for widget in list(_tree(_on_display.pop(name))):
            widget.close()


def _tree(widget: ipw.Widget) -> Iterator[ipw.Widget]:
    """A widget, and the widgets that it is made of: its children, its layout, its style."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _tree(child)
    for part in ("layout", "style"):
        if isinstance(getattr(widget, part, None), ipw.Widget):
            yield getattr(widget, part)
