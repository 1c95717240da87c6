"""A page about the data of a day or a range of days: what came in, what is missing, and what has changed."""

from pipelines.profile.step import profile

__all__ = ["profile"]
