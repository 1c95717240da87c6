from __future__ import annotations

import pytest

from recsys_moe.training.schedule import is_over, rate_share, validation_steps


def test_rates_rise_stay_and_fall() -> None:
    shares = [rate_share(step, 100, 10, 0.5) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[10:50] == [1.0] * 40
    assert shares[75] == pytest.approx(0.5)
    assert shares[99] == pytest.approx(0.02)
    assert rate_share(120, 100, 10, 0.5) == shares[99]  # told too few steps
    assert rate_share(99, 100, 10, 0.0) == 1.0
    assert rate_share(0, 100, 1, 0.0) == 1.0
    assert rate_share(4, 100, 50, 0.0) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("steps", "validations", "expected"),
    [(10, 1, {10}), (10, 2, {5, 10}), (10, 3, {4, 7, 10}), (2, 5, {1, 2}), (1, 1, {1})],
)
def test_validations_are_evenly_spaced_and_the_last_is_at_the_end(
    steps: int, validations: int, expected: set[int]
) -> None:
    assert validation_steps(steps, validations) == expected


@pytest.mark.parametrize(
    ("losses", "patience", "over"),
    [
        ([], 1, False),
        ([2.0], 1, False),
        ([2.0, 1.0], 1, False),
        ([1.0, 2.0], 1, True),
        ([1.0, 1.0], 1, True),
        ([3.0, 1.0, 2.0], 2, False),
        ([3.0, 1.0, 2.0, 1.5], 2, True),
        ([3.0, 2.0, 1.0, 0.5], 2, False),
        ([1.0, 2.0, 3.0], None, False),
    ],
)
def test_it_is_over_when_the_last_ones_are_no_lower(losses: list[float], patience: int | None, over: bool) -> None:
    assert is_over(losses, patience) is over
