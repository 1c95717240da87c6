"""The pictures of a search for settings: which of them matter, and how far it has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pipelines.config import Setting
from pipelines.figures import BLUE, GREY, ORANGE, PINK, new_figure, tidy
from pipelines.study import Trial
from pipelines.tuning_report import spelled

Floats = NDArray[np.float64]

_A_ROW = 3
_REACH = 12
_COMPLETE: dict[str, Any] = {"marker": "o", "linestyle": "", "color": BLUE, "markersize": 5}
_PRUNED: dict[str, Any] = {"marker": "x", "linestyle": "", "color": GREY, "markersize": 5}
_BEYOND: dict[str, Any] = {"marker": "^", "linestyle": "", "color": PINK, "markersize": 6}
_BEST: dict[str, Any] = {"marker": "D", "linestyle": "", "color": ORANGE, "markersize": 8}


def importances(shares: Mapping[str, float]) -> Figure:
    """How much of the differences each setting explains: bars, the most important one on top."""
    figure = new_figure(7, 1.3 + 0.4 * len(shares))
    axes = figure.subplots()
    bars = axes.barh(range(len(shares)), list(shares.values()), color=BLUE, height=0.6)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares.values()], padding=4, fontsize=9)
    axes.set_yticks(range(len(shares)), list(shares), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(shares.values()))
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set(xlabel="share of the differences between trials", title="Which setting matters")
    tidy(axes)
    axes.grid(visible=False, axis="y")
    return figure


def by_setting(search: Mapping[str, Setting], trials: Sequence[Trial], best: Trial, judged_by: str) -> Figure:
    """The value of every trial against each of its settings: a panel a setting, a mark a trial."""
    columns = min(_A_ROW, len(search))
    rows = -(-len(search) // columns)
    figure = new_figure(1 + 3.3 * columns, 0.9 + 2.7 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    is_best = np.array([trial.number == best.number for trial in trials])
    for axes, (path, setting) in zip(panels, search.items(), strict=False):
        places = _places(setting, [trial.values[path] for trial in trials])
        _draw(axes, places, trials, best.value)
        axes.plot(places[is_best], [best.value], label=f"best (trial {best.number})", **_BEST)
        _name_places(axes, path, setting)
    for axes in panels[len(search) :]:
        axes.set_visible(False)
    figure.supylabel(judged_by, fontsize=10)
    figure.suptitle("Each trial by its settings", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def history(trials: Sequence[Trial], judged_by: str, higher_is_better: bool) -> Figure:
    """The value of each trial, in the order in which they ran, and the best one so far."""
    figure = new_figure(7, 3.8)
    axes = figure.subplots()
    numbers = np.array([trial.number for trial in trials], float)
    better = np.fmax if higher_is_better else np.fmin
    best = better.accumulate([np.nan if trial.pruned else trial.value for trial in trials])
    _draw(axes, numbers, trials, best[-1])
    axes.step(numbers, best, where="post", color=ORANGE, label="best so far")
    axes.set(xlabel="trial", ylabel=judged_by, title="How far the search has come")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    tidy(axes)
    return figure


def _draw(axes: Any, places: Floats, trials: Sequence[Trial], best: float) -> None:
    """A mark a trial. The axis is that of the complete ones: what was pruned, or went very wrong, stands at its edge
    where it lies beyond, or it would press all others into one line."""
    values = np.array([trial.value for trial in trials])
    pruned = np.array([trial.pruned for trial in trials])
    bottom, top = _limits(values[~pruned], best)
    beyond = (values < bottom) | (values > top)
    shown = np.clip(values, bottom, top)
    axes.plot(places[~beyond & ~pruned], shown[~beyond & ~pruned], label="complete", **_COMPLETE)
    axes.plot(places[pruned], shown[pruned], label="pruned, at its last value or the edge", **_PRUNED)
    if (wrong := beyond & ~pruned).any():
        axes.plot(places[wrong], shown[wrong], label="complete, beyond the axis", **_BEYOND)
    room = 0.06 * (top - bottom or 1.0)
    axes.set_ylim(bottom - room, top + room)


def _limits(values: Floats, best: float) -> tuple[float, float]:
    """From worst to best, but not further from the middle than `_REACH` times as far as the best is."""
    known = values[np.isfinite(values)]
    low, middle, high = np.quantile(known, [0.0, 0.5, 1.0])
    reach = _REACH * abs(middle - best) or high - low
    return min(max(low, middle - reach), best), max(min(high, middle + reach), best)


def _places(setting: Setting, values: Sequence[Any]) -> Floats:
    """Where on the axis each value stands; those of one choice stand side by side, so that none hides another."""
    if setting.choices is None:
        return np.array(values, float)
    places = np.array([setting.choices.index(value) for value in values], float)
    for choice in np.unique(places):
        same = np.flatnonzero(places == choice)
        places[same] += 0.3 * (np.arange(len(same)) - (len(same) - 1) / 2) / max(len(same) - 1, 1)
    return places


def _name_places(axes: Any, path: str, setting: Setting) -> None:
    if setting.choices is not None:
        axes.set_xticks(range(len(setting.choices)), [spelled(choice) for choice in setting.choices])
        axes.set_xlim(-0.5, len(setting.choices) - 0.5)
    elif setting.log and setting.low and setting.high:
        axes.set_xscale("log")
        axes.set_xlim(setting.low / 1.2, setting.high * 1.2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())  # or labels run into each other where there is one decade
    axes.set_xlabel(path, fontsize=9)
    axes.tick_params(labelsize=8)
    tidy(axes)
