"""What a version is worth: by task and segment, beside the champion and the baselines, on the same rows."""

from __future__ import annotations

import logging
import re
from datetime import date
from typing import Any

import numpy as np

from pipelines import figures
from pipelines.config import Recommender
from pipelines.errors import NotDueError
from pipelines.expert_health import ExpertHealth
from pipelines.held_out import HeldOut, Scores, flat
from pipelines.registry import Registry, Version
from pipelines.runs import Run
from pipelines.split import Split
from pipelines.tables import Tables
from recsys_moe import checkpoint
from recsys_moe.checkpoint import Ranker
from recsys_moe.errors import OldFormatError
from recsys_moe.routing import RoutingReport

log = logging.getLogger(__name__)

_COMPARED = ("auc", "gauc", "log_loss")
"""What the run keeps of the champion and the baselines; the rest is in evaluation.json."""


def evaluate(config: Recommender, as_of: date) -> dict[str, Any]:
    """Measure the version trained for `as_of` on its test days; numbers and pictures go to its run.

    Raises:
        NotDueError: no version was trained for that day.
    """
    registry = Registry(config)
    version = trained_version(registry, as_of)
    held_out = held_out_rows(config, as_of)
    ranker = checkpoint.load(registry.checkpoint(version))
    scores = scores_of(ranker, held_out)
    models = {"model": scores, "popularity": held_out.popularity(Tables(config.storage))}
    champion = registry.champion()
    if champion is not None and champion != version:
        try:
            models["champion"] = scores_of(checkpoint.load(registry.checkpoint(champion)), held_out)
        except OldFormatError as error:
            log.warning("champion %d is not compared: %s", champion.number, error)
    truth = held_out.best_attainable()
    if truth is not None:
        models["best attainable"] = truth
    measured = {name: held_out.measure(said) for name, said in models.items()}
    health = ExpertHealth.of(ranker, held_out.table)
    run = registry.open_run(version.run_id)
    _log(run, held_out, ranker, models, measured, health)
    log.info("evaluated version %d: %s", version.number, _in_words(measured))
    return _result(version, champion, measured, health.routing, as_of)


def trained_version(registry: Registry, as_of: date) -> Version:
    """The version that was trained for a day.

    Raises:
        NotDueError: there is none.
    """
    version = registry.trained_for(as_of)
    if version is None:
        raise NotDueError(f"{as_of}: no version was trained for this day")
    return version


def held_out_rows(config: Recommender, as_of: date) -> HeldOut:
    """The test rows of the training for a day."""
    tables = Tables(config.storage)
    return HeldOut.of(config, tables, Split.of(config, tables.days("examples"), as_of))


def scores_of(ranker: Ranker, held_out: HeldOut) -> Scores:
    """What a model says of the test rows, by task."""
    said = ranker.predict(held_out.table).astype(np.float64)
    return {task.name: said[:, number] for number, task in enumerate(ranker.config.tasks)}


def _log(
    run: Run,
    held_out: HeldOut,
    ranker: Ranker,
    models: dict[str, Scores],
    measured: dict[str, dict[str, dict[str, float]]],
    health: ExpertHealth,
) -> None:
    names, _ = ranker.encoder.segment_of(held_out.table)
    segments = names.to_numpy(zero_copy_only=False)
    by_segment = {name: held_out.measure_segments(said, segments) for name, said in models.items()}
    numbers = flat("test", measured["model"])
    for name, by_task in measured.items():
        if name != "model":
            compared = {task: {key: of[key] for key in _COMPARED if key in of} for task, of in by_task.items()}
            numbers |= flat(name.replace(" ", "_"), compared)
    for task, found in by_segment["model"].items():
        for segment, values in found.items():
            numbers |= {f"test/{task}/{metric}/{_plain(segment)}": value for metric, value in values.items()}
    for given in (task.name for task in held_out.config.tasks if task.given is not None):
        numbers[f"test/{given}/conditional_auc"] = held_out.conditional_auc(given, models["model"])
    run.metrics(numbers | health.numbers())
    run.table({"overall": measured, "by_segment": by_segment["model"]}, "evaluation.json")
    run.table(health.tables(), "experts.json")
    _draw(run, held_out, models, by_segment)
    for name, picture in health.pictures().items():
        run.picture(picture, f"pictures/{name}.png")


def _draw(
    run: Run,
    held_out: HeldOut,
    models: dict[str, Scores],
    by_segment: dict[str, dict[str, dict[str, dict[str, float]]]],
) -> None:
    binary = [task.name for task in held_out.config.tasks if task.kind == "binary"]
    for task in binary:
        of_task = {name: found[task] for name, found in by_segment.items() if task in found}
        run.picture(figures.auc_by_segment(task, of_task), f"pictures/auc_by_segment_{task}.png")
    if binary:
        said = {task: models["model"][task] for task in binary}
        run.picture(figures.calibration(held_out.labels, said), "pictures/calibration.png")


def _plain(segment: str) -> str:
    """A segment's name with only what a metric's name may have."""
    return re.sub(r"[^\w.\-: ]+", "_", segment)


def _result(
    version: Version,
    champion: Version | None,
    measured: dict[str, dict[str, dict[str, float]]],
    report: RoutingReport,
    as_of: date,
) -> dict[str, Any]:
    """What the step reports; a metric that is not defined is null."""
    tasks: dict[str, dict[str, float | None]] = {}
    for task, found in measured["model"].items():
        tasks[task] = {name: _defined(value) for name, value in found.items()}
        for model, short in (("popularity", "popularity"), ("champion", "champion"), ("best attainable", "best")):
            if model in measured:
                tasks[task][f"{short}_auc"] = _defined(measured[model].get(task, {}).get("auc"))
    return {
        "step": "evaluate",
        "as_of": as_of.isoformat(),
        "version": version.number,
        "champion": champion.number if champion else None,
        "tasks": tasks,
        "load": [round(share, 4) for share in report.union_load.tolist()],
        "dead": list(report.dead),
    }


def _defined(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 6)


def _in_words(measured: dict[str, dict[str, dict[str, float]]]) -> str:
    """`click AUC 0.7401 (popularity 0.6012)`, task by task."""
    words = []
    for task, found in measured["model"].items():
        if "auc" in found:
            words.append(f"{task} AUC {found['auc']:.4f} (popularity {measured['popularity'][task]['auc']:.4f})")
    return ", ".join(words)
