from __future__ import annotations

import numpy as np
import pytest

from pipelines.score_bins import ScoreBins


def drawn(rows: int = 50_000) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated predictions and what came of them."""
    rng = np.random.default_rng(0)
    said = rng.beta(1, 12, rows)
    return (rng.random(rows) < said).astype(float), said


def test_blocks_add_up_to_all_rows() -> None:
    labels, said = drawn()
    whole, blocks = ScoreBins(), ScoreBins()
    whole.add(labels, said)
    for start in range(0, len(said), 7_000):
        blocks.add(labels[start : start + 7_000], said[start : start + 7_000])
    assert (whole.rows == blocks.rows).all()
    assert whole.rows.sum() == len(said)
    assert whole.positives.sum() == labels.sum()
    assert blocks.predicted.sum() == pytest.approx(said.sum())


def test_groups_have_about_equally_many_rows_and_what_was_seen_of_them() -> None:
    labels, said = drawn()
    bins = ScoreBins()
    bins.add(labels, said)
    groups = bins.groups(10)
    order = np.argsort(said)
    by_hand = [said[part].mean() for part in np.array_split(order, 10)]
    assert groups.predicted[1:-1] == pytest.approx(by_hand[1:-1], rel=0.1)
    inside = (groups.low < groups.predicted) & (groups.predicted < groups.high)
    assert inside.sum() >= 8
    assert (groups.low <= groups.observed).all()
    assert (groups.observed <= groups.high).all()


def test_wilson_of_five_in_twenty() -> None:
    """By hand: (5 + z²/2) / (20 + z²) ± z·sqrt(20·0.25·0.75 + z²/4) / (20 + z²) with z = 1.96."""
    bins = ScoreBins()
    bins.add(np.r_[np.ones(5), np.zeros(15)], np.full(20, 0.3))
    groups = bins.groups()
    assert (groups.low[0], groups.high[0]) == (pytest.approx(0.1119, abs=1e-4), pytest.approx(0.4687, abs=1e-4))


def test_unknown_rows_are_left_out_and_extremes_are_kept() -> None:
    bins = ScoreBins()
    bins.add(np.array([np.nan, 1.0, 0.0, 1.0]), np.array([0.5, np.nan, 0.0, 1.0]))
    assert bins.rows.sum() == 2
    assert (bins.rows[0], bins.rows[-1]) == (1, 1)


def test_no_rows_are_no_groups() -> None:
    assert len(ScoreBins().groups().predicted) == 0
