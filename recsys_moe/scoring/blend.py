"""One score of several tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recsys_moe.errors import UserError


@dataclass(frozen=True)
class Blend:
    """How the tasks' probabilities make the score that items are ranked by.

    Attributes:
        weights: by task: what its probability is multiplied by in a `sum`, or the power that it is raised to in a
            `product`. Tasks without one have no say.
        kind: a sum of weighted probabilities, or a product of powers.
    """

    weights: Mapping[str, float]
    kind: Literal["sum", "product"] = "sum"

    def scores(self, probabilities: Mapping[str, NDArray[np.floating]]) -> NDArray[np.floating]:
        """The scores of pairs whose probabilities, by task, have one shape. A sum is as precise as they are.

        A product is in double precision, where 1e-38 cubed is no zero yet. Both are computed by NumPy, number by
        number: pairs that are alike have equal scores to the last bit, wherever they stand.

        Raises:
            UserError: a task has a weight but no probabilities.
        """
        if missing := sorted(set(self.weights) - set(probabilities)):
            raise UserError(
                f"scoring: the score is made of task {missing[0]!r}, which the model does not have "
                f"(it has {[*probabilities]}); train one with it, or take it out of weights or powers"
            )
        parts = ((probabilities[task], weight) for task, weight in self.weights.items())
        if self.kind == "sum":
            return reduce(np.add, (of_task * weight for of_task, weight in parts))
        powers: Any = (np.float_power(of_task, weight) for of_task, weight in parts)
        return reduce(np.multiply, powers)
