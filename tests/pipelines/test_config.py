"""A recommender's YAML: what it may say, the short ways to say it, and what it answers to a mistake."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config import Recommender, load
from recsys_moe.config import BucketSegments, ColumnSegments, CrossSegments
from recsys_moe.errors import UserError
from recsys_moe.scoring import Blend

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

SMALLEST = """
name: shop
storage: ../var/shop
source: {interactions: {path: log.csv}}
columns: {user: u, item: i, timestamp: {name: at}}
tasks: [{name: click, label: clicked}]
features: {categorical: [u, i]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "configs" / "shop.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def read(folder: Path, **changes: Any) -> Recommender:
    """The smallest recommender with top-level keys changed or, if None, left out."""
    raw = yaml.safe_load(SMALLEST) | changes
    return load(write(folder, yaml.safe_dump({key: value for key, value in raw.items() if value is not None})))


@pytest.fixture(autouse=True)
def _no_root_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_MOE_STORAGE_ROOT", raising=False)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert load(path).name == path.stem


def test_the_smallest_yaml_is_enough(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.storage == str(tmp_path / "var" / "shop")
    assert config.source.interactions.path == str(tmp_path / "configs" / "log.csv")
    assert config.columns.key == ("u", "i", "at")
    assert config.primary_task == "click"
    assert config.blend == Blend({"click": 1.0})
    assert config.scoring.named_contexts == {"default": {}}
    assert config.segments is config.schedule is config.simulation is None


def test_nothing_can_be_changed_after_the_check(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read(tmp_path).name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("tab", ColumnSegments(column="tab")),
        ({"bucket": {"column": "age", "bins": [18, 30]}}, BucketSegments(column="age", bins=(18, 30))),
        (
            {"cross": {"columns": ["age_band", "country"], "parent": "age_band"}},
            CrossSegments(columns=("age_band", "country"), parent="age_band"),
        ),
    ],
)
def test_ways_to_write_segments(tmp_path: Path, written: Any, meant: Any) -> None:
    segments = read(tmp_path, segments={"by": written, "min_rows": 5}).segments
    assert segments is not None
    assert segments.by == meant
    assert segments.min_rows == 5


def test_one_users_file_or_several(tmp_path: Path) -> None:
    log = {"path": "log.csv"}
    one = read(tmp_path, source={"interactions": log, "users": {"path": "users.csv"}}).source.users
    two = read(tmp_path, source={"interactions": log, "users": [{"path": "a.csv"}, {"path": "b.csv"}]}).source.users
    assert [Path(source.path).name for source in one] == ["users.csv"]
    assert [Path(source.path).name for source in two] == ["a.csv", "b.csv"]


def test_numbers_by_name_and_history_keys_by_column(tmp_path: Path) -> None:
    features = {"numeric": ["price", {"name": "age", "days_since": "born"}], "history": {"keys": ["u", ["u", "tab"]]}}
    read_features = read(tmp_path, features=features).features
    assert [(feature.name, feature.days_since) for feature in read_features.numeric] == [
        ("price", None),
        ("age", "born"),
    ]
    assert read_features.history is not None
    assert read_features.history.keys == (("u",), ("u", "tab"))


def test_a_split_is_by_time_unless_it_says_otherwise(tmp_path: Path) -> None:
    assert read(tmp_path, evaluation={"split": {"test_days": 2}}).evaluation.split.by == "time"
    assert read(tmp_path, evaluation={"split": {"by": "random", "seed": 3}}).evaluation.split.by == "random"


@pytest.mark.parametrize(
    ("path", "file"),
    [("log/{ds}.csv", "log/2026-01-31.csv"), ("log_{ds_nodash}.csv", "log_20260131.csv"), ("log.csv", "log.csv")],
)
def test_paths_name_the_day(tmp_path: Path, path: str, file: str) -> None:
    source = read(tmp_path, source={"interactions": {"path": path}}).source.interactions
    assert source.path_for(date(2026, 1, 31)) == str(tmp_path / "configs" / file)
    assert source.is_daily == (file != path)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("a.csv", "csv"), ("a.tsv.gz", "tsv"), ("a.JSONL", "jsonl"), ("a.ndjson.zst", "jsonl"), ("a.parquet", "parquet")],
)
def test_the_ending_tells_the_format(tmp_path: Path, path: str, kind: str) -> None:
    assert read(tmp_path, source={"interactions": {"path": path}}).source.interactions.file_format == kind


def test_the_environment_fills_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_LOGS", "/data/shop")
    monkeypatch.delenv("SHOP_ZONE", raising=False)
    columns = {"user": "u", "item": "i", "timestamp": {"name": "at"}, "timezone": "${SHOP_ZONE:-Asia/Tokyo}"}
    config = read(tmp_path, source={"interactions": {"path": "${SHOP_LOGS}/{ds}.csv"}}, columns=columns)
    assert config.source.interactions.path == "/data/shop/{ds}.csv"
    assert config.columns.timezone == "Asia/Tokyo"


