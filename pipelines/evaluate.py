"""What a version is worth: by task and segment, beside the champion and the baselines, on the same rows."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import baselines, figures, run_page
from pipelines.config import Recommender
from pipelines.errors import NotDueError
from pipelines.evaluation import BEST, CHAMPION, MODEL, Evaluation, evaluation_of, losing_to, plain
from pipelines.expert_health import ExpertHealth
from pipelines.held_out import HeldOut, flat
from pipelines.lists import lists
from pipelines.predictions import Measured, Scores
from pipelines.registry import Registry, Version
from pipelines.runs import Run
from pipelines.score_bins import ScoreBins
from pipelines.split import Split
from pipelines.tables import Tables
from recsys_moe import checkpoint
from recsys_moe.checkpoint import Ranker
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

_COMPARED = ("auc", "gauc", "log_loss", "rmse")
"""What the run keeps of the champion and the baselines; the rest is in evaluation.json."""
_OF_SEGMENTS = (*_COMPARED, "calibration", "rows", "positives")
"""What it keeps of segments."""
_HEALTH_ROWS = 200_000
"""Rows over which it is looked at what the experts do: the load of each is known to a tenth of a percent then."""
_ROWS_AT_ONCE = 1 << 20
_LONGEST = 100
"""Characters of a segment's name in that of a metric; MLflow takes 250 for the whole."""
_SHORT = {BEST: "best"}


def evaluate(config: Recommender, as_of: date) -> dict[str, Any]:
    """Measure the version trained for `as_of` on its test days; numbers and pictures go to its run.

    Raises:
        NotDueError: no version was trained for that day.
        UserError: there are no test rows.
    """
    registry = Registry(config)
    version = trained_version(registry, as_of)
    contest = Contest.of(config, registry, version, as_of)
    held_out, ranker, run = contest.held_out, contest.rankers[MODEL], registry.open_run(version.run_id)
    found = evaluation_of(held_out, contest.models, held_out.segments(ranker).groups())
    found["lists"] = contest.lists()
    health = ExpertHealth.of(ranker, *held_out.sample(ranker.config, _HEALTH_ROWS))
    lost_to = losing_to(config, found["overall"])
    _log(run, found, health)
    _draw(run, held_out, contest.models[MODEL], found, health)
    run.tags({"loses_to": ", ".join(lost_to) or "none"})
    run_page.refresh(registry, version)
    log.info("evaluated version %d: %s", version.number, _in_words(found["overall"], lost_to))
    return {
        "step": "evaluate",
        "as_of": as_of.isoformat(),
        "version": version.number,
        "champion": contest.champion.number if contest.champion else None,
        "tasks": _tasks(found["overall"]),
        "loses_to": lost_to,
        "load": [round(share, 4) for share in health.routing.union_load.tolist()],
        "dead": list(health.routing.dead),
    }


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
    """The test rows of the training for a day.

    Raises:
        UserError: there are none.
    """
    tables = Tables(config.storage)
    held_out = HeldOut.of(config, tables, Split.of(config, tables.days("examples"), as_of))
    if not len(held_out.users):
        raise UserError(f"{as_of}: evaluation.split holds out no row to test on")
    return held_out


def scores_of(ranker: Ranker, held_out: HeldOut) -> Scores:
    """What a model says of the held-out rows, by task."""
    names = [task.name for task in ranker.config.tasks]

    def predict(block: pa.Table) -> Scores:
        return dict(zip(names, ranker.predict(block).T, strict=True))

    return held_out.said_by(predict, ranker.config, kind="f4")


@dataclass(frozen=True)
class Contest:
    """A version and what it is measured beside, on the same rows.

    Attributes:
        rankers: `model` and, where there is one that can be read, `champion`.
        models: what they, the baselines and, in a simulation, the truth say, by name.
        fitted: the baselines.
    """

    config: Recommender
    held_out: HeldOut
    champion: Version | None
    rankers: Mapping[str, Ranker]
    models: Mapping[str, Scores]
    fitted: Mapping[str, baselines.Baseline]

    @classmethod
    def of(cls, config: Recommender, registry: Registry, version: Version, as_of: date) -> Contest:
        """Ask everyone."""
        held_out = held_out_rows(config, as_of)
        ranker = checkpoint.load(registry.checkpoint(version))
        rankers, models = {MODEL: ranker}, {MODEL: scores_of(ranker, held_out)}
        champion = registry.champion()
        if champion is not None and champion != version:
            try:
                rankers[CHAMPION] = checkpoint.load(registry.checkpoint(champion))
                models[CHAMPION] = scores_of(rankers[CHAMPION], held_out)
            except UserError as error:
                rankers.pop(CHAMPION, None)
                log.warning("champion %d is not compared: %s", champion.number, error)
        fitted = baselines.fitted(config, held_out.tables, held_out.split, ranker)
        models |= {name: held_out.said_by(of.predict, ranker.config) for name, of in fitted.items()}
        truth = held_out.best_attainable()
        models |= {BEST: truth} if truth is not None else {}
        return cls(config, held_out, champion, rankers, models, fitted)

    def lists(self) -> dict[str, Any]:
        """How good the lists are that users would have got, by model and task."""
        popularity = self.fitted.get("popularity")
        known = popularity if isinstance(popularity, baselines.Popularity) else None
        return lists(self.config, self.held_out.tables, self.held_out.split, self.rankers, known)


