"""Segments as a person writes them, in one of four forms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator

from pipelines.config.data import History, Windows, history_feature
from pipelines.config.sources import Column
from recsys_moe.config import BehaviouralSegments, BucketSegments, ColumnSegments, CrossSegments, Frozen, Segments


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
