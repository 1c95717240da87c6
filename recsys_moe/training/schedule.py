"""What follows from the number of a step alone, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence


def rate_share(step: int, steps: int, rise: int, decay: float) -> float:
    """The share of the full learning rate at a step: up over `rise` steps, then all, then a line to 0.

    Args:
        step: from 0. steps: all there will be; later ones keep the last one's rate.
        decay: the share of steps, at the end, over which the rate falls.
    """
    up = min(1.0, (step + 1) / rise)
    down = min(1.0, max(steps - step, 1) / (decay * steps)) if decay else 1.0
    return min(up, down)


def validation_steps(steps: int, validations: int) -> frozenset[int]:
    """After how many of an epoch's `steps` to validate: evenly spaced, the last one at its end."""
    return frozenset(-(-steps * part // validations) for part in range(1, validations + 1))


def is_over(losses: Sequence[float], patience: int | None) -> bool:
    """Whether the last `patience` validation losses are all no lower than the lowest before them."""
    if patience is None or len(losses) <= patience:
        return False
    return min(losses[-patience:]) >= min(losses[:-patience])
