"""What a model is and how it is trained: frozen values, checked at the door.

A recommender's YAML (`pipelines.config`) is turned into these; they are stored with every checkpoint, so that a
model can be built again from its folder alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

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

    A value seen `min_count` times (the model's where None) has a row of the embedding table; with `hash_buckets` there
    is no vocabulary, and values share that many rows.
    """

    name: str
    kind: Literal["categorical", "multivalued", "numeric"]
    side: Side
    transform: Literal["none", "log1p"] = "none"
    from_keys: tuple[str, ...] = ()
    hash_buckets: Annotated[int, Field(ge=2)] | None = None
    min_count: PositiveInt | None = None

    @model_validator(mode="after")
    def _numbers_are_not_hashed(self) -> Self:
        if self.kind == "numeric" and self.hash_buckets is not None:
            raise ValueError(f"{self.name}: hash_buckets is for ids and names, not for a numeric feature")
        return self


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


class BehaviouralSegments(Frozen):
    """`k` groups of users who behave alike, found by k-means over their history before the event.

    `counts` and `rates` are history features of the user alone: how often, and how often with success. A row whose
    counts are all 0 has no history, and no group.
    """

    counts: Annotated[tuple[str, ...], Field(min_length=1)]
    rates: tuple[str, ...] = ()
    k: Annotated[int, Field(ge=2)]
    seed: NonNegativeInt = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns, counts first."""
        return (*self.counts, *self.rates)


class Segments(Frozen):
    """How rows are cut into segments. Those under `min_rows` in the training window fall to their parent or to 0."""

    by: ColumnSegments | BucketSegments | CrossSegments | BehaviouralSegments
    min_rows: PositiveInt = 1000

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that decide a row's segment."""
        if isinstance(self.by, ColumnSegments | BucketSegments):
            return (self.by.column,)
        return self.by.columns

    @property
    def title(self) -> str:
        """What it is cut by, in a few words."""
        if isinstance(self.by, BehaviouralSegments):
            return f"behavioural k={self.by.k}"
        return " x ".join(self.columns)


class Experts(Frozen):
    """Sizes of the four groups of experts (DESIGN section 7), and how the routed ones are computed.

    `shared` experts run every row for every task, `per_task` ones for one task's gate, the `per_segment` one is the
    row's segment's (a low-rank change of shared expert 0), and of the `routed` ones a gate chooses `top_k`.
    `dispatch: sparse` runs the chosen ones alone, `dense` all of them, `auto` times both where training starts. With
    `embedding_sets` above 1 each expert reads one of so many parts of every embedding, see `embedding_sets`.
    """

    shared: NonNegativeInt = 1
    per_task: NonNegativeInt = 0
    per_segment: Annotated[int, Field(ge=0, le=1)] = 1
    routed: NonNegativeInt = 8
    top_k: PositiveInt = 2
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 32)
    segment_rank: PositiveInt = 8
    dispatch: Literal["auto", "dense", "sparse"] = "auto"
    embedding_sets: PositiveInt = 1


class Gating(Frozen):
    """How experts are chosen, weighted and kept busy.

    Each task has a gate of its own, or all of them one (`shared_gate`). Routed experts are chosen by each gate for its
    task (`routing: task`: a row runs up to `top_k` for each), or once for the row, by the mean of what its gates say
    (`routing: example`: it runs `top_k`, which each task's gate still weighs). Weights are the `score` of the experts
    that a row runs, brought to a sum of 1 (`renormalise: false` leaves out what went to those not chosen, as
    Switch does: with top_k 1 the gate would learn nothing otherwise).

    With `input: user` gates read the user's and the moment's features alone, so that all pairs of a user share their
    experts: scoring is quicker, and an item has no say in who speaks for it.

    Routed experts are kept busy by a bias on the choice, moved by `balance_rate` times the error of the load: of the
    pairs that some task chose (`union`), or of each `task`. `auxiliary_loss` is the weight of Switch's loss, `z_loss`
    that of the logits' size, `dropout` the share of a row's experts that are left out, `dense_warm_up` the share of
    steps, at the beginning, in which all routed experts run.
    """

    routing: Literal["task", "example"] = "task"
    input: Literal["all", "user"] = "all"
    shared_gate: bool = False
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = True
    balance: Literal["union", "task"] = "union"
    balance_rate: NonNegativeFloat = 0.05
    auxiliary_loss: NonNegativeFloat = 0.0
    z_loss: NonNegativeFloat = 1e-4
    dropout: Share = 0.0
    dense_warm_up: Share = 0.0


