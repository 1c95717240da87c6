"""What is old goes; what a model names, and what a writer may be at work on, stays."""

from __future__ import annotations

import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.config import Recommender
from pipelines.maintain import maintain
from pipelines.registry import Registry
from pipelines.tables import TableName, Tables

DAY = 86400
_STAMP = re.compile(r'("(?:timestamp|deletionTimestamp)": *)\d+')


@pytest.fixture
def config(tiny: Any, store: str, monkeypatch: pytest.MonkeyPatch) -> Recommender:
    """Of a name of its own, with which it is alone in the store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    found: Recommender = tiny(name=f"tiny_{uuid.uuid4().hex}", retention={"examples": 3, "scores": 2, "versions": 7})
    return found


def publish(tables: Tables, tiny: Any, name: TableName, number: int, *values: int) -> int:
    return tables.replace_day(name, tiny.day(number), pa.table({"x": list(values)}))


def age(tables: Tables, name: TableName, days: float) -> None:
    """Let a table look as if all of it had happened so long ago."""
    then = time.time() - days * DAY
    for path in Path(tables.path(name)).rglob("*"):
        if path.suffix == ".json":
            stamped = re.sub(
                r'("(?:timestamp|deletionTimestamp)":\s*)\d+', rf"\g<1>{int(then * 1000)}", path.read_text()
            )
            path.write_text(stamped)
        if path.is_file():
            os.utime(path, (then, then))


def values(tables: Tables, name: TableName, version: int | None = None) -> list[int]:
    return sorted(tables.dataset(name, version).to_table().column("x").to_pylist())


def learn_from(config: Recommender, tables: Tables, versions: dict[str, int]) -> str:
    """A finished run that names versions of tables, without a model."""
    registry = Registry(config)
    with registry.run("a run", {"as_of": "2026-01-03", "trained_through": "2026-01-02"}) as run:
        run.inputs({name: (tables.path(name), version) for name, version in versions.items()})
    return run.run_id


def test_versions_that_runs_name_outlive_both_traps(config: Recommender, tiny: Any) -> None:
    """Log entries of 90 days ago, checkpoints, and vacuum. A deleted run keeps nothing, a registered model does."""
    tables = Tables(config.storage)
    versions = [publish(tables, tiny, "examples", 0, number) for number in range(6)]
    kept, deleted, registered = (learn_from(config, tables, {"examples": versions[n]}) for n in (0, 1, 2))
    client = Registry(config).client
    client.delete_run(deleted)
    client.create_registered_model(config.name)
    client.create_model_version(config.name, "file:///nowhere", registered)
    client.delete_run(registered)
    age(tables, "examples", 90)
    tables.place("examples").open().create_checkpoint()
    publish(tables, tiny, "examples", 1, 9)
    done = maintain(config)["tables"]["examples"]
    # Until a moment ago the last of the six was the newest.
    assert (done["files_deleted"], done["versions_kept"]) == (3, 4)
    assert done["bytes_deleted"] > 0
    assert [values(tables, "examples", versions[n]) for n in (0, 2, 5)] == [[0], [2], [5]]
    assert values(tables, "examples") == [5, 9]
    with pytest.raises(FileNotFoundError):
        values(tables, "examples", versions[1])
    assert kept != registered


def test_versions_of_the_last_days_stay(config: Recommender, tiny: Any) -> None:
    tables = Tables(config.storage)
    versions = [publish(tables, tiny, "users", 0, number) for number in range(3)]
    age(tables, "users", 6)
    assert maintain(config)["tables"]["users"]["files_deleted"] == 0
    assert [values(tables, "users", version) for version in versions] == [[0], [1], [2]]
    age(tables, "users", 8)
    assert maintain(config)["tables"]["users"]["files_deleted"] == 2
    assert values(tables, "users") == [2]


def test_days_go_by_age_counted_from_the_newest(config: Recommender, tiny: Any) -> None:
    tables = Tables(config.storage)
    names: tuple[TableName, ...] = ("examples", "scores", "rejected", "interactions")
    for name in names:
        for number in range(5):
            publish(tables, tiny, name, number, number)
    commits = {name: tables.version(name) for name in names}
    done = maintain(config)["tables"]
    assert [done[name]["days_removed"] for name in names] == [2, 3, 0, 0]
    assert [values(tables, name) for name in names] == [[2, 3, 4], [3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    # One commit each; what was there before can still be read.
    assert [tables.version(name) for name in names] == [commits[n] + (n in ("examples", "scores")) for n in names]
    assert values(tables, "scores", commits["scores"]) == [0, 1, 2, 3, 4]
    assert maintain(config)["tables"]["scores"]["days_removed"] == 0


def test_files_left_by_killed_writers_go_after_a_day(config: Recommender, tiny: Any) -> None:
    tables = Tables(config.storage)
    publish(tables, tiny, "scores", 0, 1)
    folder = Path(tables.path("scores")) / f"ds={tiny.day(0)}"
    content = next(folder.iterdir()).read_bytes()
    for name, days in (("old", 1.1), ("young", 0.9)):
        path = folder / f"part-{name}.parquet"
        path.write_bytes(content)
        os.utime(path, (time.time() - days * DAY,) * 2)
    done = maintain(config, dry_run=True)["tables"]["scores"]
    assert (done["files_deleted"], done["bytes_deleted"]) == (1, len(content))
    assert len(list(folder.iterdir())) == 3
    assert maintain(config)["tables"]["scores"] == done
    assert sorted(path.name[:8] for path in folder.iterdir()) == ["part-000", "part-you"]
    assert values(tables, "scores") == [1]


def test_scratch_of_killed_processes_goes_after_two_days(config: Recommender) -> None:
    for name, days in (("scratch/train-old", 3), ("scratch/train-new", 1), ("staged/old", 3), ("staged/used", 3)):
        file = config.workspace / name / "rows.arrow"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"12345")
        for path in (file, file.parent):
            os.utime(path, (time.time() - days * DAY,) * 2)
    (config.workspace / "staged/used/more").write_bytes(b"")
    assert maintain(config, dry_run=True)["scratch"] == {"removed": 2, "bytes": 10}
    assert maintain(config)["scratch"] == {"removed": 2, "bytes": 10}
    left = sorted(path.name for path in config.workspace.glob("s*/*"))
    assert left == ["train-new", "used"]


def test_nothing_there_is_nothing_to_do(config: Recommender) -> None:
    assert maintain(config) == {
        "step": "maintain",
        "dry_run": False,
        "tables": {},
        "scratch": {"removed": 0, "bytes": 0},
    }


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_on_s3_too(config: Recommender, tiny: Any, s3: str) -> None:
    there = config.model_copy(update={"storage": s3, "local": config.storage})
    tables = Tables(there.storage)
    for number in range(3):
        publish(tables, tiny, "scores", number, number)
    assert maintain(there)["tables"]["scores"]["days_removed"] == 1
    assert values(tables, "scores") == [1, 2]