def test_the_storage_root_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("RECSYS_MOE_STORAGE_ROOT", str(elsewhere))
    assert read(tmp_path, storage=str(elsewhere / "shop")).storage == str(elsewhere / "shop")


CLICK = {"name": "click", "label": "clicked"}
COLUMNS = {"user": "u", "item": "i", "timestamp": {"name": "at"}}

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"featurs": {}}, r"featurs: unknown key; did you mean 'features'\?"),
    "unknown key of the model": ({"model": {"experts": {"route": 4}}}, r"model\.experts\.route: unknown key.*'routed'"),
    "missing key": ({"tasks": None}, "tasks: Field required"),
    "word for a number": ({"training": {"epochs": "two"}}, r"training\.epochs: .*valid integer.*'two'"),
    "number out of range": ({"training": {"batch_size": 0}}, r"training\.batch_size: .*greater than 0, not 0"),
    "unknown choice": ({"training": {"device": "tpu"}}, r"training\.device: .*'auto', 'cpu' or 'cuda'.*'tpu'"),
    "one for a list": ({"features": {"categorical": "u"}}, r"features\.categorical: .*tuple.*'u'"),
    "name with a space": ({"name": "my shop"}, r"name: .*pattern.*'my shop'"),
    "no task": ({"tasks": []}, "tasks: .*at least 1"),
    "no feature": ({"features": {}}, "features: name at least one"),
    "two delimiters": ({"source": {"interactions": {"path": "a", "delimiter": "||"}}}, r"delimiter: .*'\|\|'"),
    "label is a feature": ({"features": {"categorical": ["u", "clicked"]}}, "features: .*'clicked'.* task's label"),
    "label is a number read": ({"features": {"numeric": ["clicked"]}}, "features: .*'clicked'.* task's label"),
    "label in history": (
        {"features": {"categorical": ["u"], "history": {"keys": [["u", "clicked"]]}}},
        "'clicked'.* task's label",
    ),
    "label is the segment": ({"segments": {"by": "clicked"}}, "'clicked'.* task's label"),
    "label's age": (
        {"features": {"numeric": [{"name": "since", "days_since": "clicked"}]}},
        "'clicked'.* task's label",
    ),
    "outcome is a feature": (
        {"columns": {**COLUMNS, "outcomes": ["seconds"]}, "features": {"numeric": ["seconds"]}},
        r"'seconds'.* is in columns\.outcomes",
    ),
    "outcome in history": (
        {
            "columns": {**COLUMNS, "outcomes": ["seconds"]},
            "features": {"categorical": ["u"], "history": {"keys": ["seconds"]}},
        },
        r"'seconds'.* is in columns\.outcomes",
    ),
    "time as a feature": ({"features": {"numeric": ["at"]}}, "features: 'at' is the event's time; use hour or weekday"),
    "feature twice": ({"features": {"categorical": ["u"], "numeric": ["u"]}}, "features: .*'u'.* stand twice"),
    "reserved name": ({"features": {"categorical": ["u", "ds"]}}, "'ds'.* rename the column at its source"),
    "reserved label": ({"tasks": [{"name": "click", "label": "event_day"}]}, "'event_day'.* rename the column"),
    "two tasks of a name": ({"tasks": [CLICK, CLICK]}, "tasks: two tasks share a name"),
    "given comes later": (
        {"tasks": [{"name": "buy", "label": "bought", "given": "click"}, CLICK]},
        r"tasks\.buy\.given: 'click' is no task listed before it",
    ),
    "given is nowhere": ({"tasks": [{**CLICK, "given": "view"}]}, r"tasks\.click\.given: 'view' is no task"),
    "rule on a number": ({"tasks": [{**CLICK, "kind": "regression", "at_least": 4}]}, r"tasks\.0: a rule .*binary"),
    "gate on no task": ({"evaluation": {"gate": {"task": "buy"}}}, r"evaluation\.gate\.task: 'buy' is no task"),
    "nothing left to train on": (
        {"evaluation": {"split": {"by": "random", "validation": 0.5, "test": 0.5}}},
        r"evaluation\.split.*: .*stay below 1",
    ),
    "unknown split": ({"evaluation": {"split": {"by": "moon"}}}, r"evaluation\.split: .*'moon'.*'time'"),
    "segments of no known form": ({"segments": {"by": {"buckets": {}}}}, r"segments\.by: .*\{bucket: .*'buckets'"),
    "no cron": ({"schedule": {"ingest": "daily"}}, r"schedule\.ingest: 'daily' is no cron expression.*'0 3 \* \* \*'"),
    "cron of letters": ({"schedule": {"ingest": "a b c d e"}}, r"schedule\.ingest: 'a b c d e' is no cron"),
    "cron out of range": ({"schedule": {"ingest": "99 99 * * *"}}, r"schedule\.ingest: '99 99 .*is no cron"),
    "cron of every hour": ({"schedule": {"ingest": "0 * * * *"}}, r"schedule\.ingest: .*one time a day"),
    "unknown placeholder": (
        {"source": {"interactions": {"path": "log/{date}.csv"}}},
        r"source\.interactions\.path: .*has \{date\}; a path may have \{ds\} or \{ds_nodash\}",
    ),
    "log far away": (
        {"source": {"interactions": {"path": "gs://bucket/log.csv"}}},
        r"source\.interactions\.path: 'gs://bucket/log\.csv' is neither a local path nor",
    ),
    "user is the item": ({"columns": {**COLUMNS, "item": "u"}}, "columns: .*three columns, not 'u', 'u', 'at'"),
    "time is the user": ({"columns": {**COLUMNS, "user": "at"}}, "columns: .*three columns"),
    "label is the user": ({"tasks": [{"name": "click", "label": "u"}]}, r"tasks: the label 'u' is columns\.user"),
    "label is the item": ({"tasks": [{"name": "click", "label": "i"}]}, r"tasks: the label 'i' is columns\.item"),
    "label is the time": ({"tasks": [{"name": "click", "label": "at"}]}, r"the label 'at' is columns\.timestamp"),
    "feature called like a label": ({"features": {"categorical": ["label_click"]}}, "'label_click'.* rename"),
    "feature called source_row": ({"features": {"categorical": ["source_row"]}}, "'source_row'.* rename"),
    "feature called source_file": ({"features": {"categorical": ["Source_File"]}}, "'Source_File'.* rename"),
    "feature called like a weight": ({"features": {"categorical": ["row_weight"]}}, "'row_weight'.* rename"),
    "feature called like ours": ({"features": {"categorical": ["__reason"]}}, "'__reason'.* rename"),
    "time called ds": ({"columns": {**COLUMNS, "timestamp": {"name": "ds"}}}, "'ds'.* rename"),
    "feature called like history": (
        {"features": {"categorical": ["u", "U_7d_click_rate"], "history": {"keys": ["u"]}}},
        "'U_7d_click_rate'.* rename",
    ),
    "history called alike": (
        {"features": {"categorical": ["u"], "history": {"keys": [["a", "b"], "a_x_b"]}}},
        "features.history: two features would be called .*'a_x_b_7d_rows'",
    ),
    "columns differ in case": ({"features": {"categorical": ["u", "I"]}}, "'i'.* differ in upper and lower case only"),
    "age overwrites a column": (
        {"features": {"categorical": ["i"], "numeric": [{"name": "u", "days_since": "joined"}]}},
        r"features\.numeric: \['u'\] is a column already",
    ),
    "key of no column": (
        {"features": {"categorical": ["u"], "history": {"keys": [[]]}}},
        r"history\.keys: .*is no key",
    ),
    "key of three columns": (
        {"features": {"categorical": ["u"], "history": {"keys": [["u", "a", "b"]]}}},
        r"features\.history\.keys: \['u', 'a', 'b'\] is no key; a key is a column or a pair",
    ),
    "key twice": (
        {"features": {"categorical": ["u"], "history": {"keys": [["u", "a"], ["a", "u"]]}}},
        r"features\.history\.keys: two keys are the same",
    ),
    "window twice": (
        {"features": {"categorical": ["u"], "history": {"keys": ["u"], "days": [7, 7]}}},
        r"features\.history\.days: two windows are the same in \[7, 7\]",
    ),
    "parent outside": (
        {"segments": {"by": {"cross": {"columns": ["age", "land"], "parent": "tab"}}}},
        r"segments\.by\.cross: parent 'tab' must be one of columns \['age', 'land'\]",
    ),
    "cross of one column": (
        {"segments": {"by": {"cross": {"columns": ["age", "age"], "parent": "age"}}}},
        r"segments\.by\.cross: a column stands twice",
    ),
    "bins that fall": (
        {"segments": {"by": {"bucket": {"column": "age", "bins": [30, 18]}}}},
        r"segments\.by\.bucket: bins must increase, not 30, 18",
    ),
    "bins that repeat": (
        {"segments": {"by": {"bucket": {"column": "age", "bins": [18, 18]}}}},
        r"segments\.by\.bucket: bins must increase",
    ),
    "bins without a column": (
        {"segments": {"by": {"bucket": {"bins": [18]}}}},
        r"segments\.by\.bucket\.column: Field required$",
    ),
    "more chosen than there are": (
        {"model": {"experts": {"routed": 2, "top_k": 3}}},
        r"model\.experts: top_k 3 is more than the 2 routed experts",
    ),
    "no expert": (
        {"model": {"experts": {"shared": 0, "routed": 0}}},
        r"model\.experts: at least one of shared, per_task and routed",
    ),
    "segments without a shared expert": (
        {"model": {"experts": {"shared": 0}}, "segments": {"by": "tab"}},
        r"model\.experts: per_segment needs shared >= 1",
    ),
    "number given": (
        {"tasks": [CLICK, {"name": "seconds", "label": "s", "kind": "regression", "given": "click"}]},
        r"tasks\.1: given makes .*binary",
    ),
    "given a number": (
        {"tasks": [{"name": "seconds", "label": "s", "kind": "regression"}, {**CLICK, "given": "seconds"}]},
        r"tasks\.click\.given: 'seconds' is no yes or no",
    ),
    "rule that nothing meets": (
        {"tasks": [{**CLICK, "at_least": 4, "at_most": 3}]},
        r"tasks\.0: no label is at least 4 and at most 3",
    ),
    "rule that is no number": ({"tasks": [{**CLICK, "at_least": float("nan")}]}, r"tasks\.0\.at_least: .*finite"),
    "gain that is no number": (
        {"evaluation": {"gate": {"delta": float("nan")}}},
        r"evaluation\.gate\.delta: .*finite",
    ),
    "rate that is no number": ({"training": {"learning_rate": float("inf")}}, r"training\.learning_rate: .*finite"),
    "part of two parts": (
        {"evaluation": {"split": {"by": "column", "column": "part", "validation": ["b"], "test": ["b", "c"]}}},
        r"evaluation\.split.*: \['b'\] cannot be validation and test at once",
    ),
    "bad time zone": (
        {"columns": {**COLUMNS, "timezone": "Mars"}},
        r"columns\.timezone: 'Mars' is no time zone.*'UTC'",
    ),
    "bad unit": (
        {"columns": {**COLUMNS, "timestamp": {"name": "at", "unit": "min"}}},
        r"columns\.timestamp\.unit: .*'iso'.*'min'",
    ),
    "variable not set": ({"storage": "${NO_SUCH_VARIABLE_HERE}/x"}, r"storage: the environment has no NO_SUCH_VAR.*:-"),
    "storage leaves its root": ({"storage": "../../elsewhere"}, r"storage: .*leaves its root.*RECSYS_MOE_STORAGE_ROOT"),
    "storage is its root": ({"storage": ".."}, "storage: .*leaves its root"),
    "storage far away": ({"storage": "gs://bucket/shop"}, "storage: 'gs://bucket/shop' is neither a local folder nor"),
    "scratch files far away": ({"local": "/"}, "local: '/' leaves its root"),
    "a delimiter that is none": ({"source": {"interactions": {"path": "log.csv", "delimiter": "§"}}}, "delimiter"),
    "a tolerance of days": ({"columns": {**COLUMNS, "tolerance_minutes": 4000}}, r"columns\.tolerance_minutes"),
    "a contract for a table's own column": ({"contract": {"columns": {"event_day": {}}}}, r"\['event_day'\] are names"),
    "storage a whole bucket": (
        {"storage": "s3://bucket"},
        "storage: 's3://bucket' should be a bucket and a folder in it",
    ),
    "storage above its bucket": ({"storage": "s3://bucket/../x"}, "should be a bucket and a folder"),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, **changes)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'configs' / 'shop.yaml'}: ")
    assert re.search(message, said), said
    assert "\n" not in said


def test_what_looks_like_a_mistake_and_is_none(tmp_path: Path) -> None:
    """The time may be called event_time; per_segment is not used without segments, nor top_k without routed."""
    columns = {**COLUMNS, "timestamp": {"name": "event_time", "unit": "iso"}}
    experts = {"shared": 0, "per_task": 1, "per_segment": 1, "routed": 0, "top_k": 2}
    config = read(tmp_path, columns=columns, model={"experts": experts}, schedule={"ingest": "5 23 * * *"})
    assert config.columns.key == ("u", "i", "event_time")
    assert config.model.experts.top_k == 2


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(and 1 more\)"):
        read(tmp_path, training={"epochs": 0, "seed": -1})


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: [shop", "not valid YAML"), ("- shop", "should hold keys"), ("", "should hold keys")],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load(tmp_path / "nowhere.yaml")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(UserError, match=r"picture\.yaml: cannot be read"):
        load(path)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = write(tmp_path, "name: !!python/object/apply:os.getcwd []")
    with pytest.raises(UserError, match="not valid YAML"):
        load(path)