def _log(run: Run, found: Evaluation, health: ExpertHealth) -> None:
    """Numbers and tables."""
    own = {task: _without_bounds(of) for task, of in found["overall"][MODEL].items()}
    numbers = flat("test", own)
    for name, by_task in found["overall"].items():
        if name != MODEL:
            numbers |= flat(name.replace(" ", "_"), {task: _some(of, _COMPARED) for task, of in by_task.items()})
    for task, segments in found["by_segment"][MODEL].items():
        for segment, of in segments.items():
            kept = _some(of, _OF_SEGMENTS).items()
            numbers |= {f"test/{task}/{metric}/{_plain(segment)}": value for metric, value in kept}
    for name, by_task in found["lists"].items():
        numbers |= flat("test" if name == MODEL else name, {task: _of_lists(of) for task, of in by_task.items()})
    run.metrics(numbers | health.numbers())
    run.table(plain(found), "evaluation.json")
    run.table(health.tables(), "experts.json")


def _without_bounds(of: Measured) -> Measured:
    return {name: value for name, value in of.items() if not name.endswith(("_low", "_high"))}


def _some(of: Measured, names: tuple[str, ...]) -> Measured:
    return {name: of[name] for name in names if name in of}


def _of_lists(of: Measured) -> Measured:
    """As metrics may be called; the number of users is that of the lists alone, and stays in evaluation.json."""
    return {name.replace("@", "_at_"): value for name, value in of.items() if name != "users"}


def _plain(segment: str) -> str:
    """A segment's name with only what a metric's name may have: no path, and not too long."""
    plain = re.sub(r"[^\w.\-: ]+", "_", segment)[:_LONGEST]
    return plain if plain.strip(".") else plain.replace(".", "_") or "_"


def _draw(run: Run, held_out: HeldOut, said: Scores, found: Evaluation, health: ExpertHealth) -> None:
    """Pictures."""
    binary = [task for task in said if held_out.kind(task) == "binary"]
    for task in binary:
        run.picture(figures.auc_by_segment(task, found), f"pictures/auc_by_segment/{task}.png")
    if binary:
        bins = {task: _binned(held_out.labels[task], said[task]) for task in binary}
        run.picture(figures.calibration(bins), "pictures/calibration.png")
        run.picture(figures.score_distribution(bins), "pictures/score_distribution.png")
    for name, picture in health.pictures().items():
        run.picture(picture, f"pictures/{name}.png")


def _binned(labels: NDArray[Any], said: NDArray[Any]) -> ScoreBins:
    bins = ScoreBins()
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        bins.add(labels[some], said[some])
    return bins


def _tasks(overall: Mapping[str, Mapping[str, Measured]]) -> dict[str, dict[str, float | None]]:
    """What the step reports of each task: the model's metrics, and the AUC of some others. Not defined is null."""
    tasks: dict[str, dict[str, float | None]] = {}
    for task, found in overall[MODEL].items():
        tasks[task] = {name: _rounded(value) for name, value in found.items()}
        for model, of in overall.items():
            if model != MODEL:
                tasks[task][f"{_SHORT.get(model, model)}_auc"] = _rounded(of.get(task, {}).get("auc"))
    return tasks


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 6)


def _in_words(overall: Mapping[str, Mapping[str, Measured]], lost_to: Sequence[str]) -> str:
    """`click AUC 0.7401 (popularity 0.6012)`, task by task; and what is better."""
    words = []
    for task, found in overall[MODEL].items():
        if "auc" in found:
            known = {name: of[task]["auc"] for name, of in overall.items() if name != MODEL and task in of}
            others = ", ".join(f"{name} {value:.4f}" for name, value in known.items())
            words.append(f"{task} AUC {found['auc']:.4f}" + (f" ({others})" if others else ""))
    if lost_to:
        words.append(f"LOSES TO {', '.join(lost_to)}")
    return ", ".join(words)
