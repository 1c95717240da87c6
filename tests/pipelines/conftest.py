"""A tiny recommender in a folder of its own: six days, five users, five items, and a YAML to bend."""

from __future__ import annotations

import gzip
import os
import random
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.fs
import pytest
import yaml

from pipelines.config import Recommender, load
from pipelines.tables import TableName, Tables, snapshots
from tests import servers

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "storage": "../var/tiny",
    "source": {
        "interactions": {"path": "../data/log/{ds}.csv"},
        "users": {"path": "../data/users.csv"},
        "items": {"path": "../data/items.csv"},
    },
    "columns": {"user": "user", "item": "item", "timestamp": {"name": "at", "unit": "s"}},
    "tasks": [{"name": "click", "label": "clicked"}, {"name": "like", "label": "liked", "given": "click"}],
    "features": {
        "categorical": ["user", "item", "tab", "band"],
        "multivalued": ["tags"],
        "separator": "|",
        "numeric": ["price", {"name": "age", "days_since": "born"}],
        "history": {"keys": ["user", "item", ["user", "tab"]], "days": [1, 3], "smoothing": 2.0},
    },
    "segments": {"by": "tab", "min_rows": 1},
    "model": {"embedding_dim": 4, "experts": {"shared": 1, "routed": 2, "top_k": 1, "hidden": [8]}, "towers": [8]},
    "training": {"batch_size": 16},
    "contract": {"max_rejected": 1.0},
    "scoring": {"context": {"tab": "home"}, "top_n": 3},
}
HEADER = "user,item,at,tab,clicked,liked"


class Tiny:
    """Call it for a `Recommender`, with top-level keys of the YAML changed or, if None, left out.

    `day(n)` is the n-th of the days 0..5 that have a log, all of them in 2026 and in UTC.
    """

    DAYS = 6

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for number in range(self.DAYS):
            self.log(number, self.rows(number))
        users = "".join(f"u{n},{'old' if n % 2 else 'young'}\n" for n in range(5))
        items = "".join(f"i{n},{n}.5,sport|t{n},2025-12-{n + 1:02}\n" for n in range(5))
        self.write("users.csv", "user,band\n" + users)
        self.write("items.csv", "item,price,tags,born\n" + items)

    def __call__(self, **changes: Any) -> Recommender:
        raw = {key: value for key, value in (CONFIG | changes).items() if value is not None}
        path = self.folder / "configs" / "tiny.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.dump(raw, Dumper=yaml.CSafeDumper), encoding="utf-8")
        return load(path)

    @staticmethod
    def day(number: int) -> date:
        return date(2026, 1, 1) + timedelta(days=number)

    def at(self, number: int, second: int = 0) -> int:
        """Seconds since 1970 of a moment of the day."""
        day = self.day(number)
        return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) + second

    def rows(self, number: int, count: int = 30) -> list[str]:
        """Lines of a log, the same whenever they are asked for."""
        draw = random.Random(number)
        lines = []
        for second in range(count):
            who, what, where = f"u{draw.randrange(5)}", f"i{draw.randrange(5)}", draw.choice(["home", "search"])
            click = int(draw.random() < 0.5)
            like = int(click and draw.random() < 0.3)
            lines.append(f"{who},{what},{self.at(number, second)},{where},{click},{like}")
        return lines

    def log(self, number: int, lines: list[str], header: str = HEADER) -> Path:
        """Write the log of a day."""
        return self.write(f"log/{self.day(number)}.csv", "\n".join([header, *lines]) + "\n")

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file below the folder of the data; gzipped where its name says so."""
        path = self.folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Files of a tiny recommender, and a way to its YAML."""
    monkeypatch.delenv("RECSYS_MOE_STORAGE_ROOT", raising=False)
    return Tiny(tmp_path)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store for all tests that ask for it, since making one takes seconds."""
    from mlflow.tracking import MlflowClient  # most files here do without

    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Recommender, TableName, date], pd.DataFrame]:
    """Reads a table's rows of a day; of users and items, all that are known."""

    def read(config: Recommender, name: TableName, ds: date) -> pd.DataFrame:
        tables = Tables(config.storage)
        if name in ("users", "items"):
            return snapshots.read(tables, name, ds).to_pandas()
        return tables.read_day(name, ds).to_pandas()

    return read


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server in a process of its own."""
    with servers.s3_server() as url:
        yield url


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in a bucket of its own, `s3://…/place`, with the environment set so that every client finds it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid.uuid4().hex}"
    pyarrow.fs.S3FileSystem(endpoint_override=s3_server, allow_bucket_creation=True).create_dir(bucket)
    return f"s3://{bucket}/place"
