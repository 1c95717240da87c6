"""Users, items, outcomes, patterns, queries and S3 that are not as they should be, end to end."""

from __future__ import annotations

import math
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pandas as pd
import pytest

from pipelines import places
from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.places import file_system

RowsOf = Callable[..., pd.DataFrame]
Refused = Callable[[Recommender], str]
AT = 1_767_225_600
LOG = {"path": "../data/log/{ds}.csv"}
HEADER = b"user,item,at,tab,clicked\n"
ROW = b"u0,i0,%d,home,1\n" % AT

REFUSED: dict[str, tuple[str, bytes | None, str]] = {
    "users that are not there": ("users.csv", None, "no such file"),
    "empty users": ("users.csv", b"", "is empty"),
    "users without their key": (
        "users.csv",
        b"id,band\nu0,old\n",
        "has no column 'user' to join by; it has 'id', 'band'",
    ),
    "users without a feature": ("users.csv", b"user,bnd\nu0,old\n", "it has 'user', 'bnd'; "),
    "users with another delimiter": ("users.csv", b"user;band\nu0;old\n", "is its delimiter right?"),
    "users with a column twice": ("users.csv", b"user,band,band\nu0,old,new\n", "the header has ['band'] twice"),
    "users in Latin-1": ("users.csv", b"user,band\nu\xe9,old\n", "byte 12 (line 2) is no UTF-8: 0xe9"),
    "users with an open quote": ("users.csv", b'user,band\n"u0,old\nu1,old\n', "line 2 opens a quote"),
    "items without their key": ("items.csv", b"id,price,tags,born\ni0,1,a,\n", "has no column 'item' to join by"),
    "items without a feature": (
        "items.csv",
        b"item,price,tags\ni0,1,a\n",
        "features: ['born'] are columns of no source",
    ),
    "outcomes that are not there": ("buy/2026-01-01.csv", None, "no such file"),
    "empty outcomes": ("buy/2026-01-01.csv", b"", "is empty"),
    "outcomes without their key": ("buy/2026-01-01.csv", b"usr,item,at,paid\n", "has no column 'user'; it has 'usr'"),
    "outcomes without their time": ("buy/2026-01-01.csv", b"user,item,t,paid\n", "has no column 'at'; it has 'user'"),
    "outcomes without their value": ("buy/2026-01-01.csv", b"user,item,at\n", "has no column 'paid'; it has 'user'"),
}


@pytest.fixture
def with_outcomes(tiny: Any) -> Recommender:
    """Impressions with users and items, and purchases in a log of their own."""
    tiny.write("buy/2026-01-01.csv", "user,item,at,paid\n")
    buy = {"name": "buy", "path": "../data/buy/{ds}.csv", "timestamp": {"name": "at"}}
    source = {"interactions": LOG, "users": {"path": "../data/users.csv"}, "items": {"path": "../data/items.csv"}}
    paid = {"name": "paid", "outcome": "buy", "value": "paid", "kind": "regression", "label_delay_days": 1}
    tasks = [{"name": "click", "label": "clicked"}, paid]
    config: Recommender = tiny(source=source | {"outcomes": [buy]}, tasks=tasks)
    return config


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_beside_the_log_is_named_and_nothing_is_published(
    tiny: Any, with_outcomes: Recommender, refused: Refused, name: str, content: bytes | None, message: str
) -> None:
    path = tiny.write(name, content or b"")
    if content is None:
        path.unlink()
    said = refused(with_outcomes)
    assert message in said
    assert f"{path}: " in said


def reasons(rejected: pd.DataFrame, source: str) -> dict[int, str]:
    chosen = rejected[rejected["source"] == source]
    return dict(zip(chosen["source_row"], chosen["reason"], strict=True))


