"""Train again what a run trained, from the tables and the YAML as they were, and say whether the result is the same.

On one machine, with the same code and libraries, it is: to the last bit. What is not is named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from pipelines import warm_start
from pipelines.catalog import model_config
from pipelines.config import Recommender, load, parse
from pipelines.environment import commit_tags, environment
from pipelines.evaluate import scores_of
from pipelines.evaluation import MODEL, plain
from pipelines.held_out import HeldOut
from pipelines.prepare import sides_of
from pipelines.registry import Registry, run_of_server
from pipelines.runs import Facts, Run
from pipelines.scratch import scratch_of
from pipelines.split import Split
from pipelines.tables import Tables
from pipelines.team import Team
from pipelines.train import CONFIG, DECISIVE, ENVIRONMENT, READ, Plan, Work, describe, fit_to_folder
from pipelines.warm_start import Start
from recsys_moe import checkpoint
from recsys_moe.digests import digest
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

Metrics = dict[str, float | None]
"""By name; None where one is not defined, as the AUC of a single class."""
_COMMIT = ("mlflow.source.git.commit", "git.dirty")


@dataclass(frozen=True)
class Recorded:
    """What a run kept of its training.

    Attributes:
        config: of its YAML, as it was, with variables as they are now.
        decisive: see `Plan.decisive`.
        environment: see `pipelines.environment`.
        metrics: of the test rows, overall and by segment.
    """

    run_id: str
    facts: Facts
    config: Recommender
    decisive: Mapping[str, str]
    environment: Mapping[str, str]
    metrics: Metrics

    @classmethod
    def of(cls, run: Run, yaml: Path) -> Recorded:
        """Read it.

        Raises:
            UserError: the run is no training that was evaluated, or keeps too little.
        """
        facts, text = run.facts(), run.read_text(CONFIG)
        if "fingerprint" not in facts.tags:
            raise UserError(f"{run.run_id}: is no training (it is {facts.name!r}); name the run of a model's version")
        decisive, ran_on = run.read(DECISIVE), run.read(ENVIRONMENT)
        if text is None or decisive is None or ran_on is None:
            raise UserError(
                f"{run.run_id}: does not keep {CONFIG}, {DECISIVE} and {ENVIRONMENT}, as trainings of before did not; "
                "train again"
            )
        evaluation = run.read("evaluation.json")
        if evaluation is None:
            raise UserError(
                f"{run.run_id}: was not evaluated, so there is nothing to compare; run `recsys-moe evaluate`"
            )
        threads = {"threads": int(ran_on["threads"])}
        config = parse(text, yaml)
        config = config.model_copy(update={"training": config.training.model_copy(update=threads)})
        metrics = _named(evaluation["overall"][MODEL], evaluation["by_segment"][MODEL])
        return cls(run.run_id, facts, config, decisive, ran_on, metrics)


@dataclass(frozen=True)
class Reproduction:
    """What came out: by metric what was recorded and what is measured now; by fact of the training likewise.

    Attributes:
        run_id: the run of the second training.
        weights: whether the checkpoint is the same to the last bit.
    """

    recorded: str
    run_id: str
    weights: bool
    metrics: Mapping[str, tuple[float | None, float | None]]
    facts: Mapping[str, tuple[str, str]]

    @property
    def same(self) -> bool:
        """Whether all metrics match to the last digit."""
        return all(before == now for before, now in self.metrics.values())

    @property
    def differing(self) -> dict[str, tuple[str, str]]:
        """The facts that are not what they were; of those that are JSON, the keys that differ."""
        return {name: _where_they_differ(*pair) for name, pair in self.facts.items() if pair[0] != pair[1]}

    def result(self) -> dict[str, Any]:
        """What the step reports."""
        return {
            "step": "reproduce",
            "reproduces": self.recorded,
            "run_id": self.run_id,
            "same": self.same,
            "same_weights": self.weights,
            "metrics": {name: {"recorded": before, "again": now} for name, (before, now) in self.metrics.items()},
            "differs": {name: {"recorded": before, "again": now} for name, (before, now) in self.differing.items()},
        }


def reproduce(run_id: str, yaml: Path | None = None) -> Reproduction:
    """Train again what a run trained, measure it on the same test rows and compare. No version is registered.

    The second training is a run of its own below the first, with the tag `reproduces`.

    Args:
        run_id: of a training that was evaluated.
        yaml: the recommender's file, which says where MLflow and the tables are; if left out, `MLFLOW_TRACKING_URI`
            says the one, and the YAML as the run keeps it the other.

    Raises:
        UserError: there is no such training, or what it read is gone.
        TryAgainError: another process is at the same.
    """
    if yaml is None:
        found = run_of_server(run_id)
        recorded = Recorded.of(found, Path(found.facts().tags.get("mlflow.source.name", "")))
        registry = Registry(recorded.config)
        registry.finished_run(run_id)
    else:
        registry = Registry(load(yaml))
        recorded = Recorded.of(registry.finished_run(run_id), yaml)
    plan = _plan(recorded, registry)
    changed = [name for name, value in recorded.decisive.items() if plan.decisive.get(name) != value]
    if changed:
        log.warning("not the training that it was: other %s", ", ".join(changed))
    tags = {"reproduces": run_id, "mlflow.parentRunId": run_id}
    with (
        scratch_of(recorded.config, "reproduce", run_id, resume=False) as scratch,
        registry.run(f"reproduces {recorded.facts.name}", tags) as run,
    ):
        describe(run, plan, Team())
        done = _compared(recorded, plan, registry, scratch, run)
        run.table(done.result(), "reproduction.json")
        run.tags({"same": str(done.same).lower()})
    return done


def _plan(recorded: Recorded, registry: Registry) -> Plan:
    """The training as it was: on the versions of the tables that the run names."""
    run_id, config = recorded.run_id, recorded.config
    versions = {name: recorded.facts.tables.get(name) for name in READ}
    if versions["examples"] is None:
        raise UserError(f"{run_id}: does not name the version of the table examples that it read")
    known = {name: version for name, version in versions.items() if version is not None}
    tables, as_of = Tables(config.storage, known), date.fromisoformat(recorded.facts.tags["as_of"])
    tables.check_whole("examples", as_of)
    split = Split.of(config, tables.days("examples"), as_of)
    shape = model_config(config, sides_of(config, tables))
    return Plan(config, shape, tables, split, _start(recorded, registry))


def _start(recorded: Recorded, registry: Registry) -> Start:
    """Where the training began."""
    kind, _, start = recorded.decisive["start"].partition(" ")
    assert kind == "from"
    if start == "nothing":
        return Start(reason="as then")
    version = registry.version_of(start)
    if version is None:
        raise UserError(
            f"{recorded.run_id}: began from the model of run {start}, which is not registered any more; "
            "it cannot be trained again"
        )
    return Start(version)


def _compared(recorded: Recorded, plan: Plan, registry: Registry, scratch: Path, run: Run) -> Reproduction:
    threads = torch.get_num_threads()
    start, champion = warm_start.checked(plan.start, registry, plan.shape)
    folder = fit_to_folder(Work(plan, start, champion, registry, scratch, run, Team()))
    torch.set_num_threads(threads)
    now = _test_metrics(plan, folder)
    run.metrics({name: value for name, value in now.items() if value is not None and name.count("/") == 2})
    version, both = registry.version_of(recorded.run_id), [name for name in now if name in recorded.metrics]
    if not both:
        raise UserError(f"{recorded.run_id}: has no metric of the same name as today's, such as {next(iter(now))!r}")
    return Reproduction(
        recorded=recorded.run_id,
        run_id=run.run_id,
        weights=version is not None and digest(registry.checkpoint(version)) == digest(folder),
        metrics={name: (recorded.metrics[name], now[name]) for name in both},
        facts=_facts(recorded, plan),
    )


def _test_metrics(plan: Plan, folder: Path) -> Metrics:
    """What the model is worth on the test rows."""
    held_out, ranker = HeldOut.of(plan.config, plan.tables, plan.split), checkpoint.load(folder)
    said = scores_of(ranker, held_out)
    by_segment = held_out.measure_groups(said, held_out.segments(ranker).groups())
    return _named(plain(held_out.measure(said)), plain(by_segment))


def _named(overall: Mapping[str, Metrics], by_segment: Mapping[str, Mapping[str, Metrics]]) -> Metrics:
    """`test/{task}/{metric}` and `test/{task}/{metric}/{segment}`, as in the run."""
    named = {f"test/{task}/{metric}": value for task, of in overall.items() for metric, value in of.items()}
    for task, segments in by_segment.items():
        for segment, of in segments.items():
            named |= {f"test/{task}/{metric}/{segment}": value for metric, value in of.items()}
    return named


def _facts(recorded: Recorded, plan: Plan) -> dict[str, tuple[str, str]]:
    """By name what was so and what is so now: what decides the result, and what its last digit can depend on."""
    device = recorded.environment["device"]
    threads, has_cuda = int(recorded.environment["threads"]), torch.cuda.is_available()
    now = environment(threads, 1, "cuda" if has_cuda and device != "cpu" else "cpu")
    tags, committed = recorded.facts.tags, commit_tags()
    facts = {name: (value, plan.decisive.get(name, "")) for name, value in recorded.decisive.items()}
    facts |= {name: (value, now.get(name, "")) for name, value in recorded.environment.items()}
    return facts | {name: (tags.get(name, ""), committed.get(name, "")) for name in _COMMIT}


def _where_they_differ(before: str, now: str) -> tuple[str, str]:
    if not (before.startswith("{") and now.startswith("{")):
        return before, now
    both = json.loads(before), json.loads(now)
    keys = sorted(key for key in both[0].keys() | both[1].keys() if both[0].get(key) != both[1].get(key))
    told = [json.dumps({key: one.get(key) for key in keys}) for one in both]
    return told[0], told[1]


def in_words(done: Reproduction) -> str:
    """A table of the overall metrics and those that differ, and what else differs, for a person."""
    shown = {name: pair for name, pair in done.metrics.items() if name.count("/") == 2 or pair[0] != pair[1]}
    width = max(map(len, shown), default=0)
    lines = [f"{'metric':<{width}}  {'recorded':>22}  {'again':>22}"]
    for name, (before, now) in shown.items():
        mark = "" if before == now else "  differs"
        lines.append(f"{name:<{width}}  {before!r:>22}  {now!r:>22}{mark}")
    if len(shown) < len(done.metrics):
        lines.append(f"and {len(done.metrics) - len(shown)} metrics of segments, all the same")
    count = sum(before != now for before, now in done.metrics.values())
    verdict = "the same to the last digit" if done.same else f"{count} of {len(done.metrics)} metrics differ"
    lines += ["", f"{verdict}; the weights are {'the same to the last bit' if done.weights else 'not the same'}"]
    lines += [f"  {name}: was {before}, is {now}" for name, (before, now) in done.differing.items()]
    return "\n".join(lines)
