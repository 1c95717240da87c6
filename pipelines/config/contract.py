"""What the data must be to be believed, what of it is trained on, and how long it is kept. Each checked by itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipelines.config.sources import Column, Name
from recsys_moe.config import Frozen

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class ColumnRule(Frozen):
    """What the values of a column must be; rows of which one is not are set aside.

    `type` is text (anything), number, integer or boolean (0, 1, true, false); `nullable: false` refuses what is
    missing; `min` and `max` go with numbers, `allowed` lists the values.
    """

    type: Literal["text", "number", "integer", "boolean"] = "text"
    nullable: bool = True
    min: float | None = None
    max: float | None = None
    allowed: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @field_validator("allowed", mode="before", json_schema_input_type=list[str | int] | None)
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return [str(one) if type(one) is int else one for one in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _ranges_are_of_numbers(self) -> Self:
        if self.type not in ("number", "integer") and (self.min is not None or self.max is not None):
            raise ValueError(f"min and max are for type: number or integer, not {self.type}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"no value is at least {self.min:g} and at most {self.max:g}")
        return self


class Volume(Frozen):
    """How far a day's rows may be from the median of the last `days` days before it, as shares of that.

    Looked at where there are three such days at least, and only where each day has files of its own.
    """

    days: Annotated[int, Field(ge=3)] = 7
    min: NonNegativeFloat = 0.2
    max: PositiveFloat = 5.0

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min {self.min:g} must be below max {self.max:g}")
        return self


class Contract(Frozen):
    """Rules by column of the log, users, items or outcomes, and the limits past which a day is not published.

    `max_rejected` is the largest share of a day's rows that may break the rules.
    """

    columns: dict[Column, ColumnRule] = Field(default_factory=dict)
    max_rejected: Fraction = 0.1
    volume: Volume | None = Volume()


class Leaks(Frozen):
    """What is refused or warned of as knowing too much.

    A feature that by itself ranks a task's label with an AUC above `warn_auc` is named in a warning. A date feature
    (`days_since`) of which more than the share `max_future` lies after the event is refused.
    """

    warn_auc: Annotated[float, Field(gt=0.5, le=1.0)] = 0.95
    max_future: Fraction = 0.05


class MadeNegatives(Frozen):
    """Negatives for a log that has positives only, made as the day's examples are.

    Each row gets `per_positive` of them: the same user and moment with an item drawn in proportion to
    (its rows on the last `days` days, this one included) to the power `popularity`, but none that the user has a row
    with on these days. All labels of such a row are 0.
    """

    per_positive: PositiveInt = 4
    popularity: NonNegativeFloat = 0.75
    days: PositiveInt = 7
    seed: NonNegativeInt = 0


class KeptNegatives(Frozen):
    """Training on a share of the rows whose label of `task` is 0, drawn by a hash of the row; others are all kept.

    The model's probability of that task is corrected for it; for tasks that are not given it, the kept rows weigh
    1 / share.
    """

    task: Name
    share: Annotated[float, Field(gt=0.0, le=1.0)]
    seed: Annotated[int, Field(ge=0, lt=10**12)] = 0


class Sampling(Frozen):
    """Which rows are made or left out, so that positives and negatives are in proportion."""

    make_negatives: MadeNegatives | None = None
    keep_negatives: KeptNegatives | None = None


class Retention(Frozen):
    """How many days are kept, counted back from the newest; None keeps all. `recsys-moe maintain` removes the rest.

    `versions` is for how many days old versions of the tables can be read; those that a registered model names are
    kept in any case.
    """

    examples: PositiveInt | None = None
    scores: PositiveInt | None = None
    rejected: PositiveInt | None = None
    versions: PositiveInt = 7
