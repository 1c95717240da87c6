"""How a training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipelines.figures.style import BLUE, ORANGE, WIDTH, new_figure, tidy

_A_ROW = 3


def training_curve(steps: Sequence[Mapping[str, float]], epochs: Sequence[Mapping[str, float]]) -> Figure:
    """Loss per task, a panel each: a line over the steps, a mark at the end of each epoch for the rows held out.

    Args:
        steps, epochs: `step`, `loss/<task>` and, of epochs that were judged, `validation/loss/<task>`.
    """
    tasks = [name.removeprefix("loss/") for name in epochs[0] if name.startswith("loss/")]
    columns = min(_A_ROW, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = new_figure(WIDTH, 0.9 + 2.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, task in zip(panels, tasks, strict=False):
        axes.plot([s["step"] for s in steps], [s[f"loss/{task}"] for s in steps], color=BLUE, label="training rows")
        held_out = [(e["step"], e[f"validation/loss/{task}"]) for e in epochs if f"validation/loss/{task}" in e]
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "D-", color=ORANGE, markersize=5, label="validation days")
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        tidy(axes)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.supylabel("mean loss of a row (nats)", fontsize=9)
    figure.suptitle("Loss while the number of epochs is chosen", fontsize=11)
    return figure
