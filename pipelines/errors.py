"""How a step ends that has nothing to do, or that may succeed when it is run again."""

from recsys_moe.errors import UserError


class NotDueError(Exception):
    """There is nothing to do, which is no mistake; the message says why."""


class TryAgainError(UserError):
    """Something that passes by itself: the same step, run again later, may well succeed."""


class RaceLostError(TryAgainError):
    """Another process published other rows for the same day meanwhile; they stand."""
