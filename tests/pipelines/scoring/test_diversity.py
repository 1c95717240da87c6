from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipelines.scoring.diversity import diversity_of
from recsys_moe.errors import UserError
from tests.pipelines.conftest import Tiny

ITEMS = pa.table(
    {
        "item": ["i1", "i2", "i3", "i4", "i5"],
        "maker": ["b", None, "a", "b", None],
        "price": [2.5, 1.0, float("nan"), 2.5, None],
        "tags": [["x"]] * 5,
        "event_day": ["2026-01-02"] * 5,
        "tab": ["home"] * 5,
    }
)


def scoring(**diversity: Any) -> dict[str, Any]:
    return {"context": {"tab": "home"}, "top_n": 3, "diversity": diversity or None}


@pytest.mark.parametrize(("by", "groups"), [("maker", [0, -1, 1, 0, -1]), ("price", [0, 1, -1, 0, -1])])
def test_items_of_one_value_are_alike_and_those_without_are_like_none(tiny: Tiny, by: str, groups: list[int]) -> None:
    found = diversity_of(tiny(scoring=scoring(by=by, weight=0.4, pool=7)), ITEMS)
    assert found is not None
    assert found.groups.tolist() == groups
    assert (found.weight, found.pool) == (0.4, 7)
    assert diversity_of(tiny(scoring=scoring()), ITEMS) is None


@pytest.mark.parametrize("by", ["color", "tags", "event_day", "tab"])
def test_what_is_no_column_of_items_is_refused(tiny: Tiny, by: str) -> None:
    with pytest.raises(UserError, match=rf"diversity\.by: '{by}' is no .* there is \['item', 'maker', 'price'\]"):
        diversity_of(tiny(scoring=scoring(by=by)), ITEMS)
