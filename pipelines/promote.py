"""Whether a new version serves from now on: only if it is better on the same rows, and newer."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from pipelines.config import Recommender
from pipelines.evaluate import held_out_rows, scores_of, trained_version
from pipelines.registry import Registry, Version
from recsys_moe import checkpoint
from recsys_moe.errors import OldFormatError, UserError

log = logging.getLogger(__name__)

_LOWER_IS_BETTER = ("log_loss", "rmse")


@dataclass(frozen=True)
class Decision:
    """Who won, and why, in words for a person."""

    promoted: bool
    reason: str
    metric: str
    challenger_value: float | None = None
    champion_value: float | None = None


def promote(config: Recommender, as_of: date) -> dict[str, Any]:
    """Let the version trained for `as_of` take over from the champion, or say why not. The decision is logged.

    Raises:
        NotDueError: no version was trained for that day.
        UserError: the champion reads columns that the examples do not have.
    """
    registry = Registry(config)
    version = trained_version(registry, as_of)
    champion = registry.champion()
    decision = _decide(config, registry, version, champion, as_of)
    if decision.promoted:
        registry.crown(version)
    serving = version if decision.promoted else champion
    assert serving is not None
    if champion != version:
        verdict = "promoted" if decision.promoted else "kept out"
        registry.describe(version, {"decision": verdict, "decision_reason": decision.reason})
        registry.open_run(version.run_id).table(asdict(decision), "decision.json")
    log.info("version %d: %s", version.number, decision.reason)
    return {
        "step": "promote",
        "as_of": as_of.isoformat(),
        "version": version.number,
        "decision": "promoted" if decision.promoted else "kept",
        "champion": serving.number,
        **asdict(decision),
    }


def _decide(
    config: Recommender, registry: Registry, version: Version, champion: Version | None, as_of: date
) -> Decision:
    gate = config.evaluation.gate
    kind = next(task.kind for task in config.tasks if task.name == config.primary_task)
    measure = "rmse" if kind == "regression" else gate.metric
    metric = f"{config.primary_task}/{measure}"
    if champion is None:
        return Decision(True, "there was no champion yet", metric)
    if champion == version:
        return Decision(False, "it is the champion already", metric)
    if version.through < champion.through:
        newer = f"champion {champion.number} learned through {champion.through}"
        return Decision(False, f"its data are older: through {version.through}, {newer}", metric)
    held_out = held_out_rows(config, as_of)
    values = []
    for contender in (version, champion):
        try:
            said = scores_of(checkpoint.load(registry.checkpoint(contender)), held_out)
        except OldFormatError as error:
            if contender is version:
                raise
            return Decision(True, f"champion {champion.number} cannot be tried, nor serve: {error}", metric)
        except UserError as error:
            raise UserError(f"version {contender.number} cannot be tried on the examples of {as_of}: {error}") from None
        measured = held_out.measure({config.primary_task: said[config.primary_task]})
        values.append(measured[config.primary_task][measure])
    return _compare(metric, gate.min_gain, measure in _LOWER_IS_BETTER, champion.number, *values)


def _compare(metric: str, min_gain: float, lower_is_better: bool, champion: int, new: float, old: float) -> Decision:
    """The gate: the new value must be better by more than `min_gain`. An undefined metric promotes nobody."""
    gain = old - new if lower_is_better else new - old
    words = f"{metric} {new:.4f} against {old:.4f} of champion {champion} on the same rows"
    better = gain > min_gain
    return Decision(better, words if better else f"not better by more than {min_gain:g}: {words}", metric, new, old)
