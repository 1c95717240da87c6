"""Whom a person's id is found on, in each table; and which models have seen them."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import Recommender
from pipelines.forget import forget, traces_of
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.promotions import CHAMPION
from pipelines.registry import Registry
from pipelines.scoring.staging import Staging
from pipelines.tables import TableName, Tables, snapshots
from recsys_moe.errors import UserError

FEATURES = {
    "categorical": ["user", "item", "tab"],
    "history": {"keys": ["user", ["user", "tab"]], "recent": [{"key": "item", "of": "user"}]},
}
LISTED = "item_last_20_user"


@pytest.fixture
def config(tiny: Any, store: str, monkeypatch: pytest.MonkeyPatch) -> Recommender:
    """Of a name of its own, with which it is alone in the store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    found: Recommender = tiny(name=f"tiny_{uuid.uuid4().hex}", features=FEATURES)
    return found


def kept(config: Recommender, name: TableName, rows: dict[str, list[Any]], user: str = "u1") -> list[int]:
    """The positions of the rows that stay."""
    traces = traces_of(config, name, user)
    assert traces is not None
    batch = pa.record_batch({**rows, "position": list(range(len(next(iter(rows.values())))))})
    assert set(traces.columns) & set(rows)
    found: list[int] = traces.without(batch)["position"].to_pylist()
    return found


def test_rows_go_by_the_user_column(config: Recommender) -> None:
    users = ["u1", "u11", None, "U1", "u1 ", "u2", "u1"]
    names: dict[TableName, str] = {"interactions": "user", "users": "user", "outcomes": "user", "scores": "user_id"}
    for name, column in names.items():
        assert kept(config, name, {column: users}) == [1, 2, 3, 4, 5]


def test_a_day_of_one_person_alone_can_be_prepared_when_they_are_forgotten(config: Recommender, tiny: Any) -> None:
    tiny.log(0, [f"u1,i0,{tiny.at(0)},home,1,0"])
    for number in range(2):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    forget(config, "u1")
    assert prepare(config, tiny.day(0))["examples"] == 0
    assert prepare(config, tiny.day(1))["examples"] > 0


def test_tables_without_users_are_left_alone(config: Recommender) -> None:
    assert traces_of(config, "items", "u1") is None
    assert traces_of(config, "ingested", "u1") is None


def test_counts_go_by_the_id_or_a_part_of_it(config: Recommender) -> None:
    keys = ["", "user", "user", "item", "user_x_tab", "user_x_tab", "user_x_tab", "tab_x_user", "item_x_tab"]
    values = ["", "u1", "u2", "u1", "u1\x1fhome", "u11\x1fhome", "home\x1fu11", "home\x1fu1", "u1\x1fhome"]
    assert kept(config, "daily_counts", {"key": keys, "value": values}) == [0, 2, 3, 5, 6, 8]


def test_lists_of_and_with_a_person_go(config: Recommender) -> None:
    keys = ["user_last_20_item", "user_last_20_item", LISTED, LISTED, LISTED]
    values, items = ["u1", "u2", "i1", "i1", "u1"], ["i1", "u1", "u1", "u2", "u2"]
    assert kept(config, "daily_recent", {"key": keys, "value": values, "item": items}) == [1, 3, 4]


def test_others_examples_lose_the_person_from_their_lists(config: Recommender) -> None:
    traces = traces_of(config, "examples", "u1")
    assert traces is not None
    lists = [["u1"], ["u2", "u1", "u1"], None, [], ["u1"], ["u3", None, "u2"]]
    batch = pa.record_batch({"user": ["u1", "u2", "u3", None, "u5", "u6"], LISTED: lists})
    assert traces.without(batch).to_pydict() == {
        "user": ["u2", "u3", None, "u5", "u6"],
        LISTED: [["u2"], None, [], [], ["u3", None, "u2"]],
    }
    assert traces.without(batch.slice(2)).to_pydict()[LISTED] == [None, [], [], ["u3", None, "u2"]]


REJECTED = {
    '{"user": "u1", "item": "i1"}': True,
    '{"user": " u1 ", "item": "i1"}': True,
    '{"user": "u11", "item": "u1"}': False,
    '{"user": null}': False,
    '"u1,i1,5,a,b,c,d"': True,
    '"i1\\tu1"': True,
    '"{\\"user\\": \\"u1\\", \\"at\\": "': True,
    '"u11,i1"': False,
    '"xu1-2,i1"': False,
}


