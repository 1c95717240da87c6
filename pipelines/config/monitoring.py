"""From where on `recsys-moe monitor` warns, and from where on it says that a training is due."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from pipelines.config.sources import Column
from recsys_moe.config import Frozen


class Limits(Frozen):
    """The value from which on a check warns, and that from which on a training is due; never where left out."""

    warn: NonNegativeFloat | None = None
    retrain: NonNegativeFloat | None = None

    @model_validator(mode="after")
    def _warns_first(self) -> Self:
        if self.warn is not None and self.retrain is not None and self.warn > self.retrain:
            raise ValueError(f"warn {self.warn:g} must not be above retrain {self.retrain:g}")
        return self


class Freshness(Frozen):
    """Days that the newest ingested (`data`), prepared and scored day, and the champion's last one, may be behind."""

    data: Limits = Limits(warn=1)
    prepared: Limits = Limits(warn=1)
    scores: Limits = Limits(warn=2)
    champion: Limits = Limits(warn=7, retrain=14)


class ExpertLimits(Frozen):
    """How many routed experts may be dead, and how many times a fair share of the load the busiest may have."""

    dead: Limits = Limits(warn=1)
    busiest: Limits = Limits(warn=3)


class Monitoring(Frozen):
    """What a day is compared with, and the limits; docs/monitoring.md explains each.

    `days` before it say what volume is usual. Drift is against the champion's training days, of `max_rows` rows on
    either side, in all columns but those to `ignore`. `volume` and `calibration` are factors: 2 is half or double.
    `served` is calibration of the published scores of the pairs that were shown. Segments and tasks with fewer than
    `min_rows` rows are reported only.
    """

    days: Annotated[int, Field(ge=3)] = 7
    max_rows: PositiveInt = 100_000
    min_rows: PositiveInt = 1000
    ignore: tuple[Column, ...] = ("weekday",)
    freshness: Freshness = Freshness()
    volume: Limits = Limits(warn=2)
    drift: Limits = Limits(warn=0.25)
    score_drift: Limits = Limits(warn=0.1, retrain=0.25)
    calibration: Limits = Limits(warn=1.25, retrain=1.5)
    served: Limits = Limits(warn=3)
    experts: ExpertLimits = ExpertLimits()
