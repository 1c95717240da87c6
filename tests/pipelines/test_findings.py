from __future__ import annotations

from typing import Any

import pytest

from pipelines.findings import findings


def evaluation(**changes: Any) -> dict[str, Any]:
    """A version with nothing wrong, changed at the top."""
    own = {"auc": 0.74, "auc_low": 0.73, "auc_high": 0.75, "calibration": 1.02, "rows": 8000, "positives": 1500}
    even = {"auc": {"difference": 0.001, "low": -0.004, "high": 0.006}}
    found: dict[str, Any] = {
        "overall": {
            "model": {"click": own, "like": own | {"calibration": 0.97}},
            "champion": {"click": own | {"auc": 0.9}},
            "best attainable": {"click": own | {"auc": 0.99}},
            "popularity": {"click": own | {"auc": 0.61}, "like": own | {"auc": 0.60}},
            "boosting": {"click": own | {"auc": 0.72}, "like": own | {"auc": 0.70}},
        },
        "against_champion": {"click": {"overall": even, "DE": even, "FR": even}},
        "cold": {"click": {"cold users": own | {"auc": 0.73, "rows": 900, "positives": 90}, "others": own}},
    }
    return found | changes


EXPERTS = {
    "union_load": {"routed 0": 0.3, "routed 1": 0.25, "routed 2": 0.25, "routed 3": 0.2},
    "knock_out": {
        "loss": {"click": 0.5},
        "rise": {"shared 0": {"click": 0.02}, "routed 3": {"click": 0.001}, "alone": {"click": None}},
        "high": {"shared 0": {"click": 0.03}, "routed 3": {"click": 0.002}, "alone": {"click": None}},
    },
}


def texts(evaluated: dict[str, Any] | None = None, experts: dict[str, Any] | None = None, **tags: str) -> list[str]:
    return [finding.text for finding in findings(evaluated, experts, tags)]


def test_where_nothing_is_wrong_it_says_what_is_well() -> None:
    assert texts(evaluation(), EXPERTS) == [
        "**Beats every baseline in every task**; closest: on click, boosting has AUC 0.7200 and this version 0.7400.",
        "**No segment is clearly better or worse than with the champion**; the most: DE, click AUC +0.0010 against the "
        "champion (95 % interval -0.0040 to +0.0060).",
        "**Calibrated**: tasks are predicted 0.97 to 1.02 times as often as they happen.",
        "**All 4 routed experts are used**: 20.0% to 30.0% of the load each, 25.0% is fair.",
        "**Most missed expert**: without shared 0, the loss of click rises by 4.0%.",
        "**Cold users**: click AUC 0.7300 on 900 rows, 0.7400 on the others.",
    ]


@pytest.mark.parametrize(("auc", "doubt"), [(0.78, ""), (0.745, ", inside its interval")])
def test_a_baseline_that_is_better_comes_first(auc: float, doubt: str) -> None:
    evaluated = evaluation()
    evaluated["overall"]["boosting"]["like"] = {"auc": auc}
    found = texts(evaluated, EXPERTS)[0]
    assert found == f"**Loses to a baseline**: on like, boosting has AUC {auc:.4f} and this version 0.7400{doubt}."


def test_segments_that_lost_and_won_for_certain_with_their_intervals() -> None:
    lost = {"auc": {"difference": -0.02, "low": -0.03, "high": -0.01}}
    won = {"auc": {"difference": 0.04, "low": 0.02, "high": 0.06}}
    doubtful = {"auc": {"difference": -0.2, "low": -0.5, "high": 0.1}}
    small = {"auc": {"difference": -0.2, "low": -0.4, "high": -0.001}}
    parts = {"overall": lost, "DE": lost, "FR": won, "IT": doubtful, "ES": small}
    first, second = texts(evaluation(against_champion={"click": parts}))[:2]
    assert first.startswith("**Worse for a segment**: DE, click AUC -0.0200")
    assert second.startswith("**Better for a segment**: FR, click AUC +0.0400")
    assert "+0.0200 to +0.0600" in second


@pytest.mark.parametrize(("calibration", "words"), [(1.5, "too often, 1.50 times"), (0.5, "too rarely, 0.50 times")])
def test_calibration_that_is_off(calibration: float, words: str) -> None:
    evaluated = evaluation()
    evaluated["overall"]["model"]["like"] = {"auc": 0.74, "calibration": calibration}
    assert texts(evaluated)[0] == f"**Calibration is off**: like is predicted {words} as often as it happens."


def test_idle_and_dominating_experts() -> None:
    load = {"routed 0": 0.94, "routed 1": 0.05, "routed 2": 0.008, "routed 3": 0.002}
    idle, dominating, _ = texts(None, EXPERTS | {"union_load": load})
    assert idle == "**Idle experts**: routed 2, routed 3, under a tenth of a fair share each."
    assert dominating == "**One expert dominates**: routed 0 has 94% of the load, a fair share is 25%."


def test_an_expert_that_does_harm_for_certain() -> None:
    worth = {"loss": {"click": 0.5}, "rise": {"a": {"click": -0.01}}, "high": {"a": {"click": -0.002}}}
    assert (
        texts(None, {"knock_out": worth})[0] == "**An expert does harm**: without a, the loss of click falls by 2.00%."
    )


@pytest.mark.parametrize(("rows", "is_first"), [(9000, True), (90, False)])
def test_cold_users_are_worth_saying_where_the_gap_is_wide_and_clear(rows: int, is_first: bool) -> None:
    cold = {"click": {"cold users": {"auc": 0.65, "rows": rows, "positives": rows // 5}, "others": {"auc": 0.74}}}
    said = f"**Cold users**: click AUC 0.6500 on {rows:,} rows, 0.7400 on the others."
    assert (texts(evaluation(cold=cold))[0] == said) == is_first


def test_a_leak_is_above_all() -> None:
    assert texts(evaluation(), EXPERTS, leaks="price ranks click")[0].endswith("price ranks click")


def test_what_is_not_defined_is_passed_over() -> None:
    nothing = dict.fromkeys(("auc", "auc_low", "auc_high", "calibration"))
    parts = {"overall": {"auc": {"difference": None, "low": None, "high": None}}, "DE": {}}
    evaluated = {
        "overall": {"model": {"click": nothing, "price": {"rmse": 1.0}}, "popularity": {"click": nothing}},
        "against_champion": {"click": parts},
        "cold": {"click": {"cold users": nothing, "others": nothing}},
    }
    assert texts(evaluated, {"union_load": {"routed 0": 1.0}}) == []
    assert texts() == []
