"""What evaluation.json holds: every model on the same rows, with intervals, beside the champion, and for cold ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.config import Recommender
from pipelines.gate import LOWER_IS_BETTER, metric_of
from pipelines.held_out import HeldOut
from pipelines.intervals import OVERALL, Drawn, Intervals, bounds
from pipelines.predictions import Groups, Measured, Scores

MODEL, CHAMPION, BEST = "model", "champion", "best attainable"
Evaluation = dict[str, Any]


def evaluation_of(held_out: HeldOut, models: Mapping[str, Scores], groups: Groups) -> Evaluation:
    """Measure some models on held-out rows.

    Args:
        held_out: the rows.
        models: what each says, by name: `model`, perhaps `champion` and `best attainable`, and baselines.
        groups: the rows by segment.

    Returns: see docs/evaluation.md; what is not defined is NaN.
    """
    found: Evaluation = {
        "rows": len(held_out.users),
        "users": len(held_out.ids["user"].hashes),
        "days": [day.isoformat() for day in held_out.split.days_of(held_out.part)],
        "overall": {name: held_out.measure(said) for name, said in models.items()},
        "by_segment": {name: held_out.measure_groups(said, groups) for name, said in models.items()},
        "cold": held_out.measure_groups(models[MODEL], held_out.cold()),
    }
    _add_conditional(found, held_out, models[MODEL])
    _add_intervals(found, Intervals.of(held_out, groups), models)
    return found


def losing_to(config: Recommender, overall: Mapping[str, Mapping[str, Measured]]) -> list[str]:
    """The baselines that are better than the model in the metric that promotion looks at."""
    task = config.primary_task
    kind = next(other.kind for other in config.tasks if other.name == task)
    metric = metric_of(config.evaluation.gate.metric, kind)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    if task not in overall[MODEL]:  # the YAML has it, and the version was trained before that
        return []
    ours = sign * overall[MODEL][task][metric]
    baselines = [name for name in overall if name not in (MODEL, CHAMPION, BEST)]
    return [name for name in baselines if sign * overall[name][task][metric] > ours]


def plain(value: Any) -> Any:
    """The same with null for what is not defined: JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _add_conditional(found: Evaluation, held_out: HeldOut, scores: Scores) -> None:
    for task in held_out.config.tasks:
        if task.given is not None and {task.name, task.given} <= scores.keys():
            found["overall"][MODEL][task.name]["conditional_auc"] = held_out.conditional_auc(task.name, scores)


def _add_intervals(found: Evaluation, intervals: Intervals, models: Mapping[str, Scores]) -> None:
    """Overall for every model; by segment for the model and the champion, and for what is between the two."""
    found["intervals"] = intervals.about()
    drawn = {name: _drawn(intervals, said, name in (MODEL, CHAMPION)) for name, said in models.items()}
    for name, by_task in drawn.items():
        for task, parts in by_task.items():
            for part, of in parts.items():
                _add_bounds(_measured(found, name, task, part), of)
    if CHAMPION in drawn:
        found["against_champion"] = {
            task: {part: _difference(found, task, part, drawn) for part in drawn[CHAMPION][task]}
            for task in drawn[CHAMPION]
            if task in drawn[MODEL]
        }


def _drawn(intervals: Intervals, scores: Scores, by_group: bool) -> dict[str, dict[str, Drawn]]:
    return {task: intervals.drawn(task, scores, by_group) for task in scores}


def _measured(found: Evaluation, model: str, task: str, part: str) -> Measured:
    of: Measured = found["overall"][model][task] if part == OVERALL else found["by_segment"][model][task][part]
    return of


def _add_bounds(measured: Measured, drawn: Drawn) -> None:
    for metric, values in drawn.items():
        measured |= {f"{metric}_{end}": value for end, value in bounds(values, measured[metric]).items()}


def _difference(
    found: Evaluation, task: str, part: str, drawn: Mapping[str, Mapping[str, Mapping[str, Drawn]]]
) -> dict[str, Measured]:
    """By metric, how far the model is above the champion: both met the same draws of users."""
    ours, theirs = (drawn[name][task][part] for name in (MODEL, CHAMPION))
    differences = {}
    for metric in ours:
        values = [_measured(found, name, task, part)[metric] for name in (MODEL, CHAMPION)]
        difference = values[0] - values[1]
        differences[metric] = {"difference": difference, **bounds(ours[metric] - theirs[metric], difference)}
    return differences
