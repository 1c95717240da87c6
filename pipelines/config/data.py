"""What the data is: sources, columns, tasks, features and segments, each checked by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from recsys_moe.config import (
    BehaviouralSegments,
    BucketSegments,
    ColumnSegments,
    CrossSegments,
    Frozen,
    Segments,
    Task,
)

DERIVED_COLUMNS = ("hour", "weekday")
"""Context columns that every interaction has without asking: local hour 0..23 and ISO weekday 1..7."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Column = Annotated[str, Field(min_length=1)]


class Source(Frozen):
    """Where rows come from: a path, with `{ds}` or `{ds_nodash}` if there is one file a day."""

    path: str
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet"] = "auto"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None

    @field_validator("path")
    @classmethod
    def _local_with_known_placeholders(cls, value: str) -> str:
        unknown = sorted(set(re.findall(r"\{.*?\}", value)) - {"{ds}", "{ds_nodash}"})
        if unknown:
            raise ValueError(f"{value!r} has {', '.join(unknown)}; a path may have {{ds}} or {{ds_nodash}}")
        if "://" in value:
            raise ValueError(f"{value!r} is no local file; object stores are not read yet")
        return value

    @property
    def is_daily(self) -> bool:
        """Whether each day has a file of its own."""
        return "{ds" in self.path

    def path_for(self, ds: date) -> Path:
        """The file that holds day `ds`."""
        return Path(self.path.replace("{ds}", ds.isoformat()).replace("{ds_nodash}", ds.strftime("%Y%m%d")))

    @property
    def file_format(self) -> str:
        """The format, told from the file's ending (before .gz or .zst) where the YAML says `auto`."""
        if self.format != "auto":
            return self.format
        name = re.sub(r"\.(gz|zst)$", "", self.path.lower())
        endings = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
        return endings.get(Path(name).suffix, "csv")


class Sources(Frozen):
    """The logs, and any number of files that join to a user or to an item."""

    interactions: Source
    users: tuple[Source, ...] = ()
    items: tuple[Source, ...] = ()

    @field_validator("users", "items", mode="before", json_schema_input_type=Source | tuple[Source, ...])
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value


class Timestamp(Frozen):
    """The column that says when, and how to read it."""

    name: Column
    unit: Literal["s", "ms", "us", "iso"] = "s"


class Columns(Frozen):
    """What the source's columns are called, and which values stand for nothing."""

    user: Column
    item: Column
    timestamp: Timestamp
    timezone: str = "UTC"
    unique: tuple[Column, ...] = ()
    late: Literal["accept", "reject"] = "accept"
    missing: tuple[str, ...] = ("", "NULL", "null", "NaN", "nan", "\\N")

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
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
    """A task and the column that answers it; a rule turns a number into yes or no (`at_least: 4`)."""

    name: Name
    label: Column
    at_least: float | None = None
    at_most: float | None = None

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


def _each_once(windows: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(windows)) < len(windows):
        raise ValueError(f"two windows are the same in {list(windows)}")
    return windows


Windows = Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(_each_once)]
"""Lengths of windows in days."""


class History(Frozen):
    """Counts and smoothed rates per key (a column, or a pair) over windows of days strictly before the event."""

    keys: Annotated[tuple[tuple[Column, ...], ...], Field(min_length=1)]
    days: Windows = (7,)
    smoothing: Annotated[float, Field(gt=0)] = 20.0

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


def history_feature(key: tuple[str, ...], days: int, what: str) -> str:
    """The name of a history feature, such as `user_id_x_tab_7d_click_rate`."""
    return f"{'_x_'.join(key)}_{days}d_{what}"


