"""A tiny recommender in a folder of its own: six days, five users, five items, and a YAML to bend."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from pipelines.config import Recommender, load
from pipelines.tables import TableName, Tables

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
        path.write_text(yaml.safe_dump(raw), encoding="utf-8")
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
def rows_of() -> Callable[[Recommender, TableName, date], pd.DataFrame]:
    """Reads a table's rows of a day."""

    def read(config: Recommender, name: TableName, ds: date) -> pd.DataFrame:
        return Tables(config.storage).read_day(name, ds).to_pandas()

    return read
