"""A day's scores in every kind of target: all rows, at once, the same when it is run again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from psycopg.sql import SQL, Identifier

from pipelines import places
from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.export import export
from pipelines.export.lists import DayLists
from recsys_moe.errors import UserError

DAY = date(2026, 1, 5)
LATER = DAY + timedelta(days=1)
SERVED = ["context", "user_id", "rank", "item_id", "score"]


def alike(rows: pa.Table, columns: list[str]) -> list[dict[str, Any]]:
    """Rows to compare, in an order that their keys give."""
    return rows.select(columns).sort_by([(name, "ascending") for name in SERVED[:3]]).to_pylist()


def in_redis(store: redis.Redis, schema: pa.Schema, generation: str | None = None) -> list[dict[str, Any]]:
    """All rows that readers find, from the JSON of their lists."""
    generation = generation or str(store.get("tiny:current"))
    keys = [str(key) for key in store.scan_iter(match=f"tiny:{generation}:*", count=1000)]
    lists: Any = store.mget(keys) if keys else []
    rows = []
    for key, text in zip(keys, lists, strict=True):
        context, user = key.removeprefix(f"tiny:{generation}:").split(":", 1)
        items = json.loads(text)
        pairs = enumerate(zip(items["item_id"], items["score"], strict=True), 1)
        rows += [(context, user, rank, item, score) for rank, (item, score) in pairs]
    return alike(_table(rows, SERVED, schema), SERVED)


def in_postgres(base: psycopg.Connection[Any], schema: pa.Schema, table: str = "scores_newest") -> list[dict[str, Any]]:
    """All rows that readers find, with all columns."""
    found = base.execute(SQL("SELECT * FROM {}").format(Identifier(table)))
    names = [column.name for column in found.description or ()]
    return alike(_table(found.fetchall(), names, schema), sorted(names))


def _table(rows: list[tuple[Any, ...]], names: list[str], schema: pa.Schema) -> pa.Table:
    """Rows in the types of the scores: a float comes back as the 32 bits that it was."""
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return pa.table({name: pa.array(one, schema.field(name).type) for name, one in zip(names, columns, strict=True)})


def partition(base: psycopg.Connection[Any]) -> Identifier:
    """The table of the only day that was loaded, or is being loaded."""
    (found,) = base.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'scores_2026%'").fetchall()
    return Identifier(found[0])


def states(result: dict[str, Any]) -> list[str]:
    return [target["state"] for target in result["targets"]]


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """`stopping(2, act)`: from now on, `act` is called when a target asks for its part 2."""

    def arrange(number: int, act: Callable[[], object]) -> None:
        parts = DayLists.parts

        def watched(day: DayLists, target: str, after: int = 0) -> Iterator[pa.Table]:
            for n, part in enumerate(parts(day, target, after)):
                if n == number:
                    monkeypatch.setattr(DayLists, "parts", parts)
                    act()
                yield part

        monkeypatch.setattr(DayLists, "parts", watched)

    return arrange


pytestmark = pytest.mark.usefixtures("small_blocks")


def test_every_target_has_every_row(scores, store, base) -> None:
    rows = scores.publish()
    result = export(scores.config, DAY)
    assert states(result) == ["written", "written", "loaded", "loaded"]
    assert (result["rows"], result["model_version"], result["ds"]) == (len(rows), 3, "2026-01-05")
    assert in_redis(store, rows.schema) == alike(rows, SERVED)
    everything = sorted(rows.column_names)
    assert in_postgres(base, rows.schema) == alike(rows, everything)
    out = Path(scores.config.exports[0].path).parent
    assert alike(pq.read_table(out / "2026-01-05.parquet"), everything) == alike(rows, everything)
    lines = [json.loads(line) for line in gzip.decompress((out / "20260105.jsonl.gz").read_bytes()).splitlines()]
    assert lines[0]["scored_at"] == "2026-01-06 01:02:03+00"
    plain = [name for name in everything if name not in ("ds", "scored_at")]
    again = pa.Table.from_pylist(lines, pa.schema([rows.schema.field(name) for name in plain]))
    assert alike(again, plain) == alike(rows, plain)
    assert sorted(path.name for path in out.iterdir()) == ["2026-01-05.parquet", "20260105.jsonl.gz"]


def test_again_gives_the_same(scores, store, base) -> None:
    rows = scores.publish()
    export(scores.config, DAY)
    out = Path(scores.config.exports[0].path).parent
    before = {path.name: path.read_bytes() for path in out.iterdir()}, sorted(store.keys()), store.get("tiny:current")
    assert states(export(scores.config, DAY)) == ["written", "written", "there already", "there already"]
    assert before == (
        {path.name: path.read_bytes() for path in out.iterdir()},
        sorted(store.keys()),
        store.get("tiny:current"),
    )
    assert in_postgres(base, rows.schema) == alike(rows, sorted(rows.column_names))


def test_readers_see_the_old_day_until_all_of_the_new_one_is_there(scores, store, base, stopping) -> None:
    old = scores.publish()
    export(scores.config, DAY)
    new = scores.publish(LATER, seed=1)
    everything, seen = sorted(old.column_names), []
    stopping(3, lambda: seen.append(in_redis(store, old.schema) == alike(old, SERVED)))
    export(scores.config, LATER, "store")
    stopping(3, lambda: seen.append(in_postgres(base, old.schema) == alike(old, everything)))
    export(scores.config, LATER, "base")
    assert seen == [True, True]
    assert in_redis(store, new.schema) == alike(new, SERVED)
    assert in_postgres(base, new.schema) == alike(new, everything)
    assert in_postgres(base, new.schema, "scores") == alike(pa.concat_tables([old, new]), everything)


def test_an_interrupted_load_goes_on_where_it_stopped(scores, store, base, stopping) -> None:
    rows = scores.publish()

    def stop() -> None:
        raise KeyboardInterrupt

    for name in ("store", "base"):
        stopping(3, stop)
        with pytest.raises(KeyboardInterrupt):
            export(scores.config, DAY, name)
    assert store.get("tiny:current") is None
    assert in_postgres(base, rows.schema) == []
    # What is in stays as it is: each row of the three first parts has its old place on the disk afterwards.
    stored = SQL("SELECT ctid, xmin FROM {} ORDER BY ctid").format(partition(base))
    before = base.execute(stored).fetchall()
    store.config_resetstat()
    assert states(export(scores.config, DAY, "store")) == ["loaded"]
    assert states(export(scores.config, DAY, "base")) == ["loaded"]
    assert base.execute(stored).fetchall()[: len(before)] == before
    assert 0 < len(before) < len(rows)
    lists, done = len(rows) // 5, len(before) // 5
    commands: Any = store.info("commandstats")
    assert commands["cmdstat_set"]["calls"] == lists - done + 2  # and `loading` and `current`
    assert in_redis(store, rows.schema) == alike(rows, SERVED)
    assert in_postgres(base, rows.schema) == alike(rows, sorted(rows.column_names))


def test_a_day_that_was_scored_again_replaces_what_was_begun_and_what_was_there(scores, store, base, stopping) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    generations = []
    for version in (3, 4):
        first = scores.publish(seed=version, version=version)
        export(scores.config, DAY)
        generations.append(store.get("tiny:current"))
    for name in ("store", "base"):
        scores.publish(seed=5, version=5)
        stopping(2, stop)
        with pytest.raises(KeyboardInterrupt):
            export(scores.config, DAY, name)
    assert in_redis(store, first.schema, generations[0]) == []  # nobody reads it since the last load
    assert in_redis(store, first.schema) == alike(first, SERVED)
    rows = scores.publish(seed=6, version=6)
    assert export(scores.config, DAY)["model_version"] == 6
    assert in_redis(store, rows.schema) == alike(rows, SERVED)
    assert in_redis(store, rows.schema, generations[1]) == alike(first, SERVED)  # for who has just asked for it
    assert len(store.smembers("tiny:generations")) == 2
    assert in_postgres(base, rows.schema, "scores") == alike(rows, sorted(rows.column_names))
    tables = base.execute("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'scores%'").fetchone()
    assert tables == (3,)  # scores, its one partition, and the notes


def test_an_older_day_does_not_take_the_place_of_a_newer_one(scores, store, base) -> None:
    old, new = scores.publish(), scores.publish(LATER, seed=1)
    export(scores.config, LATER)
    assert states(export(scores.config, DAY))[2:] == ["a newer day is there", "loaded"]
    assert in_redis(store, new.schema) == alike(new, SERVED)
    everything = sorted(new.column_names)
    assert in_postgres(base, new.schema) == alike(new, everything)
    assert in_postgres(base, new.schema, "scores") == alike(pa.concat_tables([old, new]), everything)


def test_days_that_are_too_old_are_removed(scores, store, base) -> None:
    scores.publish()
    export(scores.config, DAY)
    expiry = [store.ttl(key) for key in store.scan_iter("tiny:*") if key != "tiny:generations"]
    assert 6.9 * 86_400 < min(expiry) <= max(expiry) <= 7 * 86_400
    week = DAY + timedelta(days=7)
    rows = scores.publish(week, seed=1)
    export(scores.config, week, "base")
    assert in_postgres(base, rows.schema, "scores") == alike(rows, sorted(rows.column_names))
    assert states(export(scores.config, DAY, "base")) == ["newer days are there"]


def test_a_partition_that_somebody_removed_is_loaded_again(scores, base) -> None:
    rows = scores.publish()
    export(scores.config, DAY, "base")
    base.execute(SQL("DROP TABLE {}").format(partition(base)))
    assert states(export(scores.config, DAY, "base")) == ["loaded"]
    assert in_postgres(base, rows.schema) == alike(rows, sorted(rows.column_names))


@pytest.mark.parametrize("name", ["store", "base"])
def test_of_two_loads_of_a_day_one_goes_on(scores, store, base, stopping, name: str) -> None:
    rows = scores.publish()
    stopping(2, lambda: export(scores.config, DAY, name))
    with pytest.raises(TryAgainError, match="another process loads"):
        export(scores.config, DAY, name)
    if name == "store":
        assert in_redis(store, rows.schema) == alike(rows, SERVED)
    else:
        assert in_postgres(base, rows.schema) == alike(rows, sorted(rows.column_names))


def test_readers_keep_what_they_were_granted(scores, base, postgres_for_all) -> None:
    scores.publish()
    export(scores.config, DAY, "base")
    base.execute("DROP ROLE IF EXISTS reader")
    base.execute("CREATE ROLE reader LOGIN")
    base.execute("GRANT USAGE ON SCHEMA public TO reader")
    base.execute("GRANT SELECT ON scores_newest TO reader")
    rows = scores.publish(LATER, seed=1)
    export(scores.config, LATER, "base")
    with psycopg.connect(postgres_for_all, user="reader") as reader:
        assert in_postgres(reader, rows.schema) == alike(rows, sorted(rows.column_names))
    base.execute("DROP OWNED BY reader")


def test_to_s3(scores, s3: str) -> None:
    rows = scores.publish()
    target = scores.config.exports[0].model_copy(update={"path": f"{s3}/{{ds}}.parquet"})
    config = scores.config.model_copy(update={"exports": (target,)})
    export(config, DAY)
    system, key = places.file_system(f"{s3}/2026-01-05.parquet")
    found = pq.read_table(key, filesystem=system)
    assert alike(found, sorted(rows.column_names)) == alike(rows, sorted(rows.column_names))
    assert not list((config.workspace / "scratch" / "export").iterdir())


def test_a_target_that_fails_does_not_keep_the_day_from_the_others(scores, store, monkeypatch) -> None:
    rows = scores.publish()
    monkeypatch.setenv("TEST_POSTGRES_URL", "postgresql://u:secret@127.0.0.1:1/db")
    with pytest.raises(TryAgainError, match=r"exports\.base: .*refused"):
        export(scores.config, DAY)
    assert in_redis(store, rows.schema) == alike(rows, SERVED)


def test_other_columns_are_another_generation(tiny: Callable[..., Recommender], scores, store) -> None:
    scores.publish()
    export(scores.config, DAY, "store")
    target = scores.config.exports[2].model_copy(update={"columns": ("item_id", "rank", "score_click")})
    config = scores.config.model_copy(update={"exports": (target,)})
    assert states(export(config, DAY)) == ["loaded"]
    some: Any = store.get(f"tiny:{store.get('tiny:current')}:home:u 1")
    assert json.loads(some)["rank"] == [1, 2, 3, 4, 5]
    odd = config.model_copy(update={"exports": (target.model_copy(update={"columns": ("price",)}),)})
    with pytest.raises(UserError, match=r"exports\.store\.columns: scores have no column 'price'"):
        export(odd, DAY)
