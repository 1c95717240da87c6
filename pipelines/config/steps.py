"""What is done with the data: the model's sizes, what is held out, how and when is scored. Each checked by itself."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from pipelines.config.sources import Column, Name
from recsys_moe.config import Experts, Frozen, Gating, Share
from recsys_moe.presets import PRESETS, with_preset


class ModelShape(Frozen):
    """The network: sizes, and how its experts are chosen; see `recsys_moe.config.ModelConfig`.

    `preset` names a known architecture, whose values stand wherever nothing else is written. Of `experts`,
    `per_segment` is not used where there is no `segments:` block, and `top_k` where `routed` is 0.
    """

    preset: Annotated[str, Field(json_schema_extra={"enum": sorted(PRESETS)})] | None = None
    embedding_dim: PositiveInt = 16
    min_count: PositiveInt = 1
    experts: Experts = Experts()
    gates: Gating = Gating()
    towers: tuple[PositiveInt, ...] = (32,)

    @model_validator(mode="before")
    @classmethod
    def _with_the_presets_values(cls, value: Any) -> Any:
        return with_preset(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _sets_divide_embeddings(self) -> Self:
        if self.embedding_dim % self.experts.embedding_sets:
            sets = self.experts.embedding_sets
            raise ValueError(f"experts.embedding_sets {sets} does not divide embedding_dim {self.embedding_dim}")
        return self

    @field_validator("experts")
    @classmethod
    def _enough_to_choose_from(cls, value: Experts) -> Experts:
        if not value.shared + value.per_task + value.routed:
            raise ValueError("at least one of shared, per_task and routed must be above 0")
        if 0 < value.routed < value.top_k:
            raise ValueError(f"top_k {value.top_k} is more than the {value.routed} routed experts")
        return value


class TimeSplit(Frozen):
    """The last days are held out: `test_days` last, `validation_days` before them, at most `train_days` before."""

    by: Literal["time"] = "time"
    train_days: PositiveInt | None = None
    validation_days: PositiveInt = 1
    test_days: PositiveInt = 1


class ColumnSplit(Frozen):
    """A column of the log says which rows are held out."""

    by: Literal["column"]
    column: Column
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @model_validator(mode="after")
    def _are_two_parts(self) -> Self:
        both = sorted({*self.validation} & {*self.test})
        if both:
            raise ValueError(f"{both} cannot be validation and test at once")
        return self


class RandomSplit(Frozen):
    """Rows are held out at random, as tables in papers do. History features still look at days before only."""

    by: Literal["random"]
    seed: Annotated[int, Field(ge=0, lt=10**16)] = 0
    validation: Share = 0.1
    test: Share = 0.1

    @model_validator(mode="after")
    def _leaves_rows_to_train(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must stay below 1, so that rows are left to train on")
        return self


class Gate(Frozen):
    """When a new version takes over: its metric, on the champion's rows, must be above it by `min_gain`."""

    task: str | None = None
    metric: Literal["auc", "gauc", "log_loss"] = "auc"
    min_gain: float = 0.0


class Evaluation(Frozen):
    """What is held out, and when a new version takes over."""

    split: Annotated[TimeSplit | ColumnSplit | RandomSplit, Field(discriminator="by")] = TimeSplit()
    refit: bool = True
    gate: Gate = Gate()

    @field_validator("split", mode="before", json_schema_input_type=TimeSplit | ColumnSplit | RandomSplit)
    @classmethod
    def _time_by_default(cls, value: Any) -> Any:
        return {"by": "time", **value} if isinstance(value, dict) else value


class Candidates(Frozen):
    """Which items are scored for a user: every known one, or the most viewed of the last days."""

    source: Literal["all", "popular"] = "popular"
    limit: PositiveInt = 200
    days: PositiveInt = 7


class Scoring(Frozen):
    """Top-N per user: for whom is it, at which moment, and how task probabilities make one score."""

    candidates: Candidates = Candidates()
    top_n: PositiveInt = 20
    exclude_seen: bool = False
    context: dict[Column, str | int | float] = Field(default_factory=dict)
    contexts: dict[Name, dict[Column, str | int | float]] = Field(default_factory=dict)
    weights: Annotated[dict[str, float], Field(min_length=1)] | None = None

    @field_validator("weights")
    @classmethod
    def _weigh_something(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value and not any(value.values()):
            raise ValueError("all are 0, which gives every item the same score; weigh at least one task")
        return value

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if self.context and self.contexts:
            raise ValueError("give either context (one moment) or contexts (several, by name), not both")
        return self

    @property
    def named_contexts(self) -> dict[str, dict[str, str | int | float]]:
        """The moments to score for, by name; a single one is called `default`."""
        return self.contexts or {"default": self.context}


class Schedule(Frozen):
    """When the DAGs run. Cron times are in `columns.timezone`; a partition is a day, so there is one a day."""

    ingest: str
    train: Literal["after_ingest"] = "after_ingest"
    score: Literal["after_train", "after_ingest"] = "after_train"
    every_day: bool = False
    start: date | None = None

    @field_validator("ingest")
    @classmethod
    def _once_a_day(cls, value: str) -> str:
        if not re.fullmatch(r"[0-5]?\d +([01]?\d|2[0-3]) +\* +\* +\*", value):
            raise ValueError(f"{value!r} is no cron expression for one time a day, such as '0 3 * * *'")
        return value


class Simulation(Frozen):
    """The size of the marketplace that `simulate` makes."""

    users: PositiveInt = 3000
    items: PositiveInt = 600
    rows_per_day: PositiveInt = 30000
    days: PositiveInt = 8
    start: date = date(2026, 1, 1)
    seed: Annotated[int, Field(ge=0)] = 0
