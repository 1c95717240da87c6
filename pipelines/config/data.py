"""What the data is: columns, tasks and features, each checked by itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipelines.config.sources import Column, Name, Timestamp
from recsys_moe.config import Frozen, Task

DERIVED_COLUMNS = ("hour", "weekday")
"""Context columns that every interaction has without asking: local hour 0..23 and ISO weekday 1..7."""


class Columns(Frozen):
    """What the source's columns are called, and which values stand for nothing.

    `late` says what becomes of events of a day before the one that brought them, `tolerance_minutes` how far past
    either end of its day an event may lie. `outcomes` are columns that are known only after the event: no feature may
    be made of them. `weight` is the column with a row's weight in training.
    """

    user: Column
    item: Column
    timestamp: Timestamp
    timezone: str = "UTC"
    unique: tuple[Column, ...] = ()
    late: Literal["accept", "reject"] = "accept"
    tolerance_minutes: Annotated[float, Field(ge=0, le=1440)] = 0.0
    outcomes: tuple[Column, ...] = ()
    weight: Column | None = None
    missing: tuple[str, ...] = ("", "NULL", "null", "NaN", "nan", "\\N")

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo("" if value == "localtime" else value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone; use a name such as 'Europe/Berlin' or 'UTC'") from None
        return value

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a row the same event as another: `unique`, or user, item and time."""
        return self.unique or (self.user, self.item, self.timestamp.name)

    @model_validator(mode="after")
    def _are_three(self) -> Self:
        three = (self.user, self.item, self.timestamp.name)
        if len(set(three)) < 3:
            raise ValueError(f"user, item and timestamp must be three columns, not {', '.join(map(repr, three))}")
        return self


class TaskSource(Task):
    """A task and what answers it: a column of the log, or a log of its own.

    A rule turns a number into yes or no (`at_least: 4`). With `outcome`, the name of one of `source.outcomes`, the
    answer is yes where such a row came within `within_hours`; with `value`, a column of it, the answer is their sum.
    A label is used only once `label_delay_days` days have passed after the event's.
    """

    name: Name
    label: Column | None = None
    outcome: Name | None = None
    within_hours: PositiveFloat = 24.0
    value: Column | None = None
    label_delay_days: NonNegativeInt = 0
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        if (self.label is None) == (self.outcome is None):
            raise ValueError("give either label (a column of the log) or outcome (one of source.outcomes)")
        if self.value is not None and self.outcome is None:
            raise ValueError("value goes with outcome: it is a column of that log")
        if self.value is not None and self.kind == "binary" and not self.has_rule:
            raise ValueError("value is summed: say kind: regression, or from which sum on it is yes (at_least)")
        if self.outcome is not None and self.label_delay_days * 24 < self.within_hours:
            raise ValueError(
                f"label_delay_days {self.label_delay_days} is shorter than within_hours {self.within_hours:g}: "
                "the label would be used before its window has passed"
            )
        return self

    @model_validator(mode="after")
    def _rules_are_binary(self) -> Self:
        if self.kind == "regression" and self.has_rule:
            raise ValueError("a rule (at_least, at_most) makes yes or no: leave it out, or set kind: binary")
        if self.kind == "regression" and self.given is not None:
            raise ValueError("given makes a probability conditional: leave it out, or set kind: binary")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"no label is at least {self.at_least:g} and at most {self.at_most:g}")
        return self

    @property
    def has_rule(self) -> bool:
        """Whether the label is a rule over its column rather than the column itself."""
        return self.at_least is not None or self.at_most is not None


class NumericFeature(Frozen):
    """A number; or, with `days_since`, the days from that date column to the event."""

    name: Column
    transform: Literal["none", "log1p"] = "none"
    days_since: Column | None = None


class CategoricalFeature(Frozen):
    """A column of ids or names. `hash_buckets` is for open-ended ones: values share that many rows of the table.

    `min_count` is how often a value must be seen to get a row of its own; the model's where None.
    """

    name: Column
    hash_buckets: Annotated[int, Field(ge=2)] | None = None
    min_count: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.hash_buckets is not None and self.min_count is not None:
            raise ValueError("hash_buckets has no vocabulary to count for: leave out min_count")
        return self


def _each_once(windows: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(windows)) < len(windows):
        raise ValueError(f"two windows are the same in {list(windows)}")
    return windows


Windows = Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(_each_once)]
"""Lengths of windows in days."""


class Recent(Frozen):
    """The last values of a column that a key was seen with: a user's last items, say. A multivalued feature.

    `task` keeps those of rows where its label is above 0. Events on the days strictly before, at most `days` back.
    """

    key: Column
    of: Column
    last: Annotated[int, Field(ge=1, le=200)] = 20
    days: PositiveInt = 30
    task: Name | None = None

    @property
    def feature(self) -> str:
        """Its name, such as `user_id_last_20_click_item_id`."""
        task = f"{self.task}_" if self.task else ""
        return f"{self.key}_last_{self.last}_{task}{self.of}"


class History(Frozen):
    """Counts and smoothed rates per key (a column, or a pair) over windows of days strictly before the event.

    `days_since_last` adds, per key, the days since it was last seen, as far back as the longest window; `recent` adds
    lists.
    """

    keys: Annotated[tuple[tuple[Column, ...], ...], Field(min_length=1)]
    days: Windows = (7,)
    smoothing: Annotated[float, Field(gt=0)] = 20.0
    days_since_last: bool = False
    recent: tuple[Recent, ...] = ()

    @field_validator("keys", mode="before", json_schema_input_type=list[Column | list[Column]])
    @classmethod
    def _single_or_pair(cls, value: Any) -> Any:
        return [[key] if isinstance(key, str) else key for key in value] if isinstance(value, list) else value

    @field_validator("keys")
    @classmethod
    def _one_or_two_columns(cls, value: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        for key in value:
            if len(key) not in (1, 2) or len(set(key)) < len(key):
                raise ValueError(f"{list(key)} is no key; a key is a column or a pair of two")
        if len({frozenset(key) for key in value}) < len(value):
            raise ValueError(f"two keys are the same in {[list(key) for key in value]}")
        return value


def last_seen_feature(key: tuple[str, ...]) -> str:
    """The name of the days since a key was last seen, such as `user_id_days_since_last`."""
    return f"{'_x_'.join(key)}_days_since_last"


def history_feature(key: tuple[str, ...], days: int, what: str) -> str:
    """The name of a history feature, such as `user_id_x_tab_7d_click_rate`."""
    return f"{'_x_'.join(key)}_{days}d_{what}"


class Features(Frozen):
    """The columns that the model reads, by kind."""

    categorical: tuple[CategoricalFeature, ...] = ()
    multivalued: tuple[Column, ...] = ()
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    numeric: tuple[NumericFeature, ...] = ()
    history: History | None = None

    @field_validator("categorical", mode="before", json_schema_input_type=list[Column | CategoricalFeature])
    @classmethod
    def _name_or_options(cls, value: Any) -> Any:
        return [{"name": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value

    @field_validator("numeric", mode="before", json_schema_input_type=list[Column | NumericFeature])
    @classmethod
    def _name_or_mapping(cls, value: Any) -> Any:
        return [{"name": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value
