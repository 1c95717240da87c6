"""How a step ends that has nothing to do."""


class NotDueError(Exception):
    """There is nothing to do, which is no mistake; the message says why."""
