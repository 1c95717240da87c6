"""Whether a new version serves from now on: only if the gate holds on the same rows, and its data are newer.

The record of it is the table `promotions`; MLflow's aliases follow.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import date
from typing import Any, cast

from pipelines import run_page
from pipelines.config import Recommender
from pipelines.evaluate import trained_version
from pipelines.evaluation import plain
from pipelines.gate import Mode, Verdict, compare, judge
from pipelines.paired import Contender, NotComparableError, Pair
from pipelines.promotions import PREVIOUS, Entry, Measured, Outcome, State
from pipelines.registry import Registry, Version
from recsys_moe.errors import OldFormatError, UserError

log = logging.getLogger(__name__)


def promote(config: Recommender, as_of: date, dry_run: bool = False) -> dict[str, Any]:
    """Let the version trained for `as_of` take over from the champion, or say why not. The decision is recorded.

    Args:
        config: the recommender.
        as_of: the day whose version is judged, on its test days.
        dry_run: decide only: nothing is recorded and nobody moves.

    Raises:
        NotDueError: no version was trained for that day.
        TryAgainError: another promotion won meanwhile.
        UserError: the champion reads columns that the examples do not have.
    """
    registry = Registry(config)
    version, seen, champion = trained_version(registry, as_of), registry.promotions.state(), registry.champion()
    verdict = _verdict(config, registry, version, champion, seen)
    serving = version if verdict.promoted else champion
    assert serving is not None
    if not dry_run and champion == version:
        _complete(registry, version)
    elif not dry_run:
        _record(registry, version, champion, verdict, seen)
    log.info("version %d: %s", version.number, "; ".join(verdict.reasons))
    return {
        "step": "promote",
        "as_of": as_of.isoformat(),
        "dry_run": dry_run,
        "version": version.number,
        "decision": "promoted" if verdict.promoted else "kept",
        "champion": serving.number,
        **_plain(verdict),
    }


def rollback(config: Recommender, reason: str, to: int | None = None) -> dict[str, Any]:
    """Put an earlier champion, or any other version, in the champion's place, and record why.

    Args:
        config: the recommender.
        reason: for those who read the record.
        to: the version; the one that served before if None.

    Raises:
        TryAgainError: a promotion came in between.
        UserError: there is no such version, nobody serves, or it serves already.
    """
    if not reason.strip():
        raise UserError("--reason: is empty; say why, for those who read the record")
    registry = Registry(config)
    seen = registry.promotions.state()
    version = registry.version(_before(seen) if to is None else to)
    if seen.champion == version.number:
        raise UserError(f"--to: version {version.number} is the champion already")
    verdict = Verdict(True, None, (reason.strip(),))
    _add(registry, version, seen.champion, "rolled back", verdict, seen)
    log.info("version %d serves from now on, instead of %s: %s", version.number, seen.champion, reason)
    return {
        "step": "rollback",
        "champion": version.number,
        "instead_of": seen.champion,
        "trained_through": version.through.isoformat(),
        "reason": reason.strip(),
    }


def _before(seen: State) -> int:
    """Who served before the champion."""
    serving, before = seen.serving, seen.aliases.get(PREVIOUS)
    if serving is None or before is None:
        raise UserError("there is no champion of before to go back to; name a version with --to")
    if serving.decision == "rolled back":
        raise UserError(
            f"version {serving.version} was put there by a rollback from {before} already; name a version with --to"
        )
    return before


def _verdict(
    config: Recommender, registry: Registry, version: Version, champion: Version | None, seen: State
) -> Verdict:
    """All rules, those first that need no look at the rows."""
    if champion is None:
        return Verdict(True, None, ("there was no champion yet",))
    if barred := _barred(version, champion, seen):
        return Verdict(False, None, (barred,))
    gate = config.evaluation.gate
    mode = _mode(config, registry, version, champion)
    if mode == "refresh" and version.through == champion.through:
        return Verdict(False, mode, (f"champion {champion.number} learned through {champion.through}, too: not newer",))
    challenger = Contender.of(registry, version)
    try:
        pair = Pair.of(config, version.as_of, Contender.of(registry, champion), challenger)
    except OldFormatError as error:
        return Verdict(True, None, (f"champion {champion.number} cannot be tried, nor serve: {error}",))
    except NotComparableError as error:
        return Verdict(False, mode, (str(error),))
    found = compare(gate, config.primary_task, pair.rows())
    return judge(gate, found, mode, f"champion {champion.number}", pair.dead_experts())


def _barred(version: Version, champion: Version, seen: State) -> str | None:
    """Why a version cannot take over whatever it is worth, or None."""
    if champion == version:
        return "it is the champion already"
    if back := seen.taken_back(version.number):
        return f"it was taken back on {back.at:%Y-%m-%d} ({back.reasons[0]}); only a rollback puts it there again"
    if version.through < champion.through:
        newer = f"champion {champion.number} learned through {champion.through}"
        return f"its data are older: through {version.through}, {newer}"
    return None


def _mode(config: Recommender, registry: Registry, version: Version, champion: Version) -> Mode:
    """The gate's; `auto` is a refresh where the settings are those of the champion, and only the data are newer."""
    if config.evaluation.gate.mode != "auto":
        return config.evaluation.gate.mode
    new, old = (registry.open_run(one.run_id).facts().tags.get("settings") for one in (version, champion))
    return "refresh" if new is not None and new == old and version.through > champion.through else "challenge"


def _record(registry: Registry, version: Version, champion: Version | None, verdict: Verdict, seen: State) -> None:
    """The table first, which decides a race; then all that follows from it."""
    outcome: Outcome = "promoted" if verdict.promoted else "kept out"
    number = champion.number if champion else None
    _add(registry, version, number, outcome, verdict, seen)
    _tell(registry, version, number, outcome, verdict)


def _complete(registry: Registry, version: Version) -> None:
    """Tell of a promotion that was killed right after it was recorded; its table is not known any more."""
    made = registry.promotions.state().serving
    if made is None or (made.version, made.decision) != (version.number, "promoted"):
        return
    if registry.open_run(version.run_id).read("decision.json") is None:
        verdict = Verdict(True, cast(Mode | None, made.mode), made.reasons)
        _tell(registry, version, made.champion, made.decision, verdict)


def _tell(registry: Registry, version: Version, champion: int | None, outcome: Outcome, verdict: Verdict) -> None:
    """What the run and the version show of a decision."""
    registry.open_run(version.run_id).table({"champion": champion, **_plain(verdict)}, "decision.json")
    run_page.refresh(registry, version)


def _add(
    registry: Registry, version: Version, champion: int | None, outcome: Outcome, verdict: Verdict, seen: State
) -> None:
    entry = Entry(
        version=version.number,
        run_id=version.run_id,
        as_of=version.as_of,
        through=version.through,
        decision=outcome,
        champion=champion,
        reasons=verdict.reasons,
        mode=verdict.mode,
        measured=_measured(verdict),
    )
    registry.promotions.add(entry, seen)
    registry.aliases.follow(registry.promotions)


def _measured(verdict: Verdict) -> Measured | None:
    if not verdict.table:
        return None
    line = verdict.table[0]
    return Measured(line.metric, line.champion, line.challenger, line.difference, line.low, line.high)


def _plain(verdict: Verdict) -> dict[str, Any]:
    """For JSON: null where a metric is not defined."""
    lines = [plain(asdict(line)) for line in verdict.table]
    return {"promoted": verdict.promoted, "mode": verdict.mode, "reasons": list(verdict.reasons), "table": lines}
