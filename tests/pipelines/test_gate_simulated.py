"""The gate on simulated pairs of models whose truth is known: how often it is right.

A row's label is drawn from a logit made of its user's taste and of what is particular to the row. Both models see that
logit through an error that they share, as models of the same features do, and one of their own, half of it the user's:
a model that misjudges a user does so in all of the user's rows. The logits of two equal models correlate by 0.87, less
than those of two seeds of one model usually do, which makes the gate's task harder. Scores are calibrated: the mean of
the label given what the model sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.config.steps import Gate
from pipelines.gate import Comparison, Mode, PairedRows, TaskRows, compare, judge

USERS, ROWS, SEGMENTS = 20_000, 10, 10
RATE, TASTE, PARTICULAR, SHARED_ERROR = -3.2, 0.7, 0.7, 0.4
PLAIN, BETTER, WORSE = 0.4, 0.202, 0.677
"""Sizes of a model's own error: of a usual one, one whose AUC is 0.01 higher, and one whose AUC is 0.02 lower."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Rows, and what a model may see of them before its own error."""

    random: np.random.Generator
    users: int

    @cached_property
    def user(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(self.users), ROWS)

    @property
    def segment(self) -> NDArray[np.int64]:
        return self.user % SEGMENTS

    @cached_property
    def signal(self) -> Floats:
        taste = self.random.normal(0, TASTE, self.users)[self.user]
        return taste + self.random.normal(0, PARTICULAR, len(self.user))

    @cached_property
    def seen(self) -> Floats:
        return self.signal + self.random.normal(0, SHARED_ERROR, len(self.user))

    @cached_property
    def labels(self) -> Floats:
        return (self.random.random(len(self.user)) < _sigmoid(RATE + self.signal)).astype(np.float64)

    def model(self, error: float | Floats) -> Floats:
        """What a model says whose own error has this standard deviation, which may differ from row to row."""
        own = self.random.normal(0, np.sqrt(0.5), self.users)[self.user]
        own += self.random.normal(0, np.sqrt(0.5), len(self.user))
        signal, noise = TASTE**2 + PARTICULAR**2, SHARED_ERROR**2 + np.square(error)
        known = signal / (signal + noise)
        left = known * noise  # the variance of the signal that is not seen; MacKay (1992) for the mean of a sigmoid
        return _sigmoid((RATE + known * (self.seen + error * own)) / np.sqrt(1 + np.pi * left / 8))

    def paired(self, champion: Floats, challenger: Floats) -> PairedRows:
        rows = TaskRows("binary", self.labels, champion, challenger)
        names = [f"s{number}" for number in range(SEGMENTS)]
        return PairedRows(self.user, self.segment, names, {"click": rows})


def _sigmoid(logit: Floats) -> Floats:
    return 1 / (1 + np.exp(-logit))


@dataclass(frozen=True)
class Pair:
    """One world: a usual model beside another one, a better one, and one that is better but for users of segment s0."""

    equal: Comparison
    better: Comparison
    uneven: Comparison


GATE = Gate(segments=("s0", "s1", "s2"))
OVERALL_ALONE = Gate(segments=())


def simulate(seed: int, users: int = USERS) -> Pair:
    """So many users with 10 rows each, and four models."""
    world = World(np.random.default_rng(seed), users)
    champion = world.model(PLAIN)
    better = world.model(BETTER)
    uneven = world.model(np.where(world.segment == 0, WORSE, BETTER))
    return Pair(
        equal=compare(OVERALL_ALONE, "click", world.paired(champion, world.model(PLAIN))),
        better=compare(OVERALL_ALONE, "click", world.paired(champion, better)),
        uneven=compare(GATE, "click", world.paired(champion, uneven)),
    )


def swap(found: Comparison) -> Comparison:
    """The same two models in each other's place, without measuring them again: the difference changes its sign."""
    primary = found.primary
    line = replace(primary.line, difference=-primary.line.difference, low=-primary.line.high, high=-primary.line.low)
    return replace(found, primary=replace(primary, line=line, gain=-primary.gain, gain_low=-primary.line.high))


def share(pairs: Sequence[Pair], of: str, mode: Mode) -> float:
    """How often a kind of challenger is promoted."""
    return float(np.mean([judge(GATE, getattr(pair, of), mode).promoted for pair in pairs]))


def gains(pairs: Sequence[Pair], of: str, line: int = 0) -> Floats:
    """What was measured of a kind of challenger: overall, or in one of its guarded segments."""
    return np.array([getattr(pair, of).table[line].difference for pair in pairs])


def check(pairs: Sequence[Pair]) -> None:
    """What the gate promises."""
    assert share(pairs, "equal", "challenge") <= 0.05
    assert share(pairs, "better", "challenge") >= 0.95
    assert share(pairs, "uneven", "challenge") <= 0.1
    assert share(pairs, "equal", "refresh") >= 0.9
    swapped = [replace(pair, better=swap(pair.better)) for pair in pairs]
    assert share(swapped, "better", "refresh") <= 0.05


def test_a_better_model_is_promoted_and_a_worse_one_stopped() -> None:
    pair = simulate(0, users=4000)
    assert judge(GATE, pair.better, "challenge").promoted
    assert not judge(GATE, swap(pair.better), "refresh").promoted
    assert not judge(GATE, pair.equal, "challenge").promoted


def test_swapped_models_differ_by_as_much_the_other_way() -> None:
    world = World(np.random.default_rng(0), 500)
    models = world.model(PLAIN), world.model(BETTER)
    there, back = (compare(GATE, "click", world.paired(*both)) for both in (models, models[::-1]))
    assert swap(there).primary.gain_low == pytest.approx(back.primary.gain_low, abs=1e-6)
    assert swap(there).primary.line.difference == back.primary.line.difference


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_gate_is_as_often_right_as_it_promises() -> None:
    pairs = [simulate(1000 + seed) for seed in range(200)]
    assert np.mean(gains(pairs, "equal")) == pytest.approx(0.0, abs=0.0005)
    assert np.mean(gains(pairs, "better")) == pytest.approx(0.01, abs=0.0005)
    assert np.mean(gains(pairs, "uneven", line=1)) == pytest.approx(-0.02, abs=0.0015)
    assert np.mean(gains(pairs, "uneven")) > 0.003
    check(pairs)
