"""The pictures that a run shows. Colours are Okabe and Ito's, told apart by colour-blind readers too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#666666"
_TASK_COLOURS = (BLUE, ORANGE, GREEN, PINK, GREY)
Metrics = Mapping[str, Mapping[str, float]]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def tidy(axes: Any) -> None:
    """The look that all have: no box, a faint grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def training_curve(steps: Sequence[Mapping[str, float]], epochs: Sequence[Mapping[str, float]]) -> Figure:
    """Loss per task: a line over the steps, and a mark at the end of each epoch for the days held out."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    names = [name.removeprefix("loss/") for name in epochs[0] if name.startswith("loss/")]
    for name, colour in zip(names, _TASK_COLOURS * len(names), strict=False):
        axes.plot([s["step"] for s in steps], [s[f"loss/{name}"] for s in steps], ".-", color=colour, label=name)
        if f"validation/loss/{name}" in epochs[0]:
            held_out = [epoch[f"validation/loss/{name}"] for epoch in epochs]
            axes.plot([e["step"] for e in epochs], held_out, "D", color=colour, label=f"{name}, held out")
    axes.set(xlabel="step", ylabel="loss, nats a row", title="Loss while choosing the number of epochs")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, ncols=2)
    tidy(axes)
    return figure


def auc_by_segment(task: str, models: Mapping[str, Metrics], largest: int = 20) -> Figure:
    """AUC of a task in each of the largest segments, a mark a model: {model: {segment: metrics}}."""
    first = next(iter(models.values()))
    segments = sorted(first, key=lambda name: -first[name]["rows"])[:largest][::-1]
    figure = new_figure(7, 1.4 + 0.32 * len(segments))
    axes = figure.subplots()
    marks = zip(models.items(), _TASK_COLOURS, ("o", "s", "^", "D"), strict=False)
    for (model, of), colour, mark in marks:
        values = [of.get(segment, {}).get("auc", float("nan")) for segment in segments]
        axes.plot(values, np.arange(len(segments)), mark, color=colour, label=model)
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    labels = [f"{segment}  ({first[segment]['rows']:,.0f} rows)" for segment in segments]
    axes.set_yticks(np.arange(len(segments)), labels, fontsize=8)
    axes.set(xlabel="AUC", title=f"{task}: AUC by segment, test days")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16 - 0.4 / (1 + len(segments))), ncols=3)
    tidy(axes)
    return figure


def calibration(labels: Mapping[str, NDArray[Any]], scores: Mapping[str, NDArray[Any]], bins: int = 20) -> Figure:
    """Predicted against observed rate, in bins of equally many rows, a line a task; both axes are logarithmic."""
    figure = new_figure(5.5, 5)
    axes = figure.subplots()
    low = 1.0
    for (task, said), colour in zip(scores.items(), _TASK_COLOURS * len(scores), strict=False):
        known = np.isfinite(labels[task])
        order = np.argsort(said[known])
        parts = [part for part in np.array_split(order, bins) if len(part)]
        predicted = np.array([said[known][part].mean() for part in parts])
        observed = np.array([labels[task][known][part].mean() for part in parts])
        shown = (observed > 0) & (predicted > 0)
        axes.plot(predicted[shown], observed[shown], "o-", color=colour, markersize=4, label=task)
        low = min([low, *predicted[shown], *observed[shown]])
    axes.plot([low, 1], [low, 1], ":", color=GREY, label="perfect")
    axes.set(xscale="log", yscale="log", xlabel="predicted rate", ylabel="observed rate")
    axes.set(title="Calibration, test days, 20 equal bins")
    axes.legend(fontsize=8)
    tidy(axes)
    return figure


def gate_weights(task: str, segments: Sequence[str], experts: Sequence[str], weights: NDArray[Any]) -> Figure:
    """Mean gate weight of every expert in every segment, for a task: a heat map [segments, experts]."""
    figure = new_figure(3.2 + 0.45 * len(experts), 1.8 + 0.3 * len(segments))
    axes = figure.subplots()
    image = axes.imshow(weights, cmap="cividis", vmin=0.0, vmax=max(0.5, float(np.nanmax(weights))), aspect="auto")
    axes.set_xticks(np.arange(len(experts)), experts, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(np.arange(len(segments)), segments, fontsize=8)
    axes.set(title=f"{task}: weight of each expert by segment")
    figure.colorbar(image, ax=axes, label="mean gate weight")
    return figure


def expert_load(tasks: Sequence[str], load: NDArray[Any]) -> Figure:
    """Share of a task's choices that each routed expert got: bars [tasks, experts], a line where all are equal."""
    figure = new_figure(7, 3.5)
    axes = figure.subplots()
    experts, width = load.shape[1], 0.8 / len(tasks)
    for number, (task, colour) in enumerate(zip(tasks, _TASK_COLOURS * len(tasks), strict=False)):
        axes.bar(np.arange(experts) + number * width, load[number], width, color=colour, label=task)
    axes.axhline(1 / experts, color=GREY, linestyle=":", label="even")
    axes.set_xticks(np.arange(experts) + 0.4 - width / 2, [str(number) for number in range(experts)])
    axes.set(xlabel="routed expert", ylabel="share of choices", title="Load of the routed experts, test days")
    axes.legend(fontsize=8)
    tidy(axes)
    return figure


