from __future__ import annotations

import pytest

from recsys_moe.compute import chosen_experts, multiplications, widened
from recsys_moe.config import Experts, Feature, ModelConfig, Segments, Task


def shape_of(experts: Experts, tasks: int = 3, segments: Segments | None = None) -> ModelConfig:
    return ModelConfig(
        features=(Feature(name="x", kind="numeric", side="user"),),
        tasks=tuple(Task(name=f"task {n}") for n in range(tasks)),
        experts=experts,
        segments=segments,
        towers=(5,),
    )


def test_multiplications_of_a_row_are_counted() -> None:
    shared = Experts(shared=2, per_segment=0, routed=0, hidden=(10, 4))
    one = 100 * 10 + 10 * 4
    towers = 3 * (4 * 5 + 5)
    assert multiplications(shape_of(shared), 100) == 2 * one + towers
    routed = Experts(shared=0, per_task=1, per_segment=0, routed=16, top_k=2, hidden=(10, 4))
    chosen = 16 * (1 - (14 / 16) ** 3)
    assert chosen_experts(routed, 3) == pytest.approx(chosen)
    assert multiplications(shape_of(routed), 100) == pytest.approx((3 + chosen) * one + towers)


def test_layers_are_widened_until_a_row_costs_enough() -> None:
    shape = shape_of(Experts(shared=1, per_segment=0, routed=0, hidden=(64, 32)))
    wide = widened(shape, 100, wanted=5 * multiplications(shape, 100))
    assert wide.experts.hidden[0] == 2 * wide.experts.hidden[1]
    assert 5.0 <= multiplications(wide, 100) / multiplications(shape, 100) < 5.5
    assert widened(shape, 100, wanted=1.0) == shape
