"""Intervals over repeats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def interval(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    """Mean of independent repeats, and its 95 % interval by Student's t."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}