def test_rows_of_users_are_accounted_for(tiny: Any, with_outcomes: Recommender, rows_of: RowsOf) -> None:
    lines = [",old", "u0,old", "u0,new", " u0 ,x", "NULL,x", "u9", "u8,a,b", "007,x", "7,y", "7.0,z", "😀,", '"a\nb",q']
    tiny.write("users.csv", "user,band\n" + "".join(f"{line}\n" for line in lines))
    ingest(with_outcomes, tiny.day(0))
    users = rows_of(with_outcomes, "users", tiny.day(0)).astype(object)
    kept = dict(zip(users["user"], users["band"].where(users["band"].notna(), None), strict=True))
    assert kept == {"u0": "old", "007": "x", "7": "y", "😀": None, "a\nb": "q"}
    assert reasons(rows_of(with_outcomes, "rejected", tiny.day(0)), "users") == {
        2: "user is null",
        4: "user again",
        5: "user again",
        6: "user is null",
        7: "1 columns where the header has 2",
        8: "3 columns where the header has 2",
        11: "user again",
    }


def test_rows_of_items_are_accounted_for(tiny: Any, with_outcomes: Recommender, rows_of: RowsOf) -> None:
    prices = ["cheap", "NaN", "1e400", "1e308", "0x1", "", "-1.50"]
    lines = [f"i{n},{price},a||b,2025-02-30\n" for n, price in enumerate(prices)]
    tiny.write("items.csv", "item,price,tags,born\n" + "".join(lines))
    ingest(with_outcomes, tiny.day(0))
    items = rows_of(with_outcomes, "items", tiny.day(0)).astype(object)
    kept = dict(zip(items["item"], items["price"].where(items["price"].notna(), None), strict=True))
    assert kept == {"i1": None, "i3": "1e308", "i5": None, "i6": "-1.50"}
    assert reasons(rows_of(with_outcomes, "rejected", tiny.day(0)), "items") == {
        2: "price is no number: cheap",
        4: "price is no number: 1e400",
        6: "price is no number: 0x1",
    }


def test_rows_of_outcomes_are_accounted_for(tiny: Any, with_outcomes: Recommender, rows_of: RowsOf) -> None:
    lines = [f"u0,i0,{AT},5", f"u0,i0,{AT},5", f",i0,{AT},5", "u0,i0,x,5", f"u0,i0,{AT},inf", f"u0,i0,{AT},-1e3"]
    lines += [f"u0,i0,{AT + 86_400},5", f"u0,i0,{AT - 864_000},", "u0"]
    tiny.write("buy/2026-01-01.csv", "user,item,at,paid\n" + "".join(f"{line}\n" for line in lines))
    ingest(with_outcomes, tiny.day(0))
    kept = rows_of(with_outcomes, "outcomes", tiny.day(0))
    assert list(kept["source_row"]) == [2, 7, 9]
    assert list(kept["paid"])[:2] == [5.0, -1000.0]
    assert math.isnan(kept["paid"][2])
    assert reasons(rows_of(with_outcomes, "rejected", tiny.day(0)), "outcomes.buy") == {
        4: "user is null",
        5: "at is not a time in s between 1980 and 2100: x",
        6: "paid is no number: inf",
        8: "event day 2026-01-02 is after the day it came in, 2026-01-01",
        10: "1 columns where the header has 4",
    }


def test_an_export_of_outcomes_may_have_no_rows(tiny: Any, with_outcomes: Recommender, rows_of: RowsOf) -> None:
    tiny.write("buy.csv", "user,item,at,paid\n")
    outcome = with_outcomes.source.outcomes[0].model_copy(update={"path": str(tiny.folder / "data" / "buy.csv")})
    source = with_outcomes.source.model_copy(update={"outcomes": (outcome,)})
    config = with_outcomes.model_copy(update={"source": source})
    assert ingest(config, tiny.day(0))["accepted"] == 30
    assert rows_of(config, "outcomes", tiny.day(0)).empty


PATTERNS: dict[str, tuple[dict[str, bytes], str]] = {
    "no file matches": ({"a.txt": HEADER + ROW}, "*.csv: no file matches; check the path in the YAML, and the day"),
    "one is empty": ({"a.csv": HEADER + ROW, "b.csv": b""}, "b.csv: is empty"),
    "one lacks a column": (
        {"a.csv": HEADER + ROW, "b.csv": b"user,item,at,tab\nu0,i0,1,home\n"},
        "b.csv: has no column",
    ),
    "one is in Latin-1": (
        {"a.csv": HEADER + ROW, "b.csv": HEADER + b"\xe9" + ROW},
        "b.csv: byte 26 (line 2) is no UTF-8",
    ),
    "headers alone": ({"a.csv": HEADER, "b.csv": HEADER}, "*.csv: has no rows for 2026-01-01"),
}


