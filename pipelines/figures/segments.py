"""How good a version is in each segment, and whether that is more than the champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipelines.figures.style import BLUE, GREY, ORANGE, PINK, WIDTH, new_figure, tidy, with_rows

Metrics = Mapping[str, Any]

LARGEST = 20
"""Segments that are drawn, those of most rows."""
_AUC = (0.4, 1.0)
_DIFFERENCE = 0.06
_OTHERS = ("model", "champion", "best attainable")


def auc_by_segment(task: str, evaluation: Mapping[str, Any]) -> Figure:
    """AUC of a task over all rows and in each of the largest segments, with 95 % intervals; beside it the difference
    from the champion, where there is one. The largest segment stands on top.

    Args:
        evaluation: `overall`, `by_segment` and, where there is a champion, `against_champion` of evaluation.json.
    """
    found = {name: {"all rows": of[task]} for name, of in evaluation["overall"].items() if task in of}
    for name, of in evaluation["by_segment"].items():
        found.setdefault(name, {}).update(of.get(task, {}))
    own = found["model"]
    segments = ["all rows", *sorted((n for n in own if n != "all rows"), key=lambda n: -own[n]["rows"])[:LARGEST]]
    differences = evaluation.get("against_champion", {}).get(task, {})
    figure = new_figure(WIDTH, 1.7 + 0.3 * len(segments))
    panels = figure.subplots(1, 2 if differences else 1, squeeze=False, sharey=True, width_ratios=_widths(differences))
    _draw_values(panels[0, 0], found, segments)
    if differences:
        known = {"all rows": differences.get("overall"), **differences}
        _draw_differences(panels[0, 1], [(known.get(name) or {}).get("auc") for name in segments])
    _name_segments(panels[0, 0], segments, own)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{task}: AUC by segment, test days, with 95 % intervals", fontsize=11)
    return figure


def _widths(differences: Mapping[str, Any]) -> list[int]:
    return [3, 2] if differences else [1]


def _name_segments(axes: Any, segments: Sequence[str], own: Mapping[str, Metrics]) -> None:
    names = [with_rows(name, own[name]["rows"]) for name in segments]
    axes.set_yticks(np.arange(len(segments)), names, fontsize=8)
    axes.set_ylim(len(segments) - 0.5, -0.5)


def _draw_values(axes: Any, found: Mapping[str, Mapping[str, Metrics]], segments: Sequence[str]) -> None:
    """The model's with intervals, and as marks the champion's and that of the baseline that is best over all rows."""
    places = np.arange(len(segments))
    rivals = {name: of["all rows"].get("auc", np.nan) for name, of in found.items() if name not in _OTHERS}
    best = max(rivals, key=lambda name: np.nan_to_num(rivals[name]), default="")
    for name, label, colour, mark, size in (
        (best, f"{best} (best baseline)", GREY, "|", 10),
        ("champion", "champion", ORANGE, "s", 5),
    ):
        if name in found:
            values = [found[name].get(segment, {}).get("auc", np.nan) for segment in segments]
            shift = 0.16 if name == "champion" else 0.0
            axes.plot(np.clip(values, *_AUC), places + shift, mark, color=colour, markersize=size, label=label)
    own = [found["model"][segment] for segment in segments]
    auc = np.array([of.get("auc", np.nan) for of in own])
    low = np.array([of.get("auc_low", np.nan) for of in own])
    high = np.array([of.get("auc_high", np.nan) for of in own])
    axes.hlines(places - 0.08, np.clip(low, *_AUC), np.clip(high, *_AUC), color=BLUE, linewidth=2)
    inside = ~(auc < _AUC[0])
    axes.plot(auc[inside], places[inside] - 0.08, "o", color=BLUE, markersize=6, label="this version")
    axes.plot(np.full(sum(~inside), _AUC[0]), places[~inside] - 0.08, "<", color=BLUE, markersize=6)
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlim(_AUC[0] - 0.01, _AUC[1] + 0.01)
    axes.set_xlabel("AUC (0.5: no better than chance)", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    tidy(axes)


def _draw_differences(axes: Any, found: Sequence[Metrics | None]) -> None:
    """Right of 0 the version is better: blue where the interval says so, pink where it says worse, else grey."""
    for place, of in enumerate(found):
        if of is None or not np.isfinite(of["difference"]):
            continue
        low, high = np.clip([of["low"], of["high"]], -_DIFFERENCE, _DIFFERENCE)
        colour = BLUE if of["low"] > 0 else PINK if of["high"] < 0 else GREY
        mark = "o" if abs(of["difference"]) <= _DIFFERENCE else "<" if of["difference"] < 0 else ">"
        axes.hlines(place, low, high, color=colour, linewidth=2)
        axes.plot(np.clip(of["difference"], -_DIFFERENCE, _DIFFERENCE), place, mark, color=colour, markersize=6)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlim(-1.05 * _DIFFERENCE, 1.05 * _DIFFERENCE)
    axes.set_xticks([-0.05, -0.025, 0, 0.025, 0.05], ["-0.05", "-0.025", "0", "+0.025", "+0.05"])
    axes.set_xlabel("AUC less the champion's", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    tidy(axes)
