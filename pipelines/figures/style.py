"""What all pictures share. Colours are Okabe and Ito's, told apart by colour-blind readers too.

Axes have the same limits in every run, so that pictures of two runs can be laid side by side; what lies beyond stands
at the edge, as a triangle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#666666"
SKY, VERMILION = "#56B4E9", "#D55E00"
TASK_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, GREY)
MARKS = ("o", "s", "^", "D", "v", "P", "X", "p")
WIDTH = 8.5
"""Inches; at 110 points an inch it fills the panel that the MLflow UI has for a picture, without being shrunk."""
_NAME_LENGTH = 28
_SHARES = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def tidy(axes: Any) -> None:
    """The look that all have: no box, a faint grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def short(name: str, most: int = _NAME_LENGTH) -> str:
    """A name of at most so many letters, that leaves room for the picture."""
    return name if len(name) <= most else f"{name[: most - 1].rstrip()}…"


def with_rows(name: str, rows: float) -> str:
    """A segment's name and how many rows it has."""
    return f"{short(name)}  ({rows:,.0f} rows)"


def logits(shares: NDArray[Any] | float) -> NDArray[np.float64]:
    """Where a share stands on an axis of log-odds; 0 and 1 stand beyond its ends."""
    clipped = np.clip(shares, 1e-9, 1 - 1e-9)
    odds: NDArray[np.float64] = clipped / (1 - clipped)
    return np.log(odds)


def probability_axis(axis: Any) -> None:
    """Log-odds, written as percent: rare and frequent tasks have room side by side."""
    axis.set_ticks(logits(np.array(_SHARES)), [f"{100 * share:g} %" for share in _SHARES])
    axis.axes.tick_params(labelsize=8)
    set_limits = axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim
    set_limits(*logits(np.array([_SHARES[0] / 2, 1 - (1 - _SHARES[-1]) / 2])))