@pytest.mark.parametrize(("files", "message"), PATTERNS.values(), ids=PATTERNS)
def test_a_pattern_names_the_file_that_is_wrong(
    tiny: Any, log_of: Any, refused: Refused, files: dict[str, bytes], message: str
) -> None:
    config = log_of(".csv", HEADER, source={"interactions": {"path": "../data/parts/{ds}/*.csv"}})
    for name, content in files.items():
        tiny.write(f"parts/{tiny.day(0)}/{name}", content)
    assert message in refused(config)


def test_rows_of_several_files_are_accounted_for(tiny: Any, log_of: Any, rows_of: RowsOf) -> None:
    """The columns may be in another order, and a row of one file repeat that of another."""
    config = log_of(".csv", HEADER, source={"interactions": {"path": "../data/parts/{ds}/*.csv"}})
    tiny.write(f"parts/{tiny.day(0)}/a.csv", HEADER + ROW + b"cut\n")
    tiny.write(f"parts/{tiny.day(0)}/b.csv", b"clicked,tab,at,item,user\n1,home,%d,i0,u0\n1,home,0,i0,u0\n" % AT)
    result = ingest(config, tiny.day(0))
    assert [result[name] for name in ("read", "accepted", "rejected", "duplicates")] == [4, 1, 2, 1]
    rejected = rows_of(config, "rejected", tiny.day(0))
    assert sorted(zip(rejected["source_file"], rejected["source_row"], strict=True)) == [("a.csv", 3), ("b.csv", 3)]


QUERY = "SELECT * FROM log WHERE :ds = '2026-01-01'"
PASSWORD = "hunter2"
LITE = "sqlite:///{}"
NOBODY = f"postgresql+psycopg://u:{PASSWORD}@127.0.0.1:1/db"

QUERIES: dict[str, tuple[str, str | None, str]] = {
    "no rows": (f"{QUERY} AND 0", LITE, "has no rows for 2026-01-01"),
    "no rows at all": ("SELECT * FROM log WHERE 0", LITE, "has no rows for 2026-01-01"),
    "a mistake": (QUERY.replace("SELECT", "SELEC"), LITE, "syntax error"),
    "no such table": (QUERY.replace("log", "logs"), LITE, "no such table: logs"),
    "no such column": (QUERY.replace("*", "usr"), LITE, "no such column: usr"),
    "a column left out": (QUERY.replace("*", "user, item, at, tab"), LITE, "has no column 'clicked'; it has 'user'"),
    "not a question": ("INSERT INTO log VALUES (:ds, 1, 2, 3, 4)", LITE, 'near "INSERT": syntax error'),
    "two in one": (f"SELECT 1; {QUERY}", LITE, 'near ";": syntax error'),
    "text that is no UTF-8": (QUERY.replace("*", "CAST(x'ff' AS TEXT) AS user, item, at, tab, clicked"), LITE, "UTF-8"),
    "no variable": (QUERY, None, "the environment has no variable DATABASE with the database's URL"),
    "no URL": (QUERY, f"u:{PASSWORD}@host", "$DATABASE is no URL of a database"),
    "no file": (QUERY, "sqlite:////nowhere/log.db", "unable to open database file"),
    "no server": (QUERY, NOBODY, "Connection refused"),
    "the password in the options": (QUERY, f"postgresql+psycopg://127.0.0.1:1/db?password={PASSWORD}", "refused"),
    "no driver": (
        QUERY,
        f"oracle+oracledb://u:{PASSWORD}@host/db",
        "'oracledb' of oracle+oracledb:// is not installed",
    ),
}


