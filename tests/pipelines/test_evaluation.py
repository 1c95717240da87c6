"""What evaluation.json says of models whose scores are given."""

from __future__ import annotations

import json
import posixpath
from typing import Any

import numpy as np
import pytest

from pipelines import intervals
from pipelines.evaluate import _plain
from pipelines.evaluation import evaluation_of, losing_to, plain
from pipelines.held_out import HeldOut
from pipelines.predictions import Groups
from recsys_moe.user_draws import FEWEST_USERS, UserDraws
from tests.pipelines.conftest import Tiny
from tests.pipelines.test_held_out import held_out_of, recommender

__all__ = ["recommender"]  # a fixture
TASKS = ("click", "like", "watched")


@pytest.fixture
def held_out(recommender: Any) -> HeldOut:
    return held_out_of(recommender)


def says(held_out: HeldOut, noise: float) -> dict[str, np.ndarray]:
    """The labels, blurred."""
    draw = np.random.default_rng(0)
    return {
        task: np.clip(np.nan_to_num(held_out.labels[task]) + noise * draw.normal(size=len(held_out.users)), 0, 1)
        for task in TASKS
    }


def halves(held_out: HeldOut) -> Groups:
    return Groups.of(["first", "second"], np.arange(len(held_out.users)) // 200)


def test_everyone_is_measured_on_the_same_rows(held_out: HeldOut) -> None:
    models = {"model": says(held_out, 1.0), "champion": says(held_out, 2.0), "popularity": says(held_out, 4.0)}
    found = evaluation_of(held_out, models, halves(held_out))
    assert (found["rows"], found["users"]) == (400, len(set(held_out.users.tolist())))
    assert found["days"] == [Tiny.day(2).isoformat(), Tiny.day(3).isoformat()]
    assert found["overall"].keys() == found["by_segment"].keys() == models.keys()
    assert found["intervals"] == {"draws": 1000, "rows": 400, "users": found["users"]}
    for name in models:
        assert {of["rows"] for of in found["by_segment"][name]["click"].values()} == {200}
    assert found["cold"]["like"].keys() == {"cold users", "cold items", "others"}
    assert "conditional_auc" in found["overall"]["model"]["like"]
    assert json.loads(json.dumps(plain(found), allow_nan=False))


def test_intervals_are_those_of_draws_of_users(held_out: HeldOut) -> None:
    models = {"model": says(held_out, 1.0), "champion": says(held_out, 2.0)}
    found = evaluation_of(held_out, models, halves(held_out))
    draws, labels = UserDraws.of(held_out.users), held_out.labels["click"]
    ours, theirs = (draws.auc(labels, models[name]["click"]) for name in models)
    own = found["overall"]["model"]["click"]
    assert [own["auc_low"], own["auc_high"]] == pytest.approx(np.percentile(ours[1:], [2.5, 97.5]).tolist())
    difference = found["against_champion"]["click"]["overall"]["auc"]
    assert difference["difference"] == pytest.approx(ours[0] - theirs[0])
    assert [difference["low"], difference["high"]] == pytest.approx(
        np.percentile((ours - theirs)[1:], [2.5, 97.5]).tolist()
    )
    assert difference["low"] > 0
    for part in ("overall", "first", "second"):
        assert found["against_champion"]["watched"][part]["rmse"]["high"] < 0, "an error is better where it is lower"
    segment = found["by_segment"]["champion"]["like"]["second"]
    assert segment["gauc_low"] < segment["gauc"] < segment["gauc_high"]


def test_a_model_is_no_better_than_itself(held_out: HeldOut) -> None:
    models = {"model": says(held_out, 1.0), "champion": says(held_out, 1.0)}
    for parts in evaluation_of(held_out, models, halves(held_out))["against_champion"].values():
        for of in parts.values():
            assert all(set(metric.values()) == {0.0} for metric in of.values())


def test_without_a_champion_there_is_no_difference(held_out: HeldOut) -> None:
    assert "against_champion" not in evaluation_of(held_out, {"model": says(held_out, 1.0)}, halves(held_out))


def test_of_many_rows_those_of_some_users_are_drawn_from(held_out: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"model": says(held_out, 1.0)}
    whole = evaluation_of(held_out, models, halves(held_out))["overall"]["model"]["click"]
    monkeypatch.setattr(intervals, "MOST_ROWS", 300)
    found = evaluation_of(held_out, models, halves(held_out))
    few = found["overall"]["model"]["click"]
    assert 200 < found["intervals"]["rows"] <= 300
    assert found["intervals"]["users"] < found["users"]
    assert few["auc"] == whole["auc"]
    assert few["auc_low"] < few["auc"] < few["auc_high"]


def test_only_the_largest_segments_have_intervals(held_out: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "LARGEST", 1)
    groups = Groups.of(["small", "large"], (np.arange(400) > 150).astype(np.int32))
    by_segment = evaluation_of(held_out, {"model": says(held_out, 1.0)}, groups)["by_segment"]["model"]["click"]
    assert "auc_low" in by_segment["large"]
    assert "auc_low" not in by_segment["small"]


def test_few_users_have_no_interval(held_out: HeldOut) -> None:
    groups = Groups.of(["few", "others"], (held_out.users >= FEWEST_USERS - 1).astype(np.int32))
    models = {"model": says(held_out, 1.0), "champion": says(held_out, 2.0)}
    found = plain(evaluation_of(held_out, models, groups))
    few = found["by_segment"]["model"]["click"]["few"]
    assert few["users"] == FEWEST_USERS - 1
    assert (few["auc_low"], few["auc_high"]) == (None, None)
    difference = found["against_champion"]["click"]["few"]["auc"]
    assert difference["difference"] == few["auc"] - found["by_segment"]["champion"]["click"]["few"]["auc"]
    assert difference["low"] is None


@pytest.mark.parametrize(
    ("gate", "lost"),
    [
        ({}, ["boosting"]),
        ({"metric": "log_loss"}, ["dense"]),
        ({"task": "watched"}, ["boosting", "dense"]),
    ],
)
def test_baselines_that_are_better_are_named(tiny: Tiny, gate: dict[str, str], lost: list[str]) -> None:
    tasks = [{"name": "click", "label": "clicked"}, {"name": "watched", "label": "watched", "kind": "regression"}]
    config = tiny(tasks=tasks, evaluation={"gate": gate})

    def of(auc: float, log_loss: float, rmse: float) -> dict[str, dict[str, float]]:
        return {"click": {"auc": auc, "log_loss": log_loss}, "watched": {"rmse": rmse}}

    overall = {
        "model": of(0.7, 0.5, 2.0),
        "champion": of(0.9, 0.1, 1.0),
        "best attainable": of(0.95, 0.1, 1.0),
        "popularity": of(0.6, 0.6, 3.0),
        "boosting": of(0.71, 0.5, 1.5),
        "dense": of(float("nan"), 0.4, 1.5),
    }
    assert losing_to(config, overall) == lost


def test_a_task_that_the_version_does_not_have_is_left_out(held_out: HeldOut) -> None:
    models = {"model": {"watched": says(held_out, 1.0)["watched"]}}
    found = evaluation_of(held_out, models, halves(held_out))
    assert [*found["overall"]["model"]] == ["watched"]
    assert losing_to(held_out.config, found["overall"] | {"popularity": {"click": {"auc": 0.9}}}) == []


@pytest.mark.parametrize("segment", ["", ".", "..", "a/b", "x" * 300])
def test_any_segment_names_a_metric(segment: str) -> None:
    name = f"test/click/normalised_entropy/{_plain(segment)}"
    assert posixpath.normpath(name) == name
    assert len(name) <= 250
