"""`recsys-moe monitor`: what came in, what the champion says of it, and whether a new training is due."""

from pipelines.monitor.step import monitor

__all__ = ["monitor"]