@pytest.mark.parametrize(("row", "goes"), REJECTED.items())
def test_rejected_rows_and_lines_with_the_person_go(config: Recommender, row: str, goes: bool) -> None:
    assert kept(config, "rejected", {"row": ['"nothing"', row, '{"user": "u2"}']}) == ([0, 2] if goes else [0, 1, 2])


@pytest.mark.parametrize("user", ["5", 'q"u\\ote', "Zoë", "a.b*", "日本", "tab\there"])
def test_any_text_is_an_id(config: Recommender, user: str) -> None:
    """Also where JSON writes it otherwise, and where a number stands for it."""
    lines = [f"{user},i1", json.dumps({"user": user})[:-1]]
    rows = [json.dumps({"user": user}), json.dumps({"user": user}, ensure_ascii=False), *map(json.dumps, lines)]
    rows += [json.dumps({"user": 5}), json.dumps({"user": f"{user}x"})]
    assert kept(config, "rejected", {"row": rows}, user) == ([5] if user == "5" else [4, 5])


def fill(config: Recommender, tiny: Any) -> dict[int, int]:
    """Three days of two users and one who comes on the second. Returns the examples' version after each day."""
    tables = Tables(config.storage)
    versions = {}
    for number in range(3):
        users = ["u1", "u2", "u3"] if number == 1 else ["u1", "u2"]
        rows = pa.table({"user": users, "x": [number] * len(users)})
        tables.replace_day("interactions", tiny.day(number), rows)
        tables.replace_day("users", tiny.day(number), rows.select(["user"]))
        tables.replace_day("items", tiny.day(number), pa.table({"item": ["u3"]}))
        versions[number] = tables.replace_day("examples", tiny.day(number), rows)
    return versions


def register(config: Recommender, tiny: Any, version: int, through: int, vocabulary: list[str], **params: Any) -> None:
    """A version of the registered model with as much as is looked at: what it read, and its vocabulary."""
    registry, tables = Registry(config), Tables(config.storage)
    folder = Path(config.storage) / "made" / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    values = pa.table({"feature": ["user"] * len(vocabulary) + ["item"], "value": [*vocabulary, "u3"]})
    pq.write_table(values, folder / "vocabularies.parquet")
    tags = {"as_of": tiny.day(through).isoformat(), "trained_through": tiny.day(through).isoformat()}
    with registry.run("made", tags) as run:
        run.inputs({"examples": (tables.path("examples"), version)})
        run.params(params)
        registry.client.log_artifacts(run.run_id, str(folder.parent), "model/artifacts")
    if not registry.client.search_registered_models(f"name = '{config.name}'"):
        registry.client.create_registered_model(config.name)
    source = f"{registry.client.get_run(run.run_id).info.artifact_uri}/model"
    registry.client.create_model_version(config.name, source, run.run_id)


def test_a_person_goes_everywhere_and_the_models_that_saw_them_are_told(config: Recommender, tiny: Any) -> None:
    versions = fill(config, tiny)
    last_day = {"train": 1, "validation": 0, "test": 0}
    for number, vocabulary in ((0, ["u1"]), (1, ["u1", "u3"]), (2, [])):
        register(config, tiny, versions[number], number, vocabulary)
    register(config, tiny, versions[2], 2, [], **{f"evaluation.split.{part}_days": n for part, n in last_day.items()})
    Registry(config).client.set_registered_model_alias(config.name, CHAMPION, "2")
    scratch = config.workspace / "scratch" / "train-x"
    scratch.mkdir(parents=True)
    (scratch / "rows.arrow").write_bytes(b"123")
    staged = Staging(f"{config.storage}/scoring/2026-01-01-0a")
    staged.write_json("users.json", "u3")
    counted = forget(config, "u3", dry_run=True)
    assert scratch.exists()
    assert staged.exists("users.json")
    result = forget(config, "u3")
    assert (
        result["models"]
        == counted["models"]
        == [
            {"version": 2, "aliases": [CHAMPION], "days": [tiny.day(1).isoformat()], "in_vocabulary": True},
            {"version": 3, "aliases": [], "days": [tiny.day(1).isoformat()], "in_vocabulary": False},
        ]
    )
    assert result["tables"] == counted["tables"]
    assert result["tables"] == {
        name: {"rows": 1, "files": 1, "left": 0} for name in ("interactions", "users", "examples")
    }
    assert result["scratch"] == {"removed": 1, "bytes": 3 + len('"u3"')}
    assert "u3" not in json.dumps(result)
    assert not scratch.exists()
    assert not staged.exists("users.json")
    for version in versions.values():
        old = Tables(config.storage).dataset("examples", version).to_table().column("user").to_pylist()
        assert set(old) == {"u1", "u2"}


