"""Who does the work: which experts rows choose, what they are worth, and what the gates look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.figures.style import (
    BLUE,
    GREY,
    MARKS,
    PINK,
    TASK_COLOURS,
    WIDTH,
    new_figure,
    short,
    tidy,
)

_TIMES_FAIR = 2.0
"""Powers of two around a fair share at which the colours of a load end."""
_FULL = 0.5
"""Weight from which on colours do not change."""
_WIDE = 24
"""Experts from which on cells are too narrow for a number."""
_MOST = 24
_LINEAR = 0.1
_ENDS = (-10.0, 100.0)
_STRONGEST = 3.0
_FEATURE_LENGTH = 44
"""Letters of a feature's name: what a history feature counts stands at its end."""


def expert_load(tasks: Sequence[str], segments: Sequence[str], load: NDArray[Any]) -> Figure:
    """Share of each segment's choices that each routed expert got: a heat map a task, of load [S, T, R].

    Colours are multiples of a fair share, so that models with other numbers of experts can be compared.
    """
    count = load.shape[2]
    columns = min(3 if count <= 8 else 2 if count <= 16 else 1, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = new_figure(WIDTH, 1.3 + rows * (0.45 + 0.23 * len(segments)))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    with np.errstate(divide="ignore", invalid="ignore"):
        times_fair = np.log2(load * count)
    image: Any = None
    for number, (task, axes) in enumerate(zip(tasks, panels, strict=False)):
        shown = np.clip(times_fair[:, number], -_TIMES_FAIR, _TIMES_FAIR)
        image = axes.imshow(shown, cmap="PuOr_r", vmin=-_TIMES_FAIR, vmax=_TIMES_FAIR, aspect="auto")
        every = -(-count // 32)
        axes.set_xticks(np.arange(0, count, every), range(0, count, every), fontsize=8)
        axes.set_yticks(np.arange(len(segments)), segments, fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(task, fontsize=10)
        if count <= _WIDE:
            _write_percent(axes, load[:, number], np.abs(shown) > 0.7 * _TIMES_FAIR)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    bar = figure.colorbar(
        image, ax=panels.tolist(), pad=0.01, fraction=0.03, aspect=25, shrink=1.0 / rows, anchor=(0, 1)
    )
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["1/4 or less", "half", "fair", "twice", "4 times or more"])
    bar.ax.tick_params(labelsize=8)
    figure.supxlabel("routed expert; numbers are percent of the choices of a segment's rows", fontsize=9)
    figure.suptitle("Load: which routed experts the rows of a segment choose, test days", fontsize=11)
    return figure


def _write_percent(axes: Any, shares: NDArray[Any], is_dark: NDArray[Any]) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if np.isfinite(share) and share >= 0.005:
            colour = "white" if is_dark[row, column] else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)


def gate_weights(title: str, rows: Sequence[str], experts: Sequence[str], weights: NDArray[Any]) -> Figure:
    """Mean gate weight of every expert: a heat map [rows, experts], of tasks or of a task's segments."""
    figure = new_figure(WIDTH, 1.9 + 0.26 * len(rows))
    axes = figure.subplots()
    image = axes.imshow(weights, cmap="cividis", norm=PowerNorm(0.5, 0.0, _FULL), aspect="auto")
    axes.set_xticks(np.arange(len(experts)), experts, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(np.arange(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0)
    if len(experts) <= _WIDE:
        _write_percent(axes, weights, weights < 0.15)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.04)
    bar.set_ticks([0, 0.05, 0.2, 0.35, _FULL], labels=["0", "5", "20", "35", "50 or more"])
    bar.ax.tick_params(labelsize=8)
    bar.set_label("mean gate weight (%)", fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def knock_out(
    tasks: Sequence[str],
    experts: Sequence[str],
    rise: NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
) -> Figure:
    """By how many percent each task's loss rises without an expert, with 95 % intervals over users, each [E, T].

    Of many experts, those that some task misses most. The axis is linear around 0 and logarithmic beyond.
    """
    of_most = np.nan_to_num(np.abs(rise)).max(1)
    shown = np.sort(np.argsort(-of_most, kind="stable")[:_MOST])
    figure = new_figure(WIDTH, 1.4 + 0.25 * len(shown) * -(-len(tasks) // 3))
    columns = min(3, len(tasks))
    panels = figure.subplots(-(-len(tasks) // columns), columns, squeeze=False, sharex=True, sharey=True).flatten()
    places = np.arange(len(shown))
    for number, (task, axes) in enumerate(zip(tasks, panels, strict=False)):
        _draw_rises(axes, places, *(part[shown, number] for part in (rise, low, high)))
        axes.set_title(task, fontsize=10)
        axes.set_yticks(places, [experts[place] for place in shown], fontsize=8)
        axes.set_ylim(len(shown) - 0.4, -0.6)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    figure.supxlabel("rise of the mean loss without the expert (%); right of 0 it is missed", fontsize=9)
    figure.suptitle("Knock-out: what is lost without each expert, test days, with 95 % intervals", fontsize=11)
    return figure


def _draw_rises(axes: Any, places: NDArray[Any], rise: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> None:
    """Blue where the expert is missed for certain, pink where the task does better without it, else grey."""
    colours = np.where(low > 0, BLUE, np.where(high < 0, PINK, GREY))
    known = np.isfinite(rise)
    axes.hlines(places[known], *(np.clip(end[known], *_ENDS) for end in (low, high)), color=colours[known], linewidth=2)
    axes.scatter(np.clip(rise[known], *_ENDS), places[known], s=26, c=colours[known], zorder=3)
    for place in places[~known]:
        axes.text(0.15, place, "alone: nothing could stand in", va="center", fontsize=7, color=GREY)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xscale("symlog", linthresh=_LINEAR, linscale=1.0)
    axes.set_xlim(*_ENDS)
    ticks = (-10, -1, -0.1, 0, 0.1, 1, 10, 100)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7)
    axes.minorticks_off()
    tidy(axes)


def gate_features(tasks: Sequence[str], features: Sequence[str], strength: NDArray[Any], most: int = 15) -> Figure:
    """How much each feature moves the gates, [T, F] in log-odds: a mark a task, the strongest feature on top."""
    order = np.argsort(-np.nan_to_num(strength).max(0), kind="stable")[:most]
    figure = new_figure(WIDTH, 1.5 + 0.26 * len(order))
    axes = figure.subplots()
    axes.hlines(np.arange(len(order)), 0, _STRONGEST, color=GREY, alpha=0.15, linewidth=0.8)
    for number, (task, colour, mark) in enumerate(zip(tasks, TASK_COLOURS * 9, MARKS * 9, strict=False)):
        values = np.clip(strength[number, order], 0, _STRONGEST)
        axes.plot(values, np.arange(len(order)), mark, color=colour, markersize=6, alpha=0.85, label=task)
    axes.set_yticks(np.arange(len(order)), [short(features[place], _FEATURE_LENGTH) for place in order], fontsize=8)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xscale("function", functions=(np.sqrt, np.square))
    axes.set_xticks([0, 0.05, 0.2, 0.5, 1, 2, 3], ["0", "0.05", "0.2", "0.5", "1", "2", "3 or more"])
    axes.set_xlim(0, 1.05 * _STRONGEST)
    axes.set_xlabel("typical size of what the feature adds to an expert's logit (log-odds)", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    tidy(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle("What the gates look at, test days", fontsize=11)
    return figure
