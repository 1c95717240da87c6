"""What can be wrong with a target is one line without its password: mend it (exit code 2), or try again (75)."""

from __future__ import annotations

import re
import sys
from datetime import date

import psycopg
import pyarrow as pa
import pytest
import redis
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.errors import TryAgainError
from pipelines.export import export, redis_store, statements
from recsys_moe.errors import UserError

DAY = date(2026, 1, 5)
MEND, AGAIN = UserError, TryAgainError


def told(config, name: str) -> UserError:
    """The error of an export, which is one line and keeps the secret."""
    with pytest.raises(UserError) as caught:
        export(config, DAY, name)
    line = str(caught.value)
    assert line.startswith(f"exports.{name}: ")
    assert "\n" not in line
    assert "secret" not in line
    return caught.value


@pytest.mark.parametrize(
    ("name", "url", "kind", "message"),
    [
        ("store", None, MEND, "the environment has no variable TEST_REDIS_URL with the server's URL"),
        ("store", "http://:secret@localhost", MEND, "$TEST_REDIS_URL is no URL such as redis://user:password@host"),
        ("store", "redis://:secret@localhost:port", MEND, "$TEST_REDIS_URL is no URL"),
        ("store", "redis://:secret@127.0.0.1:1", AGAIN, "refused"),
        ("base", None, MEND, "the environment has no variable TEST_POSTGRES_URL"),
        ("base", "secret", MEND, "$TEST_POSTGRES_URL is no URL such as postgresql://user:password@host"),
        ("base", "postgresql+psycopg://u:secret@127.0.0.1:1/db", AGAIN, "refused"),
        ("base", "postgresql://u:secret@127.0.0.1:1/db?secret=1", MEND, "invalid"),
        ("base", "postgresql://u:p@secret@127.0.0.1:1/db", MEND, "an @ in the password is written %40"),
        ("base", "postgresql://u@127.0.0.1:1/db?password=secret%zz", MEND, "invalid percent-encoded token"),
    ],
)
def test_a_server_that_cannot_be_asked(scores, monkeypatch, name, url, kind, message) -> None:
    scores.publish()
    for variable in ("TEST_REDIS_URL", "TEST_POSTGRES_URL"):
        monkeypatch.delenv(variable, raising=False)
        if url is not None:
            monkeypatch.setenv(variable, url)
    error = told(scores.config, name)
    assert (type(error), message in str(error)) == (kind, True), error


def test_a_driver_that_is_not_there(scores, monkeypatch) -> None:
    """The other targets have the day."""
    scores.publish()
    monkeypatch.setitem(sys.modules, "redis", None)
    for loaded in [name for name in sys.modules if name.startswith("redis.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.delitem(sys.modules, "pipelines.export.redis_store")
    monkeypatch.delattr("pipelines.export.redis_store")
    error = told(scores.config, "store")
    assert (type(error), "the package redis is not installed; install it with the extra 'redis'" in str(error)) == (
        MEND,
        True,
    )


def test_redis_says_no(scores, store: redis.Redis, redis_for_all: str, monkeypatch) -> None:
    scores.publish()
    store.acl_setuser("reader", enabled=True, passwords=["+secret"], commands=["+get"], keys=["*"])
    address = redis_for_all.partition("@")[2]
    for user, password in (("reader", "secret"), ("reader", "wrong+secret"), ("nobody", "secret")):
        monkeypatch.setenv("TEST_REDIS_URL", f"redis://{user}:{password}@{address}")
        assert re.search("no permissions|invalid username-password", str(told(scores.config, "store")))
    monkeypatch.setenv("TEST_REDIS_URL", redis_for_all)
    store.config_set("maxmemory", 1)
    assert "maxmemory" in str(told(scores.config, "store"))
    store.config_set("maxmemory", 0)
    assert store.get("tiny:current") is None


def test_redis_that_refuses_a_list_in_the_middle_is_told_and_mended(scores, store: redis.Redis, monkeypatch) -> None:
    """Writes go on after the refused one, so that each answer has to be read."""
    rows = scores.publish()
    commands = redis_store._commands

    def broken(lists: pa.Table, expires: int) -> bytes:
        return bytes(commands(lists, expires)).replace(b"SET", b"GET", 1)

    monkeypatch.setattr(redis_store, "_commands", broken)
    assert "wrong number of arguments" in str(told(scores.config, "store"))
    monkeypatch.setattr(redis_store, "_commands", commands)
    assert export(scores.config, DAY, "store")["rows"] == len(rows)


def test_postgres_says_no(scores, base, postgres_for_all: str, monkeypatch) -> None:
    scores.publish()
    base.execute("DROP ROLE IF EXISTS stranger")
    base.execute("CREATE ROLE stranger LOGIN PASSWORD 'secret'")
    base.execute("GRANT USAGE ON SCHEMA public TO stranger")
    address = postgres_for_all.partition("@")[2]
    monkeypatch.setenv("TEST_POSTGRES_URL", f"postgresql://stranger:secret@{address}")
    error = told(scores.config, "base")
    assert (type(error), str(error)) == (MEND, "exports.base: permission denied for schema public")
    monkeypatch.setenv("TEST_POSTGRES_URL", postgres_for_all.replace("/postgres?", "/nowhere?"))
    error = told(scores.config, "base")
    assert (type(error), 'database "nowhere" does not exist' in str(error)) == (MEND, True)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE TABLE scores (id int)", "a table scores of another shape, column 'candidate_source' is not what"),
        ("CREATE VIEW scores AS SELECT 1 AS ds", "another shape"),
    ],
)
def test_a_table_of_another_shape(scores, base, statement: str, message: str) -> None:
    scores.publish()
    base.execute(statement)
    error = told(scores.config, "base")
    assert (type(error), message in str(error)) == (MEND, True), error
    assert base.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'scores%'").fetchone() == (1,)


