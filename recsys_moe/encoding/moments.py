"""Mean and deviation of numbers over many batches, and the scale that they make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_DEVIATIONS = 10.0


@dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation of a numeric feature, after its transform."""

    mean: float = 0.0
    std: float = 1.0

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Deviations from the mean, `MAX_DEVIATIONS` at most; what is missing is the mean, 0."""
        deviations = np.nan_to_num((values - self.mean) / self.std, nan=0.0)
        return np.clip(deviations, -MAX_DEVIATIONS, MAX_DEVIATIONS)


class Moments:
    """Mean and variance over many batches (Chan, Golub & LeVeque 1979), missing values left out."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        values = values[~np.isnan(values)]
        if not len(values):
            return
        total, shift = self.count + len(values), float(values.mean()) - self.mean
        self._squares += float(((values - values.mean()) ** 2).sum()) + shift**2 * self.count * len(values) / total
        self.mean += shift * len(values) / total
        self.count = total

    def scaler(self) -> Scaler:
        std = float(np.sqrt(self._squares / self.count)) if self.count else 0.0
        return Scaler(self.mean, std if std > 1e-12 else 1.0)