@pytest.fixture
def of_query(tiny: Any, log_of: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recommender]:
    """A recommender whose log is a query of a database with the table `log`."""

    def make(query: str, url: str | None, *rows: tuple[Any, ...]) -> Recommender:
        path = tiny.folder / "log.db"
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE log (user, item, at, tab, clicked)")
            database.executemany("INSERT INTO log VALUES (?, ?, ?, 'home', ?)", rows or [("u0", "i0", AT, 1)])
            database.commit()
        monkeypatch.delenv("DATABASE", raising=False)
        if url is not None:
            monkeypatch.setenv("DATABASE", url.format(path))
        source = {"interactions": {"sql": query, "connection": "DATABASE"}}
        config: Recommender = log_of(".csv", HEADER, source=source)
        return config

    return make


@pytest.mark.parametrize(("query", "url", "message"), QUERIES.values(), ids=QUERIES)
def test_a_query_that_fails_is_one_line_without_the_password(
    of_query: Callable[..., Recommender], refused: Refused, query: str, url: str | None, message: str
) -> None:
    said = refused(of_query(query, url))
    assert said.startswith("sql at $DATABASE: ")
    assert message in said
    assert PASSWORD not in said


def test_rows_of_a_query_are_accounted_for(of_query: Callable[..., Recommender], taken: Any) -> None:
    rows = [
        (2**53 + 1, "i0", AT, 1),
        ("007", 1.5, AT + 0.5, "1"),
        (b"\xc3\xa9", "i0", str(AT), 0),
        (b"\xff", "i0", AT, float("nan")),
        ("😀\0", "שלום", AT, None),
        (7.0, "i0", "never", 1),
        ("u0", "i0", None, 1),
        ("u0", "i0", AT, float("inf")),
        (None, "i0", AT, 1),
        (2**53 + 1, "i0", AT, 0),
    ]
    came = taken(of_query(QUERY, LITE, *rows))
    assert [row["user"] for row in came.accepted] == ["9007199254740993", "007", "é", "\\xff", "😀\0"]
    assert came.rejected == {
        6: "at is not a time in s between 1980 and 2100: never",
        7: "at is null",
        8: "clicked is no number: inf",
        9: "user is null",
    }
    assert came.duplicates == 1


def put(place: str, content: bytes) -> None:
    system, path = file_system(place)
    with system.open_output_stream(path, compression=None) as stream:
        stream.write(content)


def test_a_log_on_s3_that_is_not_there(s3: str, log_of: Any, refused: Refused) -> None:
    config = log_of(".csv", HEADER, source={"interactions": {"path": f"{s3}/{{ds}}.csv"}})
    assert refused(config) == f"{s3}/2026-01-01.csv: no such file; check the path in the YAML, and the day"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (HEADER, "has no rows"), (HEADER + b"\xe9" + ROW, "is no UTF-8"), (b"\x1f\x8bxx", "with gzip")],
    ids=["empty", "header alone", "Latin-1", "gzip called CSV"],
)
def test_a_bad_log_on_s3_is_named(s3: str, log_of: Any, refused: Refused, content: bytes, message: str) -> None:
    put(f"{s3}/2026-01-01.csv", content)
    said = refused(log_of(".csv", HEADER, source={"interactions": {"path": f"{s3}/{{ds}}.csv"}}))
    assert said.startswith(f"{s3}/2026-01-01.csv: ")
    assert message in said


class _Denies(BaseHTTPRequestHandler):
    """A server that says no to everything."""

    def do_GET(self) -> None:
        self.send_error(403)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""


@pytest.mark.usefixtures("s3")
def test_a_log_on_s3_that_may_not_be_read(log_of: Any, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    config = log_of(".csv", HEADER, source={"interactions": {"path": "s3://bucket/{ds}.csv"}})
    with ThreadingHTTPServer(("127.0.0.1", 0), _Denies) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        said = refused(config)
        server.shutdown()
        thread.join()
    assert said.startswith("s3://bucket/2026-01-01.csv: access is denied (403)")


@pytest.mark.usefixtures("s3")
def test_a_server_of_s3_that_never_answers(log_of: Any, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CONNECT_SECONDS", "_REQUEST_SECONDS", "_ATTEMPTS"):
        monkeypatch.setattr(places, name, 1)
    config = log_of(".csv", HEADER, source={"interactions": {"path": "s3://bucket/{ds}.csv"}})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "the server cannot be reached or does not answer" in refused(config)
