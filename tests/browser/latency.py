"""Times from a key to the picture that answers it, collected over all notebooks."""

import math
import os
import statistics
from itertools import chain

from lab import Slider


class Latencies:
    """Milliseconds from key to picture, by notebook and slider. Those that draw when let go are kept apart."""

    def __init__(self) -> None:
        self.live: dict[str, dict[str, list[float]]] = {}
        self.let_go: dict[str, dict[str, list[float]]] = {}

    def add(self, notebook: str, slider: Slider, milliseconds: list[float]) -> None:
        kind = self.live if slider.live else self.let_go
        kind.setdefault(notebook, {}).setdefault(slider.label, []).extend(milliseconds)

    def table(self) -> list[dict]:
        """A row per notebook, and one for all, for each kind of slider."""
        rows = []
        for kind, notebooks in (("live", self.live), ("let go", self.let_go)):
            everything = {name: [*chain(*sliders.values())] for name, sliders in notebooks.items()}
            everything |= {"all": [*chain(*everything.values())]}
            rows += [{"notebook": name, "sliders": kind} | summary(ms) for name, ms in everything.items() if ms]
        return rows

    def record(self) -> dict:
        """All of it, with what the machine was doing meanwhile."""
        kinds = {"live": self.live, "let go": self.let_go}
        sliders = {
            kind: {name: {label: summary(ms) for label, ms in each.items() if ms} for name, each in notebooks.items()}
            for kind, notebooks in kinds.items()
        }
        return {"cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "table": self.table(), "sliders": sliders}


def summary(milliseconds: list[float]) -> dict[str, int]:
    """How many there are, their median, and what nine in ten of them stay within."""
    ordered = sorted(milliseconds)
    p90 = ordered[math.ceil(0.9 * len(ordered)) - 1]
    return {"moves": len(ordered), "median_ms": round(statistics.median(ordered)), "p90_ms": round(p90)}
