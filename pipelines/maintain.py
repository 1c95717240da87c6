"""Care for a recommender's tables and its scratch folders: `recsys-moe maintain`."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from stat import S_ISDIR
from typing import Any, get_args

from pipelines.config import Recommender
from pipelines.registry import Registry
from pipelines.tables import TableName, Tables
from pipelines.tables.care import Wanted, care

log = logging.getLogger(__name__)

_SCRATCH_DAYS = 2.0
"""A scratch folder in which nothing was written for longer was left by a killed process."""
_FILES_STAND_FOR_ROWS: tuple[TableName, ...] = ("examples",)
"""Trainings know these tables' days by the names of their files (`Tables.fingerprint`): compacted, they would look
new, and every training of them would be repeated."""


def maintain(config: Recommender, dry_run: bool = False) -> dict[str, Any]:
    """Remove what the YAML's `retention` no longer wants, join small files, and delete files that no kept version
    needs; or, in a dry run, only count what there is to do now.

    Versions of tables that a registered model or a run names stay readable.

    Raises:
        UserError: the storage or MLflow cannot be reached.
    """
    tables, named = Tables(config.storage), named_versions(Registry(config))
    result: dict[str, Any] = {}
    for name in get_args(TableName):
        if not tables.exists(name):
            continue
        done = care(tables.place(name), _wanted(config, name, named.get(name, frozenset())), dry_run)
        result[name] = asdict(done)
        log.info("%s: %d days removed, %d files (%d bytes) deleted", name, *_told(result[name]))
    return {"step": "maintain", "dry_run": dry_run, "tables": result, "scratch": clear_scratch(config, dry_run)}


def named_versions(registry: Registry) -> dict[str, frozenset[int]]:
    """The versions that registered models and kept runs name, by table."""
    found: dict[str, frozenset[int]] = {}
    for training in registry.trainings():
        for table, version in training.tables.items():
            found[table] = found.get(table, frozenset()) | {version}
    return found


def scratch_folders(config: Recommender) -> Iterator[Path]:
    """The folders that steps keep while they work, and leave behind only if they are killed."""
    for pattern in ("scratch/*", "staged/*"):
        yield from sorted(path for path in config.workspace.glob(pattern) if not path.is_symlink())


def clear_scratch(config: Recommender, dry_run: bool = False) -> dict[str, int]:
    """Remove scratch that no process has written to for days. Returns how many were `removed`, and their `bytes`."""
    before = time.time() - _SCRATCH_DAYS * 86400
    old = [path for path in scratch_folders(config) if _last_written(path) < before]
    return {"removed": len(old), "bytes": sum(_bytes(path) if dry_run else remove(path) for path in old)}


def remove(path: Path) -> int:
    """Remove a file or a folder with all that is in it. Returns its bytes."""
    size = _bytes(path)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return size


def _wanted(config: Recommender, name: TableName, versions: frozenset[int]) -> Wanted:
    retention = config.retention
    days = {"examples": retention.examples, "scores": retention.scores, "rejected": retention.rejected}
    return Wanted(days.get(name), retention.versions, versions, compact=name not in _FILES_STAND_FOR_ROWS)


def _told(counts: dict[str, Any]) -> tuple[int, int, int]:
    return counts["days_removed"], counts["files_deleted"], counts["bytes_deleted"]


def _last_written(path: Path) -> float:
    return max((stat.st_mtime for stat in _stats(path)), default=0.0)


def _bytes(path: Path) -> int:
    return sum(stat.st_size for stat in _stats(path) if not S_ISDIR(stat.st_mode))


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Of a folder and what is in it. What a step at work removes meanwhile is passed over."""
    with suppress(FileNotFoundError):
        yield path.stat()
        for one in path.rglob("*"):
            with suppress(FileNotFoundError):
                yield one.stat()