def test_a_second_time_the_model_still_tells(config: Recommender, tiny: Any) -> None:
    """From its vocabulary; its days are gone."""
    register(config, tiny, fill(config, tiny)[1], 1, ["u3"])
    forget(config, "u3")
    again = forget(config, "u3")
    assert again["models"] == [{"version": 1, "aliases": [], "days": [], "in_vocabulary": True}]
    assert {count for counts in again["tables"].values() for count in counts.values()} == {0}


def test_a_user_whom_nobody_knows_is_a_mistake(config: Recommender, tiny: Any) -> None:
    versions = fill(config, tiny)
    register(config, tiny, versions[2], 2, ["u1"])
    with pytest.raises(UserError, match=r"no table and no model of 'tiny_.*' knows this user"):
        forget(config, "u4")
    assert Tables(config.storage).version("examples") == versions[2]


def test_versions_that_cannot_be_read_any_more_are_told(config: Recommender, tiny: Any) -> None:
    register(config, tiny, 77, 1, ["u3"])
    fill(config, tiny)
    (told,) = forget(config, "u3")["models"]
    assert (told["days"], told["in_vocabulary"]) == (None, True)


def test_the_command(config: Recommender, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cli.load", lambda path: config)
    monkeypatch.setattr("pipelines.calling.end_with_parent", lambda: None)
    monkeypatch.setattr("pipelines.calling._set_up_logging", lambda: None)
    fill(config, tiny)

    def call(*arguments: str) -> tuple[int, Any]:
        done = CliRunner().invoke(app, [*arguments, "--config", "tiny.yaml"])
        return done.exit_code, json.loads(done.stdout.splitlines()[-1]) if done.stdout else None

    code, result = call("forget", "--user", "u3", "--dry-run")
    assert (code, result["dry_run"], result["tables"]["examples"]["rows"]) == (0, True, 1)
    assert call("forget", "--user", "u3")[0] == 0
    assert call("forget", "--user", "u3")[0] == 2
    code, result = call("maintain")
    assert (code, result["step"]) == (0, "maintain")


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_after_the_real_steps_nothing_below_the_storage_has_the_id(
    tiny: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    source = {"interactions": {"path": "../data/log/{ds}.csv"}}
    config = tiny(name=f"tiny_{uuid.uuid4().hex}", features=FEATURES, source=source)
    for number in range(3):
        lines = [line.replace("u1,", "wally,") for line in tiny.rows(number)]
        tiny.log(number, [*lines, f"wally,,{tiny.at(number)},home,1,1", "wally,i1"])
        ingest(config, tiny.day(number))
        users = pa.table({"user": ["u2", "wally"], "visits": [0, number]})
        snapshots.publish(Tables(config.storage), "users", tiny.day(number), users, "user")
        prepare(config, tiny.day(number))
    assert holding(config, b"wally")
    assert forget(config, "wally")["tables"]["rejected"]["rows"] == 6
    assert not holding(config, b"wally")
    assert snapshots.read(Tables(config.storage), "users", tiny.day(2)).to_pydict() == {"user": ["u2"], "visits": [0]}
    prepare(config, tiny.day(2))


def holding(config: Recommender, text: bytes) -> list[str]:
    """Files with a text in them. Parquet compresses, so its columns are read."""

    def content(path: Path) -> bytes:
        return (
            repr(pq.read_table(path, partitioning=None).to_pylist()).encode()
            if path.suffix == ".parquet"
            else path.read_bytes()
        )

    return [path.name for path in Path(config.storage).rglob("*") if path.is_file() and text in content(path)]
