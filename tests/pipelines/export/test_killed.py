"""Loads that are killed: run again, they go on, and the store holds every row. Readers see no part of a day."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
import redis

from pipelines.export import export

DAY = date(2026, 1, 5)
USERS = 1500
_SMALL_BLOCKS = "import pipelines.tables; pipelines.tables.BLOCK_ROWS = 96; from pipelines.cli import main; main()"
_COLUMNS = ["context", "user_id", "rank", "item_id", "score"]


@dataclass(frozen=True)
class Target:
    """A server: how many rows of a load are in, and a digest of what readers find, or None."""

    name: str
    rows: Callable[[], int]
    served: Callable[[], int | None]


def started(config_file: Path, name: str) -> subprocess.Popen[bytes]:
    """An export in a process of its own."""
    command = [sys.executable, "-c", _SMALL_BLOCKS, "export", "--config", str(config_file), "--as-of", str(DAY)]
    return subprocess.Popen([*command, "--to", name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def killed_when(process: subprocess.Popen[bytes], enough: Callable[[], bool]) -> None:
    """Let it come so far, and no further."""
    until = time.monotonic() + 90
    while not enough() and process.poll() is None:
        assert time.monotonic() < until, "nothing came in"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()


def rows_in_redis(store: redis.Redis) -> int:
    return sum(int(store.hget(key, "rows") or 0) for key in store.scan_iter("tiny:state:*"))  # type: ignore[arg-type]


def rows_in_postgres(base: psycopg.Connection[Any]) -> int:
    try:
        (found,) = base.execute("SELECT coalesce(sum(rows), 0) FROM scores_loads").fetchone() or (0,)
    except psycopg.errors.UndefinedTable:
        return 0
    return int(found)


def digest(rows: pa.Table) -> int:
    """Of all rows, whatever their order."""
    return hash(frozenset(zip(*rows.select(_COLUMNS).to_pydict().values(), strict=True)))


def in_types(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Rows in the types of the scores: a float comes back as the 32 bits that it was."""
    columns = zip(*rows, strict=True)
    return pa.table({name: pa.array(one, schema.field(name).type) for name, one in zip(_COLUMNS, columns, strict=True)})


def digest_in_postgres(base: psycopg.Connection[Any], schema: pa.Schema) -> int | None:
    try:
        found = base.execute("SELECT context, user_id, rank, item_id, score FROM scores_newest").fetchall()
    except psycopg.errors.UndefinedTable:
        return None
    return digest(in_types(found, schema)) if found else None


def digest_in_redis(store: redis.Redis, schema: pa.Schema) -> int | None:
    generation: Any = store.get("tiny:current")
    if generation is None:
        return None
    rows = []
    keys = list(store.scan_iter(match=f"tiny:{generation}:*", count=5000))
    lists: Any = store.mget(keys)
    for key, text in zip(keys, lists, strict=True):
        context, user = str(key).removeprefix(f"tiny:{generation}:").split(":", 1)
        items = json.loads(text)
        pairs = enumerate(zip(items["item_id"], items["score"], strict=True), 1)
        rows += [(context, user, rank, item, score) for rank, (item, score) in pairs]
    return digest(in_types(rows, schema))


@pytest.fixture
def target(request: pytest.FixtureRequest, scores, store, base) -> Target:
    """One of the two servers."""
    schema = scores.table(users=1).schema
    if request.param == "store":
        return Target("store", lambda: rows_in_redis(store), lambda: digest_in_redis(store, schema))
    return Target("base", lambda: rows_in_postgres(base), lambda: digest_in_postgres(base, schema))


@pytest.mark.parametrize("target", ["store", "base"], indirect=True)
def test_a_load_that_is_killed_goes_on(scores, target: Target) -> None:
    wanted = digest(scores.publish(users=300))
    killed_when(started(scores.config.origin.file, target.name), lambda: target.rows() >= 200)
    assert target.served() is None
    assert export(scores.config, DAY, target.name)["targets"][0]["state"] == "loaded"
    assert target.served() == wanted


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", ["store", "base"], indirect=True)
def test_a_load_may_be_killed_at_any_moment(scores, target: Target) -> None:
    """Ten days in a row, each killed up to three times: readers have the day before, then this one."""
    draw, served, between = random.Random(0), None, 0
    for seed in range(10):
        wanted = digest(scores.publish(DAY, seed=seed, users=USERS))
        for _ in range(3):
            wait = time.monotonic() + draw.uniform(0, 4)
            process = started(scores.config.origin.file, target.name)
            while process.poll() is None and time.monotonic() < wait:
                assert target.served() in (served, wanted)
            process.kill()
            process.communicate()
            between += target.served() == served
        export(scores.config, DAY, target.name)
        assert target.served() == wanted
        served = wanted
    assert between >= 5, "hardly any load was killed before its end"
