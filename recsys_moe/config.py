"""What a model is and how it is trained: frozen values, checked at the door.

A recommender's YAML (`pipelines.config`) is turned into these; they are stored with every checkpoint, so that a
model can be built again from its folder alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Side = Literal["user", "item", "context"]


class Frozen(BaseModel):
    """A value: unknown keys, infinity and NaN are refused, and nothing can be changed after it was checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Feature(Frozen):
    """One raw column that the model reads.

    `side` says whose property it is; the first expert layer is linear in the three sides, so that batch scoring can
    do a user's and an item's share of the work once. `from_keys` are the raw columns that the value is made of (for
    a history feature its keys): hiding a segment hides every feature made of its columns.
    """

    name: str
    kind: Literal["categorical", "multivalued", "numeric"]
    side: Side
    transform: Literal["none", "log1p"] = "none"
    from_keys: tuple[str, ...] = ()


class Task(Frozen):
    """One thing to predict. `given` names the task without which this one is not defined (purchase given click)."""

    name: str
    kind: Literal["binary", "regression"] = "binary"
    given: str | None = None
    weight: PositiveFloat = 1.0


class ColumnSegments(Frozen):
    """A segment for each value of a column."""

    column: str


class BucketSegments(Frozen):
    """A segment for each range of a numeric column: `bins` are the inner edges, left closed."""

    column: str
    bins: Annotated[tuple[float, ...], Field(min_length=1)]


class CrossSegments(Frozen):
    """A segment for each combination of columns; thin ones fall to the value of `parent` alone."""

    columns: Annotated[tuple[str, ...], Field(min_length=2)]
    parent: str


class Segments(Frozen):
    """How rows are cut into segments. Those under `min_rows` in the training window fall to their parent or to 0."""

    by: ColumnSegments | BucketSegments | CrossSegments
    min_rows: PositiveInt = 1000

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that decide a row's segment."""
        return self.by.columns if isinstance(self.by, CrossSegments) else (self.by.column,)


class Experts(Frozen):
    """Sizes of the four groups of experts (DESIGN section 7): one mechanism, and presets are values of it."""

    shared: NonNegativeInt = 1
    per_task: NonNegativeInt = 0
    per_segment: Annotated[int, Field(ge=0, le=1)] = 1
    routed: NonNegativeInt = 8
    top_k: PositiveInt = 2
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 32)
    segment_rank: PositiveInt = 8


class ModelConfig(Frozen):
    """Everything that decides the model's shape, apart from the fitted vocabularies."""

    features: Annotated[tuple[Feature, ...], Field(min_length=1)]
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    segments: Segments | None = None
    embedding_dim: PositiveInt = 16
    min_count: PositiveInt = 1
    experts: Experts = Experts()
    towers: tuple[PositiveInt, ...] = (32,)


class TrainingConfig(Frozen):
    """How a model is fitted. Shares are of rows; learning rates are per step."""

    epochs: PositiveInt = 1
    batch_size: PositiveInt = 4096
    learning_rate: PositiveFloat = 2e-3
    embedding_learning_rate: PositiveFloat = 0.05
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat = 5.0
    hide_ids: Share = 0.02
    hide_segments: Share = 0.05
    segment_decay: Share = 1e-3
    balance_rate: NonNegativeFloat = 0.05
    z_loss: NonNegativeFloat = 1e-4
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None
