"""The gate's rules, one by one, on rows that leave no doubt; how often it is right stands in test_gate_simulated.py."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines import paired
from pipelines.config.steps import Gate, Guard
from pipelines.gate import Comparison, Mode, PairedRows, TaskRows, Verdict, compare, judge
from pipelines.held_out import Segments
from recsys_moe import metrics

Floats = NDArray[np.float64]

USERS = np.repeat(np.arange(400), 10)
SEGMENTS = USERS % 3
NAMES = ("unknown", "home", "search")
RANDOM = np.random.default_rng(0)
LABELS = (RANDOM.random(len(USERS)) < 0.3).astype(float)


def model(quality: float, seed: int = 1) -> Floats:
    """Scores that follow the labels by so much, with the mean of the labels."""
    logit = quality * (LABELS - 0.3) + np.random.default_rng(seed).normal(0, 1, len(LABELS))
    said: Floats = 1 / (1 + np.exp(-logit))
    return said * (LABELS.mean() / said.mean())


GOOD, BETTER = model(1.0), model(1.5)


def rows(champion: Floats, challenger: Floats, **others: TaskRows) -> PairedRows:
    return PairedRows(USERS, SEGMENTS, NAMES, {"click": TaskRows("binary", LABELS, champion, challenger), **others})


def verdict(of: PairedRows, mode: Mode, **gate: Any) -> Verdict:
    rules = Gate(**gate)
    return judge(rules, compare(rules, "click", of), mode, "champion 3")


def test_a_better_challenger_is_promoted_in_both_modes() -> None:
    for mode in ("challenge", "refresh"):
        found = verdict(rows(GOOD, BETTER), mode)
        assert found.promoted
        assert found.reasons[0].startswith("click/auc is 0.8")
        assert "that of champion 3 0.7" in found.reasons[0]
        assert [line.segment for line in found.table] == ["overall", *NAMES]


def test_an_equal_challenger_is_a_refresh_and_no_challenge() -> None:
    nearly = rows(GOOD, GOOD + np.random.default_rng(2).normal(0, 1e-4, len(GOOD)))
    assert verdict(nearly, "refresh").promoted
    kept = verdict(nearly, "challenge")
    assert not kept.promoted
    assert kept.reasons[0].endswith("a challenger must be certainly better")


def test_the_very_same_scores_are_a_refresh_and_no_challenge() -> None:
    assert verdict(rows(GOOD, GOOD), "refresh").promoted
    assert not verdict(rows(GOOD, GOOD), "challenge").promoted


def test_a_refresh_must_lose_less_than_delta() -> None:
    assert not verdict(rows(BETTER, GOOD), "refresh", segments=()).promoted
    assert verdict(rows(BETTER, GOOD), "refresh", segments=(), delta=0.3).promoted


@pytest.mark.parametrize(("metric", "expected"), [("log_loss", metrics.log_loss), ("auc", metrics.auc)])
def test_the_difference_is_that_of_the_metric(metric: Any, expected: Any) -> None:
    found = compare(Gate(metric=metric, segments=()), "click", rows(GOOD, BETTER)).primary
    difference = expected(LABELS, BETTER) - expected(LABELS, GOOD)
    assert found.line.difference == pytest.approx(difference)
    assert found.gain > 0
    assert found.line.verdict == "better"
    assert found.line.low < difference < found.line.high


def uneven() -> PairedRows:
    """Better, but for the rows of `home`."""
    return rows(GOOD, np.where(SEGMENTS == 1, model(0.3), model(2.5)))


def test_a_guarded_segment_blocks() -> None:
    found = verdict(uneven(), "challenge")
    assert not found.promoted
    assert found.reasons[0].startswith("click/auc in segment home is 0.5")
    assert {line.segment: line.verdict for line in found.table}["home"] == "blocks"
    assert found.table[0].verdict == "better"


def test_a_segment_that_is_not_guarded_does_not() -> None:
    assert verdict(uneven(), "challenge", segments=("search",)).promoted


def test_a_guarded_segment_that_loses_less_than_delta_does_not() -> None:
    assert verdict(uneven(), "challenge", delta=0.4).promoted


def test_a_segment_with_too_few_positives_is_reported_only() -> None:
    found = verdict(uneven(), "challenge", min_positives=int(LABELS[SEGMENTS == 1].sum()) + 30)
    assert {line.segment: (line.role, line.verdict) for line in found.table}["home"] == ("reported", "too few")


def test_a_guarded_segment_without_rows_is_told() -> None:
    found = verdict(rows(GOOD, BETTER), "challenge", segments=("hone",))
    assert found.promoted
    line = found.table[1]
    assert (line.segment, line.rows, line.verdict) == ("hone", 0, "no rows")


def test_p_is_adjusted_after_holm() -> None:
    found = compare(Gate(), "click", uneven())
    raw, adjusted = [one.chance for one in found.guards], [one.line.p for one in found.guards]
    order = np.argsort(raw)
    by_hand = np.maximum.accumulate([min(1.0, raw[place] * (3 - rank)) for rank, place in enumerate(order)])
    assert [adjusted[place] for place in order] == pytest.approx(by_hand.tolist())


def test_a_guarded_metric_of_another_task_blocks() -> None:
    like = TaskRows("binary", LABELS, BETTER, GOOD)
    guards = (Guard(task="like"),)
    found = verdict(rows(GOOD, BETTER, like=like), "challenge", guards=guards)
    assert not found.promoted
    assert found.reasons[0].startswith("like/auc is")
    assert verdict(rows(GOOD, BETTER, like=like), "challenge", guards=(Guard(task="like", delta=0.4),)).promoted


def test_a_regression_is_judged_by_its_rmse() -> None:
    value = LABELS + np.random.default_rng(3).normal(0, 1, len(LABELS))
    near, far = value + np.random.default_rng(4).normal(0, 0.5, len(value)), value + 0.9
    of = {"click": TaskRows("regression", value, far, near)}
    found = verdict(PairedRows(USERS, SEGMENTS, NAMES, of), "challenge")
    assert found.promoted
    assert found.table[0].metric == "click/rmse"
    assert found.table[0].positives is None
    assert found.table[0].difference == pytest.approx(np.sqrt(np.mean((near - value) ** 2)) - 0.9)
    back = {"click": TaskRows("regression", value, near, far)}
    assert not verdict(PairedRows(USERS, SEGMENTS, NAMES, back), "refresh").promoted


@pytest.mark.parametrize(("factor", "inside"), [(0.7, False), (0.9, True), (1.2, True), (1.3, False)])
def test_calibration_stays_inside_its_band(factor: float, inside: bool) -> None:
    found = verdict(rows(GOOD, BETTER * factor), "challenge")
    assert found.promoted is inside
    assert f"{factor:.2f}, {'inside' if inside else 'outside'} 0.8 to 1.25" in "; ".join(found.reasons)
    assert verdict(rows(GOOD, BETTER * factor), "challenge", calibration=None).promoted


def test_a_dead_expert_keeps_a_version_out() -> None:
    found = compare(Gate(), "click", rows(GOOD, BETTER))
    kept = judge(Gate(), found, "challenge", dead=("routed 3",))
    assert (kept.promoted, kept.reasons) == (False, ("hardly a row runs the routed experts routed 3",))


def test_too_few_positives_judge_nothing() -> None:
    kept = verdict(rows(GOOD, BETTER), "challenge", min_positives=int(LABELS.sum()) + 1)
    assert not kept.promoted
    assert "click/auc cannot be judged" in kept.reasons[0]


def test_rows_without_a_label_or_a_score_count_for_nobody() -> None:
    labels, champion = LABELS.copy(), GOOD.copy()
    labels[:100], champion[100:150] = np.nan, np.nan
    of = PairedRows(USERS, SEGMENTS, NAMES, {"click": TaskRows("binary", labels, champion, BETTER)})
    line = compare(Gate(segments=()), "click", of).primary.line
    assert line.rows == len(LABELS) - 150
    assert line.challenger == pytest.approx(metrics.auc(LABELS[150:], BETTER[150:]))


def test_the_same_rows_give_the_same_table() -> None:
    first, again = (compare(Gate(), "click", rows(GOOD, BETTER)).table for _ in range(2))
    assert first == again


def test_one_class_alone_is_no_metric_and_no_reason_to_promote() -> None:
    of = PairedRows(USERS, SEGMENTS, NAMES, {"click": TaskRows("binary", np.ones(len(USERS)), GOOD, BETTER)})
    found: Comparison = compare(Gate(min_positives=1), "click", of)
    assert np.isnan(found.primary.line.difference)
    assert not judge(Gate(), found, "refresh").promoted


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_users_judge_nothing(count: int) -> None:
    of = replace(rows(GOOD, BETTER), users=USERS % count)
    for mode in ("challenge", "refresh"):
        kept = verdict(of, mode)
        assert not kept.promoted
        assert "click/auc cannot be judged: the rows are of fewer than 10 users" in kept.reasons[0]
    assert verdict(replace(of, users=USERS % 100), "challenge").promoted


def test_a_segment_of_few_users_is_reported_only() -> None:
    of = uneven()
    users = np.where(SEGMENTS == 1, -1, USERS)
    line = {line.segment: line for line in verdict(replace(of, users=users), "challenge").table}["home"]
    assert (line.role, line.verdict) == ("reported", "too few")
    assert line.rows > 1000


def test_a_guarded_metric_with_too_few_positives_is_reported_only() -> None:
    few = np.zeros(len(USERS))
    few[0] = 1.0
    first = np.where(few == 1, 0.9, model(1.0))
    like = TaskRows("binary", few, first, 1 - first)
    found = verdict(rows(GOOD, BETTER, like=like), "challenge", guards=(Guard(task="like"),))
    assert found.promoted
    line = next(line for line in found.table if line.metric == "like/auc")
    assert (line.role, line.verdict, line.positives) == ("reported", "too few", 1)


def test_a_guarded_segment_that_the_version_does_not_know_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(task="click", segments=("home", "hone"))
    held_out: Any = SimpleNamespace(
        config=SimpleNamespace(primary_task="click", evaluation=SimpleNamespace(gate=gate)),
        labels={"click": LABELS},
        users=USERS,
        segments=lambda ranker: Segments(NAMES, SEGMENTS.astype(np.int32)),
        kind=lambda task: "binary",
    )
    one: Any = SimpleNamespace(ranker=None, version=SimpleNamespace(number=4))
    monkeypatch.setattr(paired, "scores_of", lambda ranker, rows: {"click": GOOD})
    found = paired.Pair(held_out, one, one, USERS < 300).rows()
    assert len(found.users) == 3000
    assert "'hone' is no segment of version 4, so it is not guarded; there is 'unknown', 'home'" in caplog.text
