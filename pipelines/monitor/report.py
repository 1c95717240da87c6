"""The report of a day: a run in an experiment of its own, so that the table of trainings holds trainings alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

from pipelines import saved_view
from pipelines.config import Recommender
from pipelines.monitor import page
from pipelines.monitor.checks import Check, Judged, counted
from pipelines.monitor.drifts import Drifts
from pipelines.registry import Registry, Version

_SHOWN = 12
_COLUMNS = ("verdict", "reasons", "model_version")
_SIGNS = {"ok": "ok", "warn": "**warning**", "retrain": "**retrain**"}


@dataclass(frozen=True)
class Seen:
    """A day as it was seen: by `version`, if one served; `drifts` where there was something to compare with."""

    as_of: date
    version: Version | None
    judged: Judged
    drifts: Drifts | None


def write(config: Recommender, registry: Registry, seen: Seen) -> str:
    """Write the day's run, in place of one from before. Returns its id."""
    client, experiment = registry.client, _experiment(config, registry)
    day = seen.as_of.isoformat()
    before = client.search_runs([experiment], f"tags.as_of = '{day}'")
    run_id = str(client.create_run(experiment, run_name=day).info.run_id)
    run, ended = registry.open_run(run_id), "FAILED"
    try:
        run.tags(_tags(seen))
        run.metrics(dict(_metrics(seen.judged.checks)))
        run.table(_all(seen), "monitor.json")
        run.text(page.render(config, seen.as_of, seen.version, seen.judged, seen.drifts), "report.html")
        run.description(_description(registry, experiment, run_id, seen))
        ended = "FINISHED"
    finally:
        client.set_terminated(run_id, status=ended)
    for old in before:
        client.delete_run(old.info.run_id)
    return run_id


def _experiment(config: Recommender, registry: Registry) -> str:
    """The experiment's id; it lies where that of the trainings does."""
    client, name = registry.client, f"{config.name}-monitoring"
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    metrics = [f"monitor/calibration/{task.name}" for task in config.tasks]
    metrics += ["monitor/drift_worst", "monitor/score_drift_worst", "monitor/volume/rows"]
    tags = {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"A run a day of `recsys-moe monitor` for `{config.name}`. Its description says "
        "what was found, `report.html` shows it. Filter by `tags.verdict != 'ok'`.",
        saved_view.TAG: saved_view.monitored(_COLUMNS, metrics),
    }
    beside = client.get_experiment(registry.experiment_id).artifact_location
    place = None if registry.uri.startswith("http") else beside
    return str(client.create_experiment(name, artifact_location=place, tags=tags))


def _tags(seen: Seen) -> dict[str, str]:
    judged = seen.judged
    return {
        "step": "monitor",
        "as_of": seen.as_of.isoformat(),
        "verdict": judged.verdict,
        "retrain": str(judged.retrain).lower(),
        "reasons": "; ".join(check.text for check in judged.found[:_SHOWN])[:4000] or "none",
        "model_version": str(seen.version.number) if seen.version else "none",
    }


def _metrics(checks: tuple[Check, ...]) -> Iterator[tuple[str, float]]:
    """`monitor/<group>/<name>` over all rows; of segments only the worst drift, all of them are in monitor.json."""
    for check in checks:
        if check.value is not None and check.segment is None:
            yield f"monitor/{check.group}/{_plain(check.name)}", check.value
    for group in ("drift", "score_drift"):
        found = [check.value for check in checks if check.group == group and check.is_sure and check.value is not None]
        if found:
            yield f"monitor/{group}_worst", max(found)
    for verdict, number in counted(checks).items():
        yield f"monitor/checks/{verdict}", number


def _plain(name: str) -> str:
    """What a metric's name may have."""
    return re.sub(r"[^\w.\-: ]+", "_", name)


def _all(seen: Seen) -> dict[str, Any]:
    judged = seen.judged
    return {
        "as_of": seen.as_of.isoformat(),
        "verdict": judged.verdict,
        "retrain": judged.retrain,
        "reasons": judged.reasons,
        "held_back": judged.held_back,
        "checks": [check.as_json() for check in judged.checks],
    }


def _description(registry: Registry, experiment: str, run_id: str, seen: Seen) -> str:
    """What the run's page begins with."""
    judged = seen.judged
    address = f"#/experiments/{experiment}/runs/{run_id}/artifacts/report.html"
    parts = [page.headline(judged)]
    if judged.found:
        rows = [f"| {_SIGNS[one.verdict]}&emsp; | {one.text.replace('|', '/')} |" for one in judged.found[:_SHOWN]]
        parts.append("\n".join(["| | |", "| --- | --- |", *rows]))
        if len(judged.found) > _SHOWN:
            parts.append(f"and {len(judged.found) - _SHOWN} more.")
    looked = f"[Everything that was looked at]({address})"
    if seen.version is not None:
        model = f"#/models/{registry.name}/versions/{seen.version.number}"
        looked += f", with [version {seen.version.number}]({model}), which served the day"
    return "\n\n".join([*parts, f"{looked}."])
