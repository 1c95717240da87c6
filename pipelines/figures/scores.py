"""What a model says: how often it is right about how often, and how it tells rows apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from pipelines.figures.style import (
    BLUE,
    GREY,
    MARKS,
    ORANGE,
    TASK_COLOURS,
    WIDTH,
    logits,
    new_figure,
    probability_axis,
    tidy,
)
from pipelines.score_bins import ScoreBins

_A_ROW = 3


def calibration(tasks: Mapping[str, ScoreBins]) -> Figure:
    """Predicted against observed rate, in groups of about equally many rows, a line a task; below, how many rows are
    predicted so. Bars are 95 % intervals of the observed rate, as if rows were independent."""
    figure = new_figure(WIDTH, 6.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for (task, bins), colour, mark in zip(tasks.items(), TASK_COLOURS * 9, MARKS * 9, strict=False):
        groups = bins.groups()
        x, y = logits(groups.predicted), logits(groups.observed)
        above.vlines(x, logits(groups.low), logits(groups.high), color=colour, linewidth=1, alpha=0.7)
        above.plot(x, y, linestyle="-", marker=mark, color=colour, markersize=5, linewidth=1, label=task)
        below.step(bins.centres, 100 * bins.rows / max(bins.rows.sum(), 1), where="mid", color=colour)
    ends = logits(np.array([1e-6, 1 - 1e-6]))
    above.plot(ends, ends, ":", color=GREY, label="as often as predicted")
    probability_axis(above.yaxis)
    probability_axis(above.xaxis)
    above.set_ylabel("observed rate", fontsize=9)
    below.set_ylabel("rows (%)", fontsize=9)
    below.set_ylim(0, 12)
    below.set_xlabel("predicted rate", fontsize=9)
    above.tick_params(labelbottom=False)
    below.tick_params(labelsize=8)
    above.legend(fontsize=8, loc="upper left")
    tidy(above)
    tidy(below)
    figure.suptitle("Calibration, test days: above the dotted line, more happens than is predicted", fontsize=11)
    return figure


def score_distribution(tasks: Mapping[str, ScoreBins]) -> Figure:
    """What is predicted of rows where a task happened and of rows where it did not, a panel a task."""
    columns = min(_A_ROW, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = new_figure(WIDTH, 0.9 + 2.4 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axes, (task, bins) in zip(panels, tasks.items(), strict=False):
        parts = ((bins.rows - bins.positives, GREY, "did not happen"), (bins.positives, BLUE, "happened"))
        for counts, colour, label in parts:
            share = 100 * counts / max(counts.sum(), 1)
            axes.fill_between(bins.centres, share, step="mid", color=colour, alpha=0.35, label=label)
            axes.step(bins.centres, share, where="mid", color=colour, linewidth=1)
        mean = logits(bins.positives.sum() / max(bins.rows.sum(), 1))
        axes.axvline(mean, color=ORANGE, linewidth=1.2, label="observed rate")
        axes.set_title(task, fontsize=10)
        probability_axis(axes.xaxis)
        axes.tick_params(axis="x", rotation=60)
        axes.set_xlabel("predicted rate", fontsize=9)
        axes.set_ylim(0, 12)
        tidy(axes)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.supylabel("rows of each kind (%)", fontsize=9)
    figure.suptitle("How far apart the predictions are, test days", fontsize=11)
    return figure