def load_by_segment(tasks: Sequence[str], segments: Sequence[str], load: NDArray[Any], a_row: int = 3) -> Figure:
    """Share of each segment's choices that each routed expert got: a heat map a task, of load [S, T, R]."""
    experts, columns = load.shape[2], min(len(tasks), a_row)
    rows = -(-len(tasks) // columns)
    width, every = min(0.27 * experts + 0.5, 14), -(-experts // 32)
    figure = new_figure(2.6 + width * columns, 1.1 + rows * (0.6 + 0.26 * len(segments)))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    highest = max(2 / experts, float(np.nanmax(load)))
    for number, (task, axes) in enumerate(zip(tasks, panels, strict=False)):
        image = axes.imshow(load[:, number], cmap="cividis", vmin=0.0, vmax=highest, aspect="auto")
        axes.set_xticks(np.arange(0, experts, every), range(0, experts, every), fontsize=7)
        axes.set_yticks(np.arange(len(segments)), segments, fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(task, fontsize=10)
        if every == 1:
            _write_percent(axes, load[:, number], highest)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    bar = figure.colorbar(image, ax=panels.tolist(), pad=0.01, fraction=0.03)
    bar.ax.axhline(1 / experts, color="white")
    bar.set_label("share of choices; white line: even", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.supxlabel("routed expert" + ("; numbers in cells are percent, from 10 on" if every == 1 else ""), fontsize=9)
    figure.suptitle("Which routed experts the rows of a segment choose, test days", fontsize=11)
    return figure


def _write_percent(axes: Any, values: NDArray[Any], highest: float) -> None:
    for row, column in np.argwhere(values >= 0.095):
        colour = "black" if values[row, column] > 0.6 * highest else "white"
        axes.text(column, row, f"{values[row, column]:.0%}"[:-1], ha="center", va="center", fontsize=7, color=colour)


def knock_out(tasks: Sequence[str], experts: Sequence[str], rise: NDArray[Any], most: int = 40) -> Figure:
    """By how much each task's loss changes without an expert: bars [E, T], of the experts that change it most."""
    change = np.abs(np.nan_to_num(rise))
    of_most = (change / np.maximum(change.max(0), 1e-12)).max(1)
    shown = np.sort(np.argsort(-of_most, kind="stable")[:most])
    figure = new_figure(1.6 + 2.8 * len(tasks), 1.3 + 0.21 * len(shown))
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for task, axes, values, colour in zip(tasks, panels, rise[shown].T, _TASK_COLOURS * len(tasks), strict=False):
        decimals = _decimals(np.nanmax(np.abs(values), initial=0))
        values = np.round(values, decimals) + 0.0  # without the sign of -0.0
        bars = axes.barh(np.arange(len(shown)), np.nan_to_num(values), color=colour)
        labels = [f"{value:+.{decimals}f}" if value else "0" for value in values]
        known = ["has all the weight" if np.isnan(v) else label for v, label in zip(values, labels, strict=True)]
        axes.bar_label(bars, known, padding=3, fontsize=6.5, color=GREY)
        axes.axvline(0, color=GREY, linewidth=0.8)
        low, high = min(0.0, np.nanmin(values, initial=0)), max(0.0, np.nanmax(values, initial=0))
        room = 0.3 * max(high - low, 1e-4)
        axes.set_xlim(low - room * (low < 0), high + room)
        axes.margins(y=0.02)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(labelsize=8)
        axes.set_title(task, fontsize=10)
        tidy(axes)
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks(np.arange(len(shown)), [experts[place] for place in shown], fontsize=8)
    panels[0].invert_yaxis()
    figure.supxlabel("rise of the mean loss, test days; right of 0 the expert is missed", fontsize=9)
    figure.suptitle("What is lost without each expert", fontsize=11)
    return figure


def _decimals(largest: float) -> int:
    """How many show three figures of the largest number."""
    return max(0, 2 - int(np.floor(np.log10(largest)))) if largest > 0 else 0
