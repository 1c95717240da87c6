"""Pictures: names, units and labels are there, nothing is clipped, and axes are alike in all runs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipelines import figures
from pipelines.score_bins import ScoreBins

TASKS = ("click", "like", "purchase")
UNITS = {
    "training": "nats",
    "auc_by_segment": "AUC",
    "calibration": "rows (%)",
    "score_distribution": "rows of each kind (%)",
    "expert_load": "percent of the choices",
    "gate_weights": "mean gate weight (%)",
    "knock_out": "rise of the mean loss without the expert (%)",
    "gate_features": "log-odds",
}
"""What each picture says that it shows."""
FREE = ("training", "gate_weights", "expert_load")
"""Those whose axes are steps and names."""
SEGMENTS = ("18-24:DE", "25-34:DE", "a segment with a name that is far too long to be shown", "50+:*")


def evaluation(shift: float = 0.0, champion: bool = True) -> dict[str, Any]:
    """As evaluation.json has it; `shift` moves all AUC."""
    models = ["model", "popularity", *(["champion"] if champion else [])]
    values = {"auc": 0.7 + shift, "auc_low": 0.68 + shift, "auc_high": 0.72 + shift, "rows": 4000}
    by_segment = {name: values | {"rows": 100 + 100 * number} for number, name in enumerate(SEGMENTS)}
    by_segment["50+:*"] = {"auc": float("nan"), "rows": 3}
    found: dict[str, Any] = {
        "overall": {name: dict.fromkeys(TASKS, values) for name in models},
        "by_segment": {name: dict.fromkeys(TASKS, by_segment) for name in models},
    }
    if champion:
        difference = {"auc": {"difference": 0.02 + shift, "low": 0.01 + shift, "high": 0.03 + shift}}
        undefined = {"auc": {"difference": float("nan"), "low": float("nan"), "high": float("nan")}}
        parts = {"overall": difference, **dict.fromkeys(SEGMENTS, difference), "50+:*": undefined}
        found["against_champion"] = dict.fromkeys(TASKS, parts)
    return found


def bins(mean: float) -> ScoreBins:
    rng = np.random.default_rng(0)
    said = np.clip(rng.beta(2, 2 / mean, 5000), 1e-6, 1)
    counted = ScoreBins()
    counted.add((rng.random(5000) < said).astype(float), said)
    return counted


@cache
def picture(name: str, case: int) -> Figure:
    """A picture of one of two runs that have little in common."""
    rng, experts = np.random.default_rng(case), 4 + 4 * case
    names = [f"routed {number}" for number in range(experts)]
    if name == "training":
        steps = [{"step": step, **{f"loss/{task}": 1 / step for task in TASKS}} for step in range(10, 100, 10)]
        epochs = [{"step": 90, **{f"{part}loss/{task}": 0.1 for task in TASKS for part in ("", "validation/")}}]
        return figures.training_curve(steps, epochs)
    if name == "auc_by_segment":
        return figures.auc_by_segment("click", evaluation(0.2 * case))
    if name in ("calibration", "score_distribution"):
        counted = {task: bins(0.3 / (1 + number + case)) for number, task in enumerate(TASKS)}
        return figures.calibration(counted) if name == "calibration" else figures.score_distribution(counted)
    if name == "knock_out":
        rise = rng.normal(0, 10.0**case, (experts, len(TASKS)))
        rise[0] = np.nan
        return figures.knock_out(TASKS, names, rise, rise - 0.1, rise + 0.1)
    if name == "gate_features":
        return figures.gate_features(TASKS, [f"feature_{n}" for n in range(30)], rng.random((3, 30)) + case)
    load = rng.dirichlet(np.ones(experts), (len(SEGMENTS), len(TASKS)))
    load[-1] = np.nan
    rows = [figures.with_rows(segment, 1000) for segment in SEGMENTS]
    return (
        figures.expert_load(TASKS, rows, load)
        if name == "expert_load"
        else figures.gate_weights("weights", rows, names, load[:, 0])
    )


@cache
def laid_out(name: str) -> Figure:
    """A picture as it is saved."""
    figure = picture(name, 1)
    FigureCanvasAgg(figure).draw()
    return figure


@pytest.fixture(params=UNITS)
def drawn(request: pytest.FixtureRequest) -> tuple[str, Figure]:
    """A picture's name, and the picture."""
    return request.param, laid_out(request.param)


def texts(figure: Figure) -> list[Any]:
    """All texts that are shown, of axes that are."""
    shown = [axes for axes in figure.axes if axes.get_visible()]
    inside = [text for axes in shown for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)]
    ticks = [
        (tick, *sorted(axis.get_view_interval()))
        for axes in shown
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
    ]
    labels = [tick.label1 for tick, low, high in ticks if low <= tick.get_loc() <= high]
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    return [text for text in (*inside, *labels, *legends, *figure.texts) if text.get_text() and text.get_visible()]


def test_nothing_is_clipped(drawn: tuple[str, Figure]) -> None:
    _, figure = drawn
    width, height = figure.canvas.get_width_height()
    assert texts(figure)
    for text in texts(figure):
        box = text.get_window_extent()
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"{text.get_text()!r} lies beyond the picture"


def test_it_has_a_title_and_names_its_axes(drawn: tuple[str, Figure]) -> None:
    name, figure = drawn
    words = " ".join(text.get_text() for text in texts(figure))
    assert figure.get_suptitle()
    assert UNITS[name] in words


def test_it_fits_the_panel_of_the_ui(drawn: tuple[str, Figure]) -> None:
    _, figure = drawn
    assert figure.canvas.get_width_height()[0] == round(figures.WIDTH * 110)


@pytest.mark.parametrize("name", sorted(UNITS.keys() - FREE))
def test_values_have_the_same_axis_in_every_run(name: str) -> None:
    limits = [[axes.get_xlim() for axes in picture(name, case).axes] for case in (0, 1)]
    assert limits[0] == limits[1]


@pytest.mark.parametrize("name", ["gate_weights", "expert_load"])
def test_colours_mean_the_same_in_every_run(name: str) -> None:
    ranges = [[image.get_clim() for axes in picture(name, case).axes for image in axes.get_images()] for case in (0, 1)]
    assert len({*ranges[0], *ranges[1]}) == 1


def test_segments_stand_by_size_below_all_rows() -> None:
    axes = figures.auc_by_segment("click", evaluation()).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "all rows  (4,000 rows)"
    assert labels[1] == "a segment with a name that…  (300 rows)"
    assert labels[-1] == "50+:*  (3 rows)"


def test_without_a_champion_there_is_no_difference() -> None:
    assert len(figures.auc_by_segment("click", evaluation(champion=False)).axes) == 1
    assert len(figures.auc_by_segment("click", evaluation()).axes) == 2


def test_history_features_are_named_to_their_end() -> None:
    names = [f"video_id_x_tab_30d_watched_60s_{what}" for what in ("rows", "rate")]
    (axes,) = figures.gate_features(("click",), names, np.array([[0.2, 0.1]])).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names
