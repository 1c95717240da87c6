"""What becomes of a day that is not as it should be, put together for a test to look at."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.tables import TableName, Tables
from recsys_moe.errors import UserError

RowsOf = Callable[..., pd.DataFrame]
PUBLISHED: tuple[TableName, ...] = ("interactions", "rejected", "ingested", "users", "items", "outcomes")
LOG_ONLY: dict[str, Any] = {
    "features": {"categorical": ["user", "item", "tab"]},
    "tasks": [{"name": "click", "label": "clicked"}],
    "segments": None,
    "scoring": None,
}


@dataclass(frozen=True)
class Came:
    """What became of a day's log: the accepted rows as they are kept, and the reason by the number of the row."""

    accepted: list[dict[Hashable, Any]]
    rejected: dict[int, str]
    duplicates: int


@pytest.fixture
def log_of(tiny: Any) -> Callable[..., Recommender]:
    """Writes the log of the first day as a file with some ending, and gives a recommender that has no other file."""

    def write(ending: str, content: bytes, **changes: Any) -> Recommender:
        path = tiny.folder / "data" / "day" / f"{tiny.day(0)}{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        source = {"interactions": {"path": f"../data/day/{{ds}}{ending}"}}
        config: Recommender = tiny(**{**LOG_ONLY, "source": source, **changes})
        return config

    return write


@pytest.fixture
def taken(tiny: Any, rows_of: RowsOf) -> Callable[[Recommender], Came]:
    """Ingests the first day and tells what came of it; its rows are all accounted for, one by one."""

    def run(config: Recommender) -> Came:
        result = ingest(config, tiny.day(0))
        accepted = rows_of(config, "interactions", tiny.day(0)).to_dict("records")
        rejected = rows_of(config, "rejected", tiny.day(0))
        rejected = rejected[rejected["source"] == "interactions"]
        assert result["read"] == result["accepted"] + result["rejected"] + result["duplicates"]
        assert (result["accepted"], result["rejected"]) == (len(accepted), len(rejected))
        reasons = dict(zip(rejected["source_row"], rejected["reason"], strict=True))
        assert len({*reasons, *(row["source_row"] for row in accepted)}) == len(accepted) + len(rejected)
        return Came(accepted, reasons, result["duplicates"])

    return run


@pytest.fixture
def refused(tiny: Any) -> Callable[[Recommender], str]:
    """Ingests the first day in vain: one line says why, and nothing is published. Gives that line."""

    def run(config: Recommender) -> str:
        with pytest.raises(UserError) as caught:
            ingest(config, tiny.day(0))
        message = str(caught.value)
        assert "\n" not in message
        tables = Tables(config.storage)
        assert {name: tables.version(name) for name in PUBLISHED} == dict.fromkeys(PUBLISHED)
        return message

    return run
