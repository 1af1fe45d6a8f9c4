"""Run inside a notebook's kernel, before its first cell: every slider then also saves the pictures it can show.

A page without a kernel can show only what was drawn before. Each control is given a few of its values, evenly spaced,
its starting value among them; draw is called for every combination of these, and the frames are saved as WebP files.
"""

import io
import itertools
import json
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import ipywidgets as ipw
import torch
from PIL import Image

from ddpm_utils import widgets
from ddpm_utils.plots import shown_width
from ddpm_utils.widgets import Drawer

MOST_FRAMES = 60  # of one slider, all controls together: at 20 to 30 KB each, five sliders make a page of 8 MB
MOST_STOPS = 24  # of one control
FIRST_WEIGHT = 3  # the first control gets about three times as many stops as any other
LARGE = 40_000  # bytes of a frame, above which it need not be kept to the last pixel


def record_sliders(folder: Path) -> None:
    """From now on let every slider save its frames in folder/00, folder/01, ..., described in folder/sliders.json.

    A notebook that imports live_slider afterwards gets the recording one, and frame_slider calls it.
    """
    live_slider, described = widgets.live_slider, []

    def recording_slider(name: str, draw: Callable, still: object, alt: str, **controls: ipw.ValueWidget) -> None:
        live_slider(name, draw, still, alt, **controls)  # first, for draw may draw on the figure that is the still
        place = folder / f"{len(described):02d}"
        place.mkdir(parents=True)
        described.append({"name": name, "alt": alt, "folder": place.name, **record(draw, controls, place)})
        (folder / "sliders.json").write_text(json.dumps(described, indent=1), encoding="utf-8")

    widgets.live_slider = recording_slider


def record(draw: Callable, controls: dict[str, ipw.ValueWidget], folder: Path) -> dict:
    """Save draw's pictures as folder/0.webp, 1.webp, ... Returns a description: the controls' stops, and the frames.

    Frames are in the order of the stops, those of the last control changing fastest. A frame is described by its width
    on the screen, or, where draw raises, by what a reader in JupyterLab would be told.
    """
    choices = [values_of(control) for control in controls.values()]
    shares = share_out([len(values) for values, _ in choices], MOST_FRAMES)
    described, stops = [], []
    for control, (values, labels), n in zip(controls.values(), choices, shares, strict=True):
        at = nearest(values, control.value)
        chosen = spread(len(values), n, at)
        stops.append([values[i] for i in chosen])
        described.append(
            {"label": control.description, "stops": [labels[i] for i in chosen], "start": chosen.index(at)}
        )
    drawer, frames = Drawer(draw), []
    with torch.random.fork_rng():  # the cells that follow draw the same random numbers as without us
        for i, values in enumerate(itertools.product(*stops)):
            frames.append(frame(drawer, dict(zip(controls, values, strict=True)), folder / f"{i}.webp"))
        draw(
            **{key: control.value for key, control in controls.items()}
        )  # what draw draws on stays as the reader would find it
    return {"controls": described, "frames": frames}


def frame(drawer: Drawer, values: dict, path: Path) -> dict:
    try:
        png = drawer.png(**values)
    except Exception as error:  # live_slider writes it under the controls, and so will the page
        return {"problem": f"{type(error).__name__}: {error}".splitlines()[0]}
    path.write_bytes(webp(png))
    return {"width": shown_width(png)}


def webp(png: bytes) -> bytes:
    """The same picture in less space, exact where it is small."""
    image, best = Image.open(io.BytesIO(png)), None
    for options in ({"lossless": True, "method": 1}, {"quality": 85}):
        buffer = io.BytesIO()
        image.save(buffer, format="WebP", **options)
        best = min(best or buffer.getvalue(), buffer.getvalue(), key=len)
        if len(best) <= LARGE:
            break
    return best


def values_of(control: ipw.ValueWidget) -> tuple[list, list[str]]:
    """All values that a control can take, and their labels; of a control of another kind, the one that it has."""
    if hasattr(control, "options"):  # strings, or pairs of a label and a value
        pairs = [item if isinstance(item, tuple) and len(item) == 2 else (item, item) for item in control.options]
        return [value for _, value in pairs], [str(label) for label, _ in pairs]
    if isinstance(control, ipw.Checkbox | ipw.ToggleButton):
        return [False, True], ["off", "on"]
    if not (hasattr(control, "step") and hasattr(control, "min") and isinstance(control.value, int | float)):
        return [control.value], [str(control.value)]
    n = int((control.max - control.min) / control.step + 1e-9) + 1
    values = [control.min + i * control.step for i in range(n)]
    if isinstance(control, ipw.FloatLogSlider):
        values = [control.base**exponent for exponent in values]
    values[nearest(values, control.value)] = control.value  # exactly
    return values, [format(value, getattr(control, "readout_format", "")) for value in values]


def nearest(values: Sequence, value: object) -> int:
    """Where value is among values, or what is nearest to it."""
    if value in values:
        return values.index(value)
    return min(range(len(values)), key=lambda i: abs(values[i] - value))


def spread(n: int, wanted: int, start: int) -> list[int]:
    """So many of the indices 0 ... n-1, evenly spaced from the first to the last, except that start takes a place."""
    if wanted == 1:
        return [start]
    chosen = [round(k * (n - 1) / (wanted - 1)) for k in range(wanted)]
    if start not in chosen:
        inner = chosen[1:-1]  # the ends stay, where there is more than them
        chosen[1 + nearest(inner, start) if inner else nearest(chosen, start)] = start
    return chosen


def share_out(counts: list[int], most: int) -> list[int]:
    """How many stops each control gets, where counts says how many it has: most combinations at most, in all.

    The control that is furthest behind gets the next one, as long as there is room.
    """
    shares = [1] * len(counts)
    while True:
        room = [
            i
            for i, share in enumerate(shares)
            if share < min(counts[i], MOST_STOPS) and prod(shares) // share * (share + 1) <= most
        ]
        if not room:
            return shares
        shares[min(room, key=lambda i: shares[i] / (FIRST_WEIGHT if i == 0 else 1))] += 1
