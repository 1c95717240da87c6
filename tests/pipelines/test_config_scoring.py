"""The YAML's `scoring`: short ways to say it, and what it answers to a mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import AllItems, Popular
from recsys_moe.errors import UserError
from tests.pipelines.test_config import read

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key inside": ({"scoring": {"topn": 5}}, r"scoring\.topn: unknown key"),
    "power of no task": ({"scoring": {"powers": {"buy": 1}}}, r"scoring\.powers\.buy: 'buy' is no task"),
    "power of what may be negative": (
        {
            "tasks": [{"name": "click", "label": "clicked"}, {"name": "time", "label": "t", "kind": "regression"}],
            "scoring": {"powers": {"click": 1, "time": 0.5}},
        },
        r"scoring\.powers\.time: 'time' is no yes or no, and its value may be negative; use weights",
    ),
    "powers of nothing": ({"scoring": {"powers": {"click": 0}}}, r"scoring\.powers: all are 0"),
    "weights and powers": (
        {"scoring": {"weights": {"click": 1}, "powers": {"click": 1}}},
        r"scoring: give either weights .* or powers",
    ),
    "a pool shorter than a list": (
        {"scoring": {"diversity": {"by": "i", "pool": 5}, "top_n": 6}},
        r"scoring: diversity\.pool 5 must be at least top_n 6",
    ),
    "weight of no task": ({"scoring": {"weights": {"buy": 1}}}, r"scoring\.weights\.buy: 'buy' is no task"),
    "one moment and several": (
        {"scoring": {"context": {"tab": 1}, "contexts": {"home": {"tab": 1}}}},
        "scoring: give either context",
    ),
    "weight that is no number": (
        {"scoring": {"weights": {"click": float("inf")}}},
        r"scoring\.weights\.click: .*finite",
    ),
    "weights of nothing": ({"scoring": {"weights": {"click": 0}}}, r"scoring\.weights: all are 0"),
    "context of no feature": (
        {"scoring": {"context": {"tab": 1}}},
        r"scoring\.context: \['tab'\] is read by no feature",
    ),
    "one of several contexts": (
        {"scoring": {"contexts": {"home": {"tab": 1}}}},
        r"scoring\.contexts\.home: \['tab'\] is read by no feature",
    ),
    "source of no kind": ({"scoring": {"candidates": {"source": "best"}}}, r"scoring\.candidates\.0: .*'best'"),
    "no source": ({"scoring": {"candidates": []}}, r"scoring\.candidates: name at least one source"),
    "all and others": (
        {"scoring": {"candidates": [{"source": "all"}, {"source": "popular"}]}},
        r"scoring\.candidates: `all` has every item",
    ),
    "a source twice": (
        {"scoring": {"candidates": [{"limit": 3}, {"source": "popular"}]}},
        r"scoring\.candidates: 'popular' is there twice",
    ),
    "a rule of nothing": ({"scoring": {"rules": [{"column": "i"}]}}, r"scoring\.rules\.0: say what the values must be"),
    "available of nothing": ({"scoring": {"available": {}}}, r"scoring\.available: name the column"),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, **changes)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_one_source_of_candidates_or_several(tmp_path: Path) -> None:
    assert read(tmp_path).scoring.candidates == (Popular(),)
    assert read(tmp_path, scoring={"candidates": {"limit": 5}}).scoring.candidates == (Popular(limit=5),)
    assert read(tmp_path, scoring={"candidates": [{"source": "all"}]}).scoring.candidates == (AllItems(),)


def test_paths_are_relative_to_the_yaml(tmp_path: Path) -> None:
    own = {"source": "table", "rows": {"path": "own/{ds}.csv"}}
    scoring = read(tmp_path, scoring={"users": {"path": "some.csv"}, "candidates": [own]}).scoring
    assert scoring.users is not None
    assert scoring.users.path == str(tmp_path / "configs" / "some.csv")
    assert scoring.candidates[0].rows.path == str(tmp_path / "configs" / "own" / "{ds}.csv")
