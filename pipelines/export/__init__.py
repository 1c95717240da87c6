"""Copies of a day's scores, for whoever serves them: files, a key-value store, a database."""

from __future__ import annotations

import logging
from datetime import date
from typing import Any

from pipelines.config import Export, FileExport, PostgresExport, Recommender
from pipelines.errors import TryAgainError
from pipelines.export.lists import DayLists
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

_EXTRAS = {"psycopg": "postgresql", "redis": "redis"}
"""Drivers that are not installed with the rest, and what of `recsys-moe[…]` has them."""


def export(config: Recommender, ds: date, to: str | None = None) -> dict[str, Any]:
    """Bring the scores of day `ds` to the targets of the YAML's `exports`, or to the one that is called `to`.

    Each shows the day as a whole, at once. One that fails does not keep the day from the others.

    Raises:
        TryAgainError: a server cannot be reached, or another process loads the same; nothing else is wrong.
        UserError: there is no such target, the day has no scores, or a target refuses them.
    """
    targets, day = _targets(config, to), DayLists.of(config.storage, ds)
    done, errors = [], []
    for target in targets:
        try:
            state = _bring(config, target, day)
        except UserError as error:
            errors.append(error)
            continue
        log.info("exported %s to %s: %d rows, %s", ds, target.name, day.rows, state)
        done.append({"name": target.name, "kind": target.kind, "state": state})
    if errors:
        kind = TryAgainError if all(isinstance(error, TryAgainError) for error in errors) else UserError
        raise kind("; ".join(map(str, errors)))
    return {
        "step": "export",
        "ds": ds.isoformat(),
        "rows": day.rows,
        "model_version": day.model_version,
        "targets": done,
        "versions": {"scores": day.table_version},
    }


def _targets(config: Recommender, to: str | None) -> list[Export]:
    names = [target.name for target in config.exports]
    if not names:
        raise UserError("exports: the YAML names no target; see docs/exports.md")
    if to is not None and to not in names:
        raise UserError(f"--to: {to!r} is none of the YAML's exports; there is {names}")
    return [target for target in config.exports if to in (None, target.name)]


def _bring(config: Recommender, target: Export, day: DayLists) -> str:
    """Returns what was done, in words."""
    if isinstance(target, FileExport):
        return _write(config, target, day)
    # A server's driver is imported where there is such a server.
    try:
        if isinstance(target, PostgresExport):
            from pipelines.export import postgres

            return postgres.load(target, day)
        from pipelines.export import redis_store

        return redis_store.load(target, target.prefix or config.name, day)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        extra = f"install it with the extra {_EXTRAS[error.name]!r}"
        raise UserError(f"exports.{target.name}: the package {error.name} is not installed; {extra}") from None


def _write(config: Recommender, target: FileExport, day: DayLists) -> str:
    from pipelines.export import json_lines, parquet

    write = {"parquet": parquet.write, "jsonl": json_lines.write}[target.kind]
    write(target.path_for(day.ds), config.workspace, day.schema, day.parts(target.name))
    return "written"