def test_a_reader_that_holds_the_table_is_not_waited_for_long(scores, base, postgres_for_all, monkeypatch) -> None:
    scores.publish()
    export(scores.config, DAY, "base")
    scores.publish(seed=1)
    monkeypatch.setattr(statements, "_LOCK_SECONDS", 0.2)
    with psycopg.connect(postgres_for_all) as reader:
        reader.execute("SELECT * FROM scores_newest")
        error = told(scores.config, "base")
    assert (type(error), "lock timeout" in str(error)) == (AGAIN, True), error
    assert export(scores.config, DAY, "base")["targets"][0]["state"] == "loaded"


def test_a_file_that_cannot_be_written(scores, tmp_path) -> None:
    scores.publish()
    (tmp_path / "out").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match=r"2026-01-05.parquet: cannot be written: "):
        export(scores.config, DAY, "lake")


@pytest.mark.parametrize("broken", ["split", "order", "nan"])
def test_rows_that_are_no_lists_of_numbers(scores, broken: str) -> None:
    rows = scores.table()
    if broken == "split":
        rows = pa.concat_tables([rows.slice(3), rows.slice(0, 3)])
    elif broken == "order":
        rows = rows.sort_by([("context", "ascending"), ("user_id", "ascending"), ("rank", "descending")])
    else:
        place = rows.schema.get_field_index("score")
        rows = rows.set_column(place, "score", pa.array([float("nan")] + [0.5] * (len(rows) - 1), pa.float32()))
    scores.publish(rows=rows)
    message = "column 'score' has a value that is no number" if broken == "nan" else "lists are not whole"
    with pytest.raises(UserError, match=message):
        export(scores.config, DAY, "lines")


def test_on_the_command_line(scores, monkeypatch) -> None:
    def call(*more: str) -> tuple[int, str]:
        arguments = ["export", "--config", str(scores.config.origin.file), *more]
        done = CliRunner().invoke(app, arguments)
        return done.exit_code, done.stderr.splitlines()[-1]

    assert call("--as-of", "2026-01-05")[1].endswith("there is no table scores yet; run `recsys-moe score` first")
    scores.publish()
    monkeypatch.setenv("TEST_REDIS_URL", "redis://127.0.0.1:1")
    assert call("--as-of", "2026-01-05", "--to", "store")[0] == 75
    names = ["lake", "lines", "store", "base"]
    assert call("--as-of", "2026-01-05", "--to", "x") == (
        2,
        f"error: --to: 'x' is none of the YAML's exports; there is {names}",
    )
    wanted = "error: 2026-01-06: has no scores; run `recsys-moe score --as-of 2026-01-06` first"
    assert call("--as-of", "2026-01-06", "--to", "lake") == (2, wanted)
    assert call("--as-of", "2026-01-05", "--to", "lake")[0] == 0
