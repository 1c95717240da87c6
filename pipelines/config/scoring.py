"""Top-N per user: which items are looked at, what is left out, how one score is made, and what may be published.
Each checked by itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from pipelines.config.sources import Column, Name, Source
from recsys_moe.config import Frozen, Share


class AllItems(Frozen):
    """Every known item. It stands alone: no other source could add one."""

    source: Literal["all"] = "all"


class _Source(Frozen):
    """With `if_fewer_than` it is asked only for users for whom the sources before it have found fewer items."""

    if_fewer_than: PositiveInt | None = None


class Popular(_Source):
    """The most shown items of the last days; with `by: segment` those of the user's segment."""

    source: Literal["popular"] = "popular"
    limit: PositiveInt = 200
    days: PositiveInt = 7
    by: Literal["everyone", "segment"] = "everyone"


class Newest(_Source):
    """The items that came last: by a date column of theirs, or by the day of their first row in the log."""

    source: Literal["recent"]
    limit: PositiveInt = 100
    column: Column | None = None


class _FromSeeds(_Source):
    """Items near those that a user met last: `seeds` of the last `days` days, with a label of 1 in `task` if it is
    named. Of each, its `neighbours` nearest count."""

    limit: PositiveInt = 100
    days: PositiveInt = 30
    seeds: PositiveInt = 20
    neighbours: PositiveInt = 50
    task: str | None = None


class CoVisited(_FromSeeds):
    """Items that others met, too, who met one of the user's: counted in the log of these days."""

    source: Literal["co_visited"]


class Similar(_FromSeeds):
    """Items whose vectors are near, as the model reads them."""

    source: Literal["similar"]


class Listed(_Source):
    """A table of one's own: rows of a user and an item, in the columns that `columns` names, best first."""

    source: Literal["table"]
    rows: Source
    limit: PositiveInt = 200


Candidates = Annotated[
    AllItems | Popular | Newest | CoVisited | Similar | Listed,
    Field(discriminator="source"),
]


class ItemRule(Frozen):
    """What an item's column must be, or the item is nobody's candidate. A missing value breaks each but `none_of`."""

    column: Column
    one_of: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    none_of: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    at_least: float | None = None
    at_most: float | None = None

    @field_validator("one_of", "none_of", mode="before", json_schema_input_type=list[str | int] | None)
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return [str(one) if type(one) is int else one for one in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _rules_something(self) -> Self:
        if (self.one_of, self.none_of, self.at_least, self.at_most) == (None, None, None, None):
            raise ValueError("say what the values must be: one_of, none_of, at_least or at_most")
        return self


class Availability(Frozen):
    """From when until when an item may be shown, by its columns: dates, both included. A missing one is no bound."""

    since: Column | None = None
    until: Column | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.since is None and self.until is None:
            raise ValueError("name the column of the first day, `since`, or that of the last, `until`")
        return self


class Diversity(Frozen):
    """Lists re-ranked by maximal marginal relevance (Carbonell and Goldstein 1998): of the best `pool`, each place goes
    to the item whose score, from 0 to 1 in the pool, is best after `weight` is taken off where the list has an item of
    the same `by` already."""

    by: Column
    weight: Share = 0.3
    pool: PositiveInt = 100


class Checks(Frozen):
    """What keeps scores from being published: lists for too few of the users, or scores that lie elsewhere than on the
    day before (population stability index)."""

    min_coverage: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9
    max_shift: PositiveFloat | None = None


class Scoring(Frozen):
    """Top-N per user: for whom is it, at which moment, and how task probabilities make one score.

    The score is the sum of the probabilities times their `weights`, or the product of their `powers`. Users are those
    that are known, or those of the list `users`. Work is cut into shards of `users_per_shard`, which are done, tried
    again and, in Airflow, mapped one by one; `processes` work on them at once.
    """

    candidates: tuple[Candidates, ...] = (Popular(),)
    users: Source | None = None
    top_n: PositiveInt = 20
    exclude_seen: bool | PositiveInt = False
    available: Availability | None = None
    rules: tuple[ItemRule, ...] = ()
    context: dict[Column, str | int | float] = Field(default_factory=dict)
    contexts: dict[Name, dict[Column, str | int | float]] = Field(default_factory=dict)
    weights: Annotated[dict[str, float], Field(min_length=1)] | None = None
    powers: Annotated[dict[str, NonNegativeFloat], Field(min_length=1)] | None = None
    diversity: Diversity | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    checks: Checks = Checks()
    users_per_shard: PositiveInt = 50_000
    processes: PositiveInt = 1

    @field_validator("candidates", mode="before", json_schema_input_type=Candidates | list[Candidates])
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = [value]
        # A source that is not named is `popular`, the default.
        return [{"source": "popular", **one} if isinstance(one, dict) else one for one in value]

    @field_validator("candidates")
    @classmethod
    def _some_that_add_something(cls, value: tuple[Candidates, ...]) -> tuple[Candidates, ...]:
        sources = [one.source for one in value]
        if not sources:
            raise ValueError("name at least one source of candidates")
        if "all" in sources and len(sources) > 1:
            raise ValueError("`all` has every item; take it alone, or take it out")
        if doubled := sorted({one for one in sources if sources.count(one) > 1}):
            raise ValueError(f"{doubled[0]!r} is there twice")
        if isinstance(value[0], _Source) and value[0].if_fewer_than is not None:
            raise ValueError(
                f"{sources[0]!r} is the first, so no source before it has found anything: no if_fewer_than"
            )
        return value

    @field_validator("weights", "powers")
    @classmethod
    def _weigh_something(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value and not any(value.values()):
            raise ValueError("all are 0, which gives every item the same score; weigh at least one task")
        return value

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if self.context and self.contexts:
            raise ValueError("give either context (one moment) or contexts (several, by name), not both")
        if self.weights and self.powers:
            raise ValueError("give either weights (a sum) or powers (a product), not both")
        if self.diversity is not None and self.diversity.pool < self.top_n:
            raise ValueError(f"diversity.pool {self.diversity.pool} must be at least top_n {self.top_n}")
        return self

    @property
    def item_columns(self) -> tuple[str, ...]:
        """The columns of items that are read here, beside those that features are made of."""
        named = [self.available.since, self.available.until] if self.available else []
        named += [rule.column for rule in self.rules]
        named += [one.column for one in self.candidates if isinstance(one, Newest)]
        named += [self.diversity.by] if self.diversity else []
        return tuple(dict.fromkeys(column for column in named if column is not None))

    @property
    def named_contexts(self) -> dict[str, dict[str, str | int | float]]:
        """The moments to score for, by name; a single one is called `default`."""
        return self.contexts or {"default": self.context}
