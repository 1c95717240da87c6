"""One score of several tasks, against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_moe.errors import UserError
from recsys_moe.scoring import Blend

chances = st.lists(st.floats(2**-100, 1.0, width=32), min_size=1, max_size=70)


@given(click=chances, weight=st.floats(0.0, 10.0), power=st.floats(0.0, 5.0))
def test_sums_and_products_are_those_of_plain_numbers(click: list[float], weight: float, power: float) -> None:
    like = click[::-1]
    by_task = {"click": np.array(click, np.float32), "like": np.array(like, np.float32), "buy": np.ones(len(click))}
    summed = Blend({"click": weight, "like": 2.0}).scores(by_task)
    assert summed == pytest.approx([weight * one + 2.0 * other for one, other in zip(click, like, strict=True)])
    product = Blend({"click": power, "like": 2.0}, "product").scores(by_task)
    expected = [one**power * other**2.0 for one, other in zip(click, like, strict=True)]
    assert product == pytest.approx(expected, rel=1e-12, abs=0)
    assert product.min() > 0, "in single precision it would be none"


@pytest.mark.parametrize("kind", ["sum", "product"])
@given(chance=st.floats(2**-20, 1.0, width=32), weight=st.floats(0.1, 3.0), rows=st.integers(1, 70))
def test_pairs_that_are_alike_have_equal_scores(kind: str, chance: float, weight: float, rows: int) -> None:
    grid = np.full((rows, 3, 2), chance, np.float32)
    scores = Blend({"a": weight, "b": 0.7}, "product" if kind == "product" else "sum").scores(
        {"a": grid[..., 0], "b": grid[..., 1]}
    )
    assert len(np.unique(scores)) == 1
    assert scores.shape == (rows, 3)


def test_a_task_that_the_model_lacks_is_told() -> None:
    with pytest.raises(UserError, match=r"made of task 'buy', which the model does not have \(it has \['click'\]\)"):
        Blend({"click": 1.0, "buy": 2.0}).scores({"click": np.ones(3)})
