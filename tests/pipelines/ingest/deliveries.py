"""Days that bring all there is: rows that are late, repeated and broken, outcomes, users and items that come and go.

And what the tables made of them, in a form that can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines import sql
from pipelines.config import Recommender
from pipelines.tables import TableName, Tables, snapshots
from tests.pipelines.conftest import Tiny

INGESTED: tuple[TableName, ...] = ("users", "items", "outcomes", "rejected", "ingested", "interactions")
PREPARED: tuple[TableName, ...] = ("daily_recent", "daily_counts", "examples")
TABLES = INGESTED + PREPARED
"""In the order in which a day is published."""

Contents = Mapping[tuple[TableName, date], tuple[int, int]]
"""By table and day: how many rows, and a sum of their hashes. Of users and items, the snapshot as of the day."""

_ITEMS = 50


def configured(tiny: Tiny, data: str, *, bought: bool = True, log: str = "{ds}.csv") -> Recommender:
    """A recommender that reads what `deliver` wrote in the folder `data`, as the YAML has it.

    No limit on a day's volume: that one depends on which days came before, and is meant to.

    Args:
        tiny: makes it.
        data: relative to the YAML, or on S3.
        bought: whether outcomes make labels, so that a day also changes the day before it.
        log: which files the log is; with a pattern instead of days, it is one export.
    """
    purchases = {"name": "purchase", "path": f"{data}/purchases/{{ds}}.csv", "timestamp": {"name": "at"}}
    entities = {name: {"path": f"{data}/{name}/{{ds}}.csv"} for name in ("users", "items")}
    recent = [{"key": "user", "of": "item", "last": 3, "days": 2, "task": "click"}]
    features = {
        "categorical": ["user", "item", "tab", "band"],
        "numeric": ["price"],
        "history": {"keys": ["user", ["item", "tab"]], "days": [2], "recent": recent},
    }
    outcome = {"outcome": "purchase", "label_delay_days": 1, "within_hours": 24}
    tasks = [{"name": "buy", **outcome}, {"name": "spend", "kind": "regression", "value": "paid", **outcome}]
    return tiny(
        source={"interactions": {"path": f"{data}/interactions/{log}"}, **entities, "outcomes": [purchases]},
        features=features,
        tasks=[{"name": "click", "label": "clicked"}, *(tasks if bought else [])],
        contract={"max_rejected": 0.5, "volume": None},
        segments=None,
        scoring=None,
    )


def deliver(folder: Path, number: int, rows: int, edition: int = 0) -> None:
    """Write the files of a day; another edition has other rows."""
    draw = np.random.default_rng([number, edition])
    midnight, count = int(pd.Timestamp(Tiny.day(number)).timestamp()), max(5, rows // 100)
    log = pd.DataFrame(
        {
            "user": _names("u", draw, count, rows),
            "item": _names("i", draw, _ITEMS, rows),
            "at": midnight + np.sort(draw.integers(0, 86_400, rows)) - 86_400 * (draw.random(rows) < 0.05),
            "tab": draw.choice(["home", "search"], rows),
            "clicked": draw.choice([0, 1, 7], rows, p=[0.6, 0.35, 0.05]),
        }
    )
    purchases = log.sample(frac=0.1, random_state=edition)[["user", "item", "at"]]
    purchases["at"] = purchases["at"].clip(upper=midnight + 80_000) + 60
    purchases["paid"] = draw.integers(1, 1000, len(purchases)) / 10
    users = pd.DataFrame({"user": [f"u{n}" for n in range(count)], "band": draw.choice(["old", "young"], count)})
    items = pd.DataFrame({"item": [f"i{n}" for n in range(_ITEMS)], "price": draw.integers(1, 4, _ITEMS)})
    _write(folder, "interactions", number, pd.concat([log, log.tail(max(1, rows // 50))]))
    _write(folder, "purchases", number, purchases)
    _write(folder, "users", number, users[draw.random(count) < 0.8])
    _write(folder, "items", number, items[draw.random(_ITEMS) < 0.8])


def _names(prefix: str, draw: np.random.Generator, count: int, rows: int) -> list[str]:
    return [f"{prefix}{number}" for number in draw.integers(0, count, rows)]


def _write(folder: Path, name: str, number: int, rows: pd.DataFrame) -> None:
    path = folder / name / f"{Tiny.day(number)}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(path, index=False)


def contents(config: Recommender, days: Iterable[date], names: tuple[TableName, ...] = TABLES) -> Contents:
    """What a reader finds now, the tables that are published last looked at first."""
    tables = Tables(config.storage)
    found: dict[tuple[TableName, date], tuple[int, int]] = {}
    for name in reversed(names):
        if name in ("users", "items"):
            for ds in [ds for ds in days if snapshots.exists(tables, name, ds)]:
                rows = snapshots.read(tables, name, ds)
                found |= _digests(name, rows.append_column("ds", pa.repeat(ds, len(rows))))
        elif tables.exists(name):
            found |= _digests(name, tables.dataset(name).to_table())
    return found


def _digests(name: TableName, rows: pa.Table) -> Contents:
    with sql.connect(given=rows) as connection:
        query = "SELECT ds, count(*), sum(hash(given)) FROM given GROUP BY ds"
        return {(name, ds): (count, digest) for ds, count, digest in connection.execute(query).fetchall()}
