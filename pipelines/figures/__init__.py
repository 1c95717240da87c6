"""The pictures that a run shows."""

from pipelines.figures.experts import expert_load, gate_features, gate_weights, knock_out
from pipelines.figures.scores import calibration, score_distribution
from pipelines.figures.segments import auc_by_segment
from pipelines.figures.style import BLUE, GREEN, GREY, ORANGE, PINK, WIDTH, new_figure, tidy, with_rows
from pipelines.figures.training import training_curve

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PINK",
    "WIDTH",
    "auc_by_segment",
    "calibration",
    "expert_load",
    "gate_features",
    "gate_weights",
    "knock_out",
    "new_figure",
    "score_distribution",
    "tidy",
    "training_curve",
    "with_rows",
]
