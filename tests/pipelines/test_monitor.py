"""What the monitor sees: days that are late or thin, columns and scores that drift, predictions that do not hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipelines.config import Limits, Monitoring, Recommender
from pipelines.monitor import monitor, page
from pipelines.monitor.arrivals import freshness, volume
from pipelines.monitor.calibrations import Rate, of_served, of_today, shown
from pipelines.monitor.checks import Check, Judged
from pipelines.monitor.drifts import Drifts, drifts
from pipelines.monitor.experts import expert_health
from pipelines.monitor.said import Said
from pipelines.profile.span import Span
from pipelines.registry import Registry, Version
from pipelines.tables import Tables
from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import Feature, ModelConfig, Task
from recsys_moe.encoding import Encoder
from tests.pipelines.conftest import Tiny
from tests.recsys_moe.conftest import model_config, raw_rows

DAY = date(2026, 1, 5)
ROWS = 3000
MODEL = ModelConfig(
    features=(
        Feature(name="user", kind="categorical", side="user"),
        Feature(name="tab", kind="categorical", side="context"),
        Feature(name="band", kind="categorical", side="user"),
        Feature(name="tags", kind="multivalued", side="item"),
        Feature(name="price", kind="numeric", side="item"),
        Feature(name="user_1d_rows", kind="numeric", side="user"),
    ),
    tasks=(Task(name="click"), Task(name="like", given="click")),
)


def said(seed: int, rows: int = ROWS, **columns: Any) -> Said:
    """Rows of two segments, and what a model that is right says of them."""
    draw = np.random.default_rng(seed)
    click, like = draw.beta(2, 5, rows), draw.beta(2, 5, rows)
    clicked = draw.random(rows) < click
    values: dict[str, Any] = {
        "user": [f"u{n}" for n in draw.integers(0, 50, rows)],
        "tab": draw.choice(["home", "search"], rows),
        "band": draw.choice(["young", "old", "unknown"], rows),
        "tags": [["sport", f"t{n}"] for n in draw.integers(0, 4, rows)],
        "price": draw.lognormal(size=rows),
        "user_1d_rows": np.full(rows, float(seed)),
        "label_click": clicked.astype(float),
        "label_like": np.where(clicked, draw.random(rows) < like, np.nan),
    }
    table = pa.table(values | columns)
    scores = {"click": click.astype(np.float32), "like": (click * like).astype(np.float32)}
    return Said(table, table.column("tab"), scores)


def drift_of(config: Recommender, now: Said, before: Said) -> Drifts:
    return drifts(config, Tables(config.storage), Span((DAY,), (date(2026, 1, 4),)), MODEL, now, before)


def off(checks: Any) -> dict[tuple[str, str, str | None], str]:
    """What is not ok, by group, name and segment."""
    return {(c.group, c.name, c.segment): c.verdict for c in checks if c.verdict != "ok"}


def check(group: Any, value: float | None, name: str = "one", **more: Any) -> Check:
    return Check(group, name, f"{name} is {value}", value, Limits(warn=2, retrain=4), **more)


# ---------------------------------------------------------------------------------------------------------------------
# What follows from what.


def test_what_may_be_chance_is_told_apart() -> None:
    assert check("drift", 3.0, is_sure=False).may_be_chance
    assert check("calibration", 0.3, off=1.5, apparent=3.3).may_be_chance
    assert not check("calibration", 0.3, off=2.5, apparent=3.3).may_be_chance
    assert not check("drift", 1.0, is_sure=False).may_be_chance


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (check("drift", 1.9), "ok"),
        (check("drift", 2.0), "warn"),
        (check("drift", 4.0), "retrain"),
        (check("drift", 9.0, is_sure=False), "ok"),
        (check("drift", None), "ok"),
        (check("calibration", 0.2, off=5.0), "retrain"),
        (replace(check("drift", 9.0), limits=Limits()), "ok"),
        (replace(check("drift", 9.0), limits=Limits(warn=1)), "warn"),
    ],
)
def test_a_check_is_judged_by_its_limits(one: Check, verdict: str) -> None:
    assert one.verdict == verdict


def test_limits_are_in_order() -> None:
    with pytest.raises(ValidationError, match=r"warn 3 must not be above retrain 2"):
        Limits(warn=3, retrain=2)


def test_no_training_while_the_days_data_is_off() -> None:
    due = check("calibration", 5.0)
    assert Judged((due,)).retrain
    late = Judged((due, check("volume", 3.0, name="rows")))
    assert (late.retrain, late.verdict, late.reasons) == (False, "warn", ["one is 5.0"])
    assert late.held_back == ["rows is 3.0"]
    assert Judged((due, check("freshness", 3.0, name="scores"))).retrain
    assert Judged((check("drift", 1.0),)).verdict == "ok"


def test_of_segments_only_what_is_worse_there_is_told() -> None:
    overall, same, worse = check("drift", 3.0), check("drift", 3.0, segment="DE"), check("drift", 5.0, segment="FR")
    assert Judged((overall, same, worse)).found == [worse, overall]


# ---------------------------------------------------------------------------------------------------------------------
# Freshness and volume, of real tables.


@pytest.fixture
def days(tiny: Tiny) -> Recommender:
    """Days 1 to 5 have come and 4 is prepared; the last has a tenth of the rows, of two users."""
    config = tiny()
    tables = Tables(config.storage)
    for number in range(5):
        rows = range(3 if tiny.day(number) == DAY else 30)
        users, items = ([f"{kind}{n % 5}" for n in rows] for kind in "ui")
        log = pa.table({"user": ["u0", "u1", "u1"] if len(rows) == 3 else users, "item": items})
        tables.replace_day("interactions", tiny.day(number), log)
    tables.replace_day("examples", date(2026, 1, 4), pa.table({"user": ["u0"], "item": ["i0"]}))
    return config


def test_a_thin_day_is_seen_and_a_usual_one_is_not(days: Recommender) -> None:
    tables = Tables(days.storage)
    assert off(volume(days, tables, date(2026, 1, 4))) == {}
    assert off(volume(days, tables, DAY)) == {("volume", "rows", None): "warn", ("volume", "users", None): "warn"}
    assert list(volume(days, tables, date(2026, 1, 3))) == []  # too few days before


def test_a_day_that_did_not_come_is_seen(days: Recommender) -> None:
    tables, champion = Tables(days.storage), Version(3, "run", date(2025, 12, 25), date(2025, 12, 24))
    found = {check.name: check for check in freshness(days, tables, date(2026, 1, 6), champion)}
    assert {name: one.verdict for name, one in found.items()} == {
        "data": "warn",
        "prepared": "warn",
        "scores": "warn",
        "champion": "warn",
    }
    assert found["data"].text == "the newest ingested day is 2026-01-05, 1 day before 2026-01-06"
    assert found["champion"].value == 13
    assert found["scores"].text == "no day is scored yet"
    assert off(freshness(days, tables, date(2026, 1, 7), champion))["freshness", "champion", None] == "retrain"
    assert ("freshness", "data", None) not in off(freshness(days, tables, DAY, champion))


def test_without_a_champion_a_training_is_due(days: Recommender, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.delattr("mlflow.MlflowClient.set_experiment_tag")  # the experiment is made with its tags, at once
    result = json.loads(json.dumps(monitor(days, date(2026, 1, 4)), allow_nan=False))
    assert (result["verdict"], result["retrain"]) == ("retrain", True)
    assert result["reasons"] == ["there is no champion yet"]
    again = monitor(days, date(2026, 1, 4))
    assert again == result | {"run_id": again["run_id"]}
    client = Registry(days).client
    assert client.search_runs([Registry(days).experiment_id]) == []
    experiment = client.get_experiment_by_name("tiny-monitoring")
    assert experiment is not None
    assert experiment.tags["mlflow.note.content"].startswith("A run a day")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == again["run_id"]  # in place of the first
    assert run.info.status == "FINISHED"
    assert (run.data.tags["step"], run.data.tags["retrain"]) == ("monitor", "true")
    assert run.data.metrics["monitor/volume/rows"] == 1.0
    assert run.data.tags["mlflow.note.content"].startswith("**A training is due**: 1 of ")


# ---------------------------------------------------------------------------------------------------------------------
# Drift.


@pytest.fixture
def config(tiny: Tiny) -> Recommender:
    return tiny(monitoring={"min_rows": 500})


def test_nothing_is_found_where_nothing_has_changed(config: Recommender) -> None:
    now, before = said(1), said(2)
    assert off([*drift_of(config, now, before).checks(config), *of_today(config, now)]) == {}


def test_a_drift_is_found_where_it_is(config: Recommender) -> None:
    now = said(1)
    in_search = np.array(now.rows.column("tab").to_pylist()) == "search"
    price = now.rows.column("price").to_numpy() * np.where(in_search, 4.0, 1.0)
    tags = [["music"] if n % 2 else tags for n, tags in enumerate(now.rows.column("tags").to_pylist())]
    moved = said(1, price=price, tags=tags)
    found = drift_of(config, moved, said(2))
    assert set(found.by_segment) == {"home", "search"}
    assert off(found.checks(config)) == {
        ("drift", "price", None): "warn",
        ("drift", "price", "search"): "warn",
        ("drift", "tags", None): "warn",
        ("drift", "tags", "home"): "warn",
        ("drift", "tags", "search"): "warn",
    }


def test_ids_history_and_what_is_ignored_are_not_looked_at(tiny: Tiny) -> None:
    config = tiny(monitoring={"min_rows": 500, "ignore": ["band"]})
    names = {spread.column.name for spread in drift_of(config, said(1), said(2)).overall}
    assert names == {"tab", "tags", "price", "score of click", "score of like"}


def test_few_rows_do_not_count_as_drift(config: Recommender) -> None:
    assert off(drift_of(config, said(1, 40), said(2, 40)).checks(config)) == {}


def test_scores_that_move_make_a_training_due(config: Recommender) -> None:
    now = said(1)
    now.scores["click"][:] = now.scores["click"] ** 0.5
    assert off(drift_of(config, now, said(2)).checks(config))["score_drift", "click", None] == "retrain"


# ---------------------------------------------------------------------------------------------------------------------
# Calibration.


def test_predictions_that_do_not_hold_are_seen_by_segment(config: Recommender) -> None:
    now = said(1)
    in_search = np.array(now.rows.column("tab").to_pylist()) == "search"
    now.scores["click"][in_search] *= 2
    found = off(of_today(config, now))
    assert found["calibration", "click", "search"] == "retrain"
    assert ("calibration", "click", "home") not in found
    assert not [name for _, name, _ in found if name == "like"]


def test_a_ratio_has_to_be_off_for_certain() -> None:
    rng = np.random.default_rng(0)
    p = np.full(20, 0.2)
    few = Rate.of(p, (rng.random(20) < 0.1).astype(float))
    many = Rate.of(np.full(20_000, 0.2), (rng.random(20_000) < 0.1).astype(float))
    assert few.off == 1.0
    assert 1.8 < many.off < many.ratio < 2.2  # type: ignore[operator]
    none = Rate.of(np.full(1000, 0.3), np.zeros(1000))
    assert none.ratio is None
    assert none.off > 10
    assert Rate.of(np.full(1000, 1e-6), np.ones(1000)).off > 10
    assert Rate.of(p, np.full(20, np.nan)).rows == 0


def test_a_label_that_is_not_known_is_left_out(config: Recommender) -> None:
    now = said(1, label_like=np.full(ROWS, np.nan))
    known = {one.rows for one in of_today(config, now) if one.name == "like" and one.segment is None}
    clicked = int(now.rows.column("label_click").to_numpy().sum())
    assert known == {ROWS - clicked}  # without a click there was no like


def served(config: Recommender, examples: list[dict[str, Any]], scores: list[dict[str, Any]]) -> Tables:
    """Tables with the examples of `DAY` and the scores of the day before."""
    tables = Tables(config.storage)
    basic = {"event_day": DAY, "event_time": datetime(2026, 1, 5, tzinfo=UTC), "tab": "home", "label_like": None}
    tables.replace_day("examples", DAY, pa.Table.from_pylist([basic | one for one in examples]))
    basic = {"context": "default", "segment": "a", "score_click": 0.5, "score_like": 0.1}
    tables.replace_day("scores", date(2026, 1, 4), pa.Table.from_pylist([basic | one for one in scores]))
    return tables


def test_scores_meet_what_became_of_them_the_next_day(config: Recommender) -> None:
    tables = served(
        config,
        [
            {"user": "u1", "item": "i1", "label_click": 1.0, "label_like": 1.0},
            {"user": "u1", "item": "i1", "label_click": 0.0},  # shown twice
            {"user": "u1", "item": "i2", "label_click": 1.0, "label_like": 0.0},  # had no score
            {"user": "u2", "item": "i1", "label_click": 0.0, "event_day": date(2026, 1, 3)},  # came in late
        ],
        [
            {"user_id": "u1", "item_id": "i1", "score_click": 0.25, "segment": "b"},
            {"user_id": "u2", "item_id": "i1"},
            {"user_id": "u3", "item_id": "i1"},
        ],
    )
    rows = {task.name: shown(config, tables, DAY, task).sort_by("happened").to_pylist() for task in config.tasks}
    assert rows["click"] == [{"said": 0.25, "segment": "b", "happened": happened} for happened in (0.0, 1.0)]
    assert [row["happened"] for row in rows["like"]] == [0.0, 1.0]
    (overall, of_segment) = (one for one in of_served(config, tables, DAY) if one.name == "click")
    assert (overall.rows, overall.value, of_segment.segment) == (2, 0.5, "b")
    assert list(of_served(config, tables, date(2026, 1, 4))) == []


def test_a_task_that_no_published_score_is_of_is_left_out(config: Recommender) -> None:
    """Also where scores of other days have it."""
    tables = served(config, [{"user": "u1", "item": "i1", "label_click": 1.0, "label_like": 1.0}], [])
    scores = pa.table({"context": ["default"], "segment": ["a"], "user_id": ["u1"], "item_id": ["i1"]})
    day = date(2026, 1, 4)
    tables.replace_day("scores", day, scores.append_column("score_click", pa.array([0.5])))
    assert {one.name for one in of_served(config, tables, DAY)} == {"click"}
    tables.replace_day("scores", day, scores.append_column("score_like", pa.array([0.5])))
    assert {one.name for one in of_served(config, tables, DAY)} == {"like"}


def test_a_row_meets_the_score_of_its_own_context(tiny: Tiny) -> None:
    contexts = {"front": {"tab": "home", "band": "old"}, "found": {"tab": "search", "band": "old"}}
    config = tiny(scoring={"contexts": contexts, "top_n": 3})
    tables = served(
        config,
        [
            {"user": "u1", "item": "i1", "label_click": 1.0},
            {"user": "u1", "item": "i1", "label_click": 0.0, "tab": "search"},
        ],
        [
            {"user_id": "u1", "item_id": "i1", "context": "front", "score_click": 0.9},
            {"user_id": "u1", "item_id": "i1", "context": "found", "score_click": 0.2},
        ],
    )
    rows = shown(config, tables, DAY, config.tasks[0])
    assert sorted((row["said"], row["happened"]) for row in rows.to_pylist()) == [(0.2, 0.0), (0.9, 1.0)]


# ---------------------------------------------------------------------------------------------------------------------
# Experts, and the page.


def test_dead_experts_are_seen(tiny: Tiny) -> None:
    shape = model_config()
    rows = raw_rows(200)
    encoder = Encoder.fit(shape, rows.to_batches())
    model = empty_model(encoder).eval()
    fine = expert_health(tiny(), Ranker(encoder, model), Said(rows, rows.column("country"), {}))
    assert [one.name for one in fine] == ["dead", "busiest"]
    model.gates.bias[:, :2] += 100.0  # the others are never chosen
    found = {one.name: one for one in expert_health(tiny(), Ranker(encoder, model), Said(rows, rows["country"], {}))}
    assert (found["dead"].value, found["dead"].verdict) == (2, "warn")
    assert found["busiest"].value == pytest.approx(2.0, abs=0.2)


def test_the_page_escapes_what_comes_from_data(config: Recommender) -> None:
    bad = "<script>alert(1)</script>"
    judged = Judged((check("drift", 5.0, segment=bad), check("volume", 1.0, name="rows")))
    text = page.render(config, DAY, None, judged, None)
    assert bad not in text
    assert "&lt;script&gt;" in text
    assert "A training is due" in text


@pytest.mark.parametrize(
    ("checks", "words"),
    [
        ((check("drift", 1.0),), "**All is well**: none of 1 checks is off."),
        ((check("drift", 3.0), check("drift", 1.0, name="two")), "**Worth a look**: 1 of 2 checks warn"),
        ((check("drift", 5.0),), "**A training is due**: 1 of 1 checks say so."),
        (
            (check("drift", 5.0), check("volume", 3.0, name="rows")),
            "**A training would be due, but the day's data comes first**: rows is 3.0.",
        ),
    ],
)
def test_the_verdict_in_a_sentence(checks: tuple[Check, ...], words: str) -> None:
    assert page.headline(Judged(checks)).startswith(words)


def test_monitoring_is_there_without_a_word_in_the_yaml(tiny: Callable[..., Recommender]) -> None:
    assert tiny().monitoring == Monitoring()
