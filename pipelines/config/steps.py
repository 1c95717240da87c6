"""What is done with the data: the model's sizes, what is held out, how and when is scored. Each checked by itself."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipelines.config.sources import Column
from recsys_moe.config import Experts, Frozen, Gating, Share
from recsys_moe.presets import PRESETS, with_preset

Baseline = Literal["popularity", "shared_bottom", "dense", "boosting"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


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


GateMetric = Literal["auc", "gauc", "log_loss", "rmse"]


class Guard(Frozen):
    """Another metric over all rows: a version that is certainly worse in it, by more than `delta`, is kept out."""

    task: str
    metric: GateMetric | None = None
    delta: NonNegativeFloat | None = None


class Gate(Frozen):
    """When a new version takes over from the champion, on the same rows; docs/promotion.md explains it.

    The primary metric is `metric` of `task` (left out: of the first task, its AUC, or for a regression the RMSE). In
    mode `refresh` it must certainly be worse by less than `delta`, in mode `challenge` certainly better; `auto` is a
    refresh where both versions were trained with the same settings. In none of the `guards` and `segments` may it be
    certainly worse, and by more than `delta`; with fewer than `min_positives` positives each is reported only.
    `calibration` bounds predicted over observed. Intervals come from `draws` of users, who have `max_rows` at most.
    """

    mode: Literal["auto", "refresh", "challenge"] = "auto"
    task: str | None = None
    metric: GateMetric | None = None
    delta: NonNegativeFloat = 0.005
    guards: tuple[Guard, ...] = ()
    segments: Literal["all"] | tuple[str, ...] = "all"
    min_positives: PositiveInt = 100
    calibration: tuple[PositiveFloat, PositiveFloat] | None = (0.8, 1.25)
    draws: Annotated[int, Field(ge=1000)] = 1000
    max_rows: PositiveInt = 1_000_000
    seed: NonNegativeInt = 0

    @field_validator("calibration")
    @classmethod
    def _low_before_high(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"{list(value)} is no band; write the lower bound first, such as [0.8, 1.25]")
        return value


class Baselines(Frozen):
    """Simple models that are measured on the same rows: which ones, fitted to how many rows of the training at most.

    The rows are those of some users, drawn by their ids: all rows of each.
    """

    models: tuple[Baseline, ...] = BASELINES
    max_rows: PositiveInt = 100_000

    @field_validator("models")
    @classmethod
    def _each_once(cls, value: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{list(value)} names a baseline twice")
        return value


class MeasuredLists(Frozen):
    """How lists are measured: their first `k` places, for at most `max_users` users who liked something.

    All known items are candidates, so there are fewer users where `max_pairs` of user and item would not suffice.
    `diversity_by` is the column that tells kinds of items apart; the first categorical one of items where None.
    """

    k: PositiveInt = 20
    max_users: PositiveInt = 300
    max_pairs: PositiveInt = 2_000_000
    diversity_by: Column | None = None


class Evaluation(Frozen):
    """What is held out, what a model is measured beside, and when a new version takes over."""

    split: Annotated[TimeSplit | ColumnSplit | RandomSplit, Field(discriminator="by")] = TimeSplit()
    refit: bool = True
    gate: Gate = Gate()
    baselines: Baselines = Baselines()
    lists: MeasuredLists = MeasuredLists()

    @field_validator("split", mode="before", json_schema_input_type=TimeSplit | ColumnSplit | RandomSplit)
    @classmethod
    def _time_by_default(cls, value: Any) -> Any:
        return {"by": "time", **value} if isinstance(value, dict) else value


class Alerts(Frozen):
    """Who is told of a failed task and of what the monitor finds; the log alone where nobody is named.

    How to reach them stands in Airflow's connections `smtp_default` and `slack_api_default`.
    """

    email: tuple[Annotated[str, Field(pattern=r"^[^@\s{}]+@[^@\s{}]+$")], ...] = ()
    slack: Annotated[str, Field(pattern=r"^#?[\w.-]+$")] | None = None


class Schedule(Frozen):
    """When the DAGs run. Cron times are in `columns.timezone`; a partition is a day, so there is one a day.

    With `train: when_due` a training follows where the monitor says so, and scores are made after ingest.
    """

    ingest: str
    train: Literal["after_ingest", "when_due"] = "after_ingest"
    score: Literal["after_train", "after_ingest"] = "after_train"
    every_day: bool = False
    start: date | None = None
    alerts: Alerts = Alerts()

    @field_validator("ingest")
    @classmethod
    def _once_a_day(cls, value: str) -> str:
        if not re.fullmatch(r"[0-5]?\d +([01]?\d|2[0-3]) +\* +\* +\*", value):
            raise ValueError(f"{value!r} is no cron expression for one time a day, such as '0 3 * * *'")
        return value

    @model_validator(mode="after")
    def _scores_every_day(self) -> Self:
        if self.train == "when_due" and self.score == "after_train":
            raise ValueError("with train: when_due there is no training a day to score after; set score: after_ingest")
        return self


class Simulation(Frozen):
    """The size of the marketplace that `simulate` makes."""

    users: PositiveInt = 3000
    items: PositiveInt = 600
    rows_per_day: PositiveInt = 30000
    days: PositiveInt = 8
    start: date = date(2026, 1, 1)
    seed: Annotated[int, Field(ge=0)] = 0