class SampledNegatives(Frozen):
    """The model is trained on a `share` of the rows whose label of `task` is 0, and on all others.

    `task` is binary and given no other. What is served is corrected for it (see `RankingModel.corrected`), and in the
    losses of tasks that are not given it the rows that were kept stand for those that were not.
    """

    task: str
    share: Annotated[float, Field(gt=0.0, le=1.0)]


class ModelConfig(Frozen):
    """Everything that decides the model's shape, apart from the fitted vocabularies."""

    features: Annotated[tuple[Feature, ...], Field(min_length=1)]
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    segments: Segments | None = None
    embedding_dim: PositiveInt = 16
    min_count: PositiveInt = 1
    experts: Experts = Experts()
    gates: Gating = Gating()
    towers: tuple[PositiveInt, ...] = (32,)
    sampled: SampledNegatives | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that the model reads: its features, and what decides a row's segment."""
        segments = self.segments.columns if self.segments else ()
        return tuple(dict.fromkeys([*(feature.name for feature in self.features), *segments]))


class WarmStart(Frozen):
    """How a training goes on from the champion's weights, with the rows of the days that the champion has not seen.

    For every new row `replay` older ones are learned again, so that what is learned of one day does not undo the rest.
    The result is the mean of the champion's weights, as a share of `keep`, and of those that were learned.
    """

    replay: NonNegativeFloat = 3.0
    keep: Share = 0.5


class TrainingConfig(Frozen):
    """How a model is fitted. Shares are of rows, `learning_rate_decay` of steps: the last ones, in which rates fall.

    `early_stopping` is how many validations without a lower loss end the training, `validations` how many there are
    an epoch. `loss_weights: static` takes those of the tasks, `uncertainty` learns them (Kendall et al. 2018),
    `gradnorm` balances the tasks' gradients (Chen et al. 2018). With `fresh_tables` every epoch begins with new
    embeddings, as ids that are seen twice overfit (Liu et al. 2023). `warm_start` begins with the champion's weights
    (`true` for its usual settings). `buffer_rows` are held in memory and shuffled together. A checkpoint to resume from
    is written every `checkpoint_minutes`.
    """

    epochs: PositiveInt = 1
    batch_size: PositiveInt = 4096
    learning_rate: PositiveFloat = 2e-3
    embedding_learning_rate: PositiveFloat = 0.05
    fresh_tables: bool = False
    warm_up_steps: PositiveInt = 10
    learning_rate_decay: Share = 0.5
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat = 5.0
    loss_weights: Literal["static", "uncertainty", "gradnorm"] = "static"
    early_stopping: PositiveInt | None = None
    validations: PositiveInt = 1
    hide_ids: Share = 0.02
    hide_segments: Share = 0.05
    segment_decay: Share = 1e-3
    warm_start: WarmStart | None = None
    checkpoint_minutes: PositiveFloat = 5.0
    buffer_rows: PositiveInt = 262_144
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None

    @field_validator("warm_start", mode="before", json_schema_input_type=WarmStart | bool | None)
    @classmethod
    def _true_for_the_usual(cls, value: Any) -> Any:
        return {True: WarmStart(), False: None}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _keep_or_forget(self) -> Self:
        if self.fresh_tables and self.warm_start and self.epochs > 1:
            raise ValueError("fresh_tables would forget the embeddings that warm_start takes over: leave out one")
        return self
