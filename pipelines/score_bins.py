"""Predictions of a task counted by their size, block by block: what pictures of calibration are drawn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EDGE, _WIDTH = 10.0, 0.1
_BINS = round(2 * _EDGE / _WIDTH)
_Z = 1.959964
"""Of a 95 % interval."""

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Groups:
    """Bins put together, so that each has about equally many rows: the predicted rate, the observed one, and Wilson's
    95 % interval of it (Wilson 1927), each [groups]."""

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats


@dataclass
class ScoreBins:
    """Rows, summed predictions and positives of each bin; bins are 0.1 wide in log-odds, the last ones open.

    Blocks of rows are added one after the other, so that all of them need not be in memory.
    """

    rows: Floats = field(default_factory=lambda: np.zeros(_BINS))
    predicted: Floats = field(default_factory=lambda: np.zeros(_BINS))
    positives: Floats = field(default_factory=lambda: np.zeros(_BINS))

    @property
    def centres(self) -> Floats:
        """The log-odds in the middle of each bin."""
        return (np.arange(_BINS) + 0.5) * _WIDTH - _EDGE

    def add(self, labels: Floats, probabilities: Floats) -> None:
        """Count a block of rows; those without a label or a prediction are left out."""
        known = np.isfinite(labels) & np.isfinite(probabilities)
        label, said = np.asarray(labels[known], np.float64), np.asarray(probabilities[known], np.float64)
        inside = np.clip(said, 1e-12, 1 - 1e-12)
        place = np.clip((np.log(inside / (1 - inside)) + _EDGE) / _WIDTH, 0, _BINS - 1).astype(np.int64)
        self.rows += np.bincount(place, minlength=_BINS)
        self.predicted += np.bincount(place, said, _BINS)
        self.positives += np.bincount(place, label, _BINS)

    def groups(self, most: int = 20) -> Groups:
        """At most so many groups of neighbouring bins, of about equally many rows each."""
        total = self.rows.sum()
        # A bin belongs to the group that its middle row falls into.
        middle = np.cumsum(self.rows) - self.rows / 2
        group = np.minimum(most * middle / max(total, 1), most - 1).astype(np.int64)
        sums = [np.bincount(group, part, most) for part in (self.rows, self.predicted, self.positives)]
        rows, predicted, positives = (part[sums[0] > 0] for part in sums)
        observed = positives / rows
        centre = (positives + _Z**2 / 2) / (rows + _Z**2)
        reach = _Z * np.sqrt(rows * observed * (1 - observed) + _Z**2 / 4) / (rows + _Z**2)
        return Groups(predicted / rows, observed, np.clip(centre - reach, 0, 1), np.clip(centre + reach, 0, 1))