class Features(Frozen):
    """The columns that the model reads, by kind."""

    categorical: tuple[Column, ...] = ()
    multivalued: tuple[Column, ...] = ()
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    numeric: tuple[NumericFeature, ...] = ()
    history: History | None = None

    @field_validator("numeric", mode="before", json_schema_input_type=list[Column | NumericFeature])
    @classmethod
    def _name_or_mapping(cls, value: Any) -> Any:
        return [{"name": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value


class BucketForm(Frozen):
    """`by: {bucket: {column: …, bins: […]}}`."""

    bucket: BucketSegments

    @field_validator("bucket")
    @classmethod
    def _edges_increase(cls, value: BucketSegments) -> BucketSegments:
        if list(value.bins) != sorted(set(value.bins)):
            raise ValueError(f"bins must increase, not {', '.join(f'{edge:g}' for edge in value.bins)}")
        return value


class CrossForm(Frozen):
    """`by: {cross: {columns: […], parent: …}}`."""

    cross: CrossSegments

    @field_validator("cross")
    @classmethod
    def _parent_is_one_of_them(cls, value: CrossSegments) -> CrossSegments:
        if len(set(value.columns)) < len(value.columns):
            raise ValueError(f"a column stands twice in columns {list(value.columns)}")
        if value.parent not in value.columns:
            raise ValueError(f"parent {value.parent!r} must be one of columns {list(value.columns)}")
        return value


class Behavioural(Frozen):
    """How many groups, and the windows of `features.history` that they are made by: all where None."""

    k: Annotated[int, Field(ge=2)]
    days: Windows | None = None

    def resolved(self, history: History | None, user: str, tasks: Iterable[str]) -> BehaviouralSegments:
        """The history features that these groups are made of.

        Raises:
            ValueError: there is no history of the user alone, or not of these windows.
        """
        if history is None or (user,) not in history.keys:
            raise ValueError(f"by.behavioural groups users by their history: add {user!r} to features.history.keys")
        windows = self.days or history.days
        unknown = sorted(set(windows) - set(history.days))
        if unknown:
            raise ValueError(f"by.behavioural.days: {unknown} are not in features.history.days {list(history.days)}")
        measures = [f"{task}_rate" for task in tasks]
        return BehaviouralSegments(
            counts=tuple(history_feature((user,), days, "rows") for days in windows),
            rates=tuple(history_feature((user,), days, rate) for days in windows for rate in measures),
            k=self.k,
        )


class BehaviouralForm(Frozen):
    """`by: {behavioural: {k: …, days: […]}}`."""

    behavioural: Behavioural


def _segment_form(by: str | dict[str, Any]) -> str:
    """Which of the four it is, so that a mistake inside is told of that one alone."""
    return next(iter(by)) if isinstance(by, dict) else "column"


class WrittenSegments(Frozen):
    """Segments as a person writes them; `recsys_moe.config.Segments` is what they become."""

    by: Annotated[
        Annotated[Column, Tag("column")]
        | Annotated[BucketForm, Tag("bucket")]
        | Annotated[CrossForm, Tag("cross")]
        | Annotated[BehaviouralForm, Tag("behavioural")],
        Discriminator(_segment_form),
    ]
    min_rows: PositiveInt = 1000

    @field_validator("by", mode="before", json_schema_input_type=Column | BucketForm | CrossForm | BehaviouralForm)
    @classmethod
    def _one_of_four(cls, value: Any) -> Any:
        forms = (["bucket"], ["cross"], ["behavioural"])
        if not isinstance(value, str) and not (isinstance(value, dict) and list(value) in forms):
            raise ValueError(f"should be a column, {{bucket: …}}, {{cross: …}} or {{behavioural: …}}, not {value!r}")
        return value

    def resolved(self, history: History | None, user: str, tasks: Iterable[str]) -> Segments:
        """The same, without the short forms; `history`, `user` and `tasks` are the recommender's.

        Raises:
            ValueError: the segments are by behaviour, and there is no history of the user for them.
        """
        match self.by:
            case BucketForm(bucket=bucket):
                return Segments(by=bucket, min_rows=self.min_rows)
            case CrossForm(cross=cross):
                return Segments(by=cross, min_rows=self.min_rows)
            case BehaviouralForm(behavioural=behavioural):
                return Segments(by=behavioural.resolved(history, user, tasks), min_rows=self.min_rows)
            case column:
                return Segments(by=ColumnSegments(column=column), min_rows=self.min_rows)
