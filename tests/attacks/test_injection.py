"""Shell and SQL where a day, a name or a value is expected: refused, or taken as the plain text that it is."""

from __future__ import annotations

import csv
import io
from typing import Any

import pandas as pd
import pytest

from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.tables import TableName, Tables
from recsys_moe.errors import UserError
from tests.attacks.conftest import Called
from tests.pipelines.conftest import Tiny

pytestmark = pytest.mark.usefixtures("nothing_ran")

SQL = ['"; DROP TABLE log; --', "'; COPY (SELECT 1) TO 'pwned'; --", "\"; COPY (SELECT 1) TO 'pwned'; --"]
SHELL = ["$(touch pwned)", "`touch pwned`", "; touch pwned #", "| touch pwned", "--help\n; touch pwned"]
TEMPLATES = ["{{ 7 * 7 }}", "%(x)s", "{0.__class__}", "{{conn.bank.password}}@example.org"]


def rows(config: Recommender, name: TableName, tiny: Tiny) -> pd.DataFrame:
    frame: pd.DataFrame = Tables(config.storage).read_day(name, tiny.day(0)).to_pandas()
    return frame


def test_a_day_is_a_date(tiny: Tiny, refusal: Called) -> None:
    config = tiny()
    ingest(config, tiny.day(0))
    before = Tables(config.storage).version("interactions")
    for attack in [*SQL, *SHELL, "2026-01-01; touch pwned", "2026-01-01' OR '1'='1", "../2026-01-01"]:
        assert "is no date" in refusal("ingest", "--config", str(config.origin.file), "--as-of", attack)
    assert Tables(config.storage).version("interactions") == before


@pytest.mark.parametrize("attack", [SQL[0], SHELL[-1], TEMPLATES[-1]], ids=["SQL", "shell", "template"])
def test_what_names_tables_folders_and_dags_is_a_plain_name(attack: str, tiny: Tiny) -> None:
    base = {"name": "base", "kind": "postgres", "connection": "PG"}
    store = {"name": "store", "kind": "redis", "connection": "REDIS"}
    source: dict[str, Any] = {"interactions": {"path": "../data/log/{ds}.csv"}}
    bought = {"name": "bought", "path": "../data/bought.csv", "timestamp": {"name": "at"}}
    query = {"sql": "SELECT 1", "connection": "PG"}
    places: list[dict[str, Any]] = [
        {"name": attack},
        {"tasks": [{"name": attack, "label": "clicked"}]},
        {"exports": [base | {"name": attack}]},
        {"exports": [base | {"table": attack}]},
        {"exports": [base | {"connection": attack}]},
        {"exports": [store | {"prefix": attack}]},
        {"source": source | {"outcomes": [bought | {"name": attack}]}},
        {"source": {"interactions": query | {"connection": attack}}},
        {"columns": {"user": "user", "item": "item", "timestamp": {"name": "at"}, "timezone": attack}},
        {"scoring": {"contexts": {attack: {"tab": "home"}}, "top_n": 3}},
        {"scoring": {"context": {"tab": "home"}, "top_n": 3, "candidates": [{"source": attack}]}},
        {"schedule": {"ingest": attack}},
        {"schedule": {"ingest": "0 3 * * *", "start": attack}},
        {"schedule": {"ingest": "0 3 * * *", "alerts": {"email": [attack]}}},
        {"schedule": {"ingest": "0 3 * * *", "alerts": {"slack": attack}}},
        {"schedule": {"ingest": "0 3 * * *", "tags": [attack]}},
        {attack: "a key that there is not"},
    ]
    for changes in places:
        with pytest.raises(UserError) as refused:
            tiny(**changes)
        assert "\n" not in str(refused.value), changes


def test_columns_and_values_are_plain_text(tiny: Tiny) -> None:
    """Every column is called like an attack, its values are attacks, and so is the segment and the key of history."""
    user, item, at, label, kind = SQL[0], SQL[1], SHELL[0], SQL[2], TEMPLATES[0]
    text = io.StringIO()
    written = csv.DictWriter(text, [user, item, at, label, kind])
    written.writeheader()
    attacks = [*SQL, *SHELL, *TEMPLATES]
    for number, attack in enumerate(attacks):
        written.writerow({user: attack, item: attack, at: tiny.at(0, number), label: number % 2, kind: attack})
    written.writerow({user: "u", item: "i", at: SQL[0], label: 1, kind: "k"})
    tiny.write(f"log/{tiny.day(0)}.csv", text.getvalue())
    config = tiny(
        source={"interactions": {"path": "../data/log/{ds}.csv"}},
        columns={"user": user, "item": item, "timestamp": {"name": at}},
        tasks=[{"name": "click", "label": label}],
        features={"categorical": [user, item, kind], "history": {"keys": [user, kind, [item, kind]], "days": [1]}},
        segments={"by": kind, "min_rows": 1},
        scoring=None,
    )
    ingest(config, tiny.day(0))
    prepare(config, tiny.day(0))
    examples = rows(config, "examples", tiny)
    assert len(examples) == len(attacks)
    for column in (user, item, kind):
        assert set(examples[column]) == set(attacks)
    assert f"{at} " in rows(config, "rejected", tiny)["reason"].iloc[0]


def test_a_file_may_have_any_name(tiny: Tiny) -> None:
    names = [f"{attack}.csv" for attack in [*SQL, *SHELL[:2], TEMPLATES[0]]]
    for number, name in enumerate(names):
        good = f"u{number},i0,{tiny.at(0, number)},home,1,0"
        tiny.write(f"day/{name}", f"user,item,at,tab,clicked,liked\n{good}\nu0,i0,never,home,1,0\n")
    config = tiny(
        source={"interactions": {"path": "../data/day/*.csv"}}, features={"categorical": ["tab"]}, scoring=None
    )
    ingest(config, tiny.day(0))
    assert len(rows(config, "interactions", tiny)) == len(names)
    assert set(rows(config, "rejected", tiny)["source_file"]) == set(names)
