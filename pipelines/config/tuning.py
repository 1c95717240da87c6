"""What `recsys-moe tune` looks for: settings of the model and its training, and by which number they are judged."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from recsys_moe.config import Frozen

Value = bool | int | float | str | None | tuple[int, ...]
"""What a setting can be; a list is for layers, as in `[64, 32]`."""
Blocks = Mapping[str, BaseModel]
"""The blocks of the YAML that can be searched, by name."""
MOST_COMBINATIONS = 10_000
"""More ends and choices than these, taken together, are not checked one by one before anything runs."""


class Setting(Frozen):
    """What one setting may be: one of `choices`, or a number from `low` to `high`.

    Both ends count. `log` draws by the number's logarithm, `step` only from `low`, `low + step`, …; a setting that
    takes whole numbers only gets whole numbers.
    """

    choices: Annotated[tuple[Value, ...], Field(min_length=2)] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: PositiveFloat | None = None

    @model_validator(mode="after")
    def _is_a_list_or_a_range(self) -> Self:
        if self.choices is not None:
            if not (self.low is self.high is self.step is None and not self.log):
                raise ValueError("give either choices, or low and high")
            if len({repr(choice) for choice in self.choices}) < len(self.choices):
                raise ValueError(f"choices: {list(self.choices)} names one twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give choices, or low and high")
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log: a logarithm needs low above 0, not {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("give either log or step")
        return self

    @property
    def bounds(self) -> tuple[Value, ...]:
        """The values that show whether all are possible: every choice, or both ends."""
        return self.choices if self.choices is not None else (self.low, self.high)


class Tuning(Frozen):
    """A search for better settings: how many `trials`, over what, and what makes one better than another.

    `search` names settings by their path in the YAML, such as `training.learning_rate`. Each trial is judged on the
    validation days: by the loss that training minimises, or, with a `task`, by that task's; or by `auc` or `gauc` of a
    task, the one that promotion looks at where none is named. It is compared with the others `validations` times an
    epoch, and given up if it does worse than their median.
    """

    trials: PositiveInt = 20
    seed: NonNegativeInt = 0
    metric: Literal["log_loss", "auc", "gauc"] = "log_loss"
    task: str | None = None
    validations: PositiveInt = 4
    search: Annotated[dict[str, Setting], Field(min_length=1)]

    @property
    def higher_is_better(self) -> bool:
        """Whether the best trial is the one with the highest value."""
        return self.metric != "log_loss"

    def combinations(self, block: str) -> Iterator[dict[str, Value]]:
        """The ends and choices of all settings of a block, each with each.

        Raises:
            ValueError: there are too many to check.
        """
        bounds = {path: one.bounds for path, one in self.search.items() if path.partition(".")[0] == block}
        if math.prod(map(len, bounds.values())) > MOST_COMBINATIONS:
            raise ValueError(
                f"tuning.search: the ends and choices below {block} make more than {MOST_COMBINATIONS} combinations; "
                "search for fewer settings at a time"
            )
        return (dict(zip(bounds, values, strict=True)) for values in itertools.product(*bounds.values()))


def check_paths(search: Mapping[str, Setting], blocks: Blocks) -> None:
    """Raise ValueError where a path of `search` leads to no setting of the blocks."""
    for path in search:
        block, *parts = path.split(".")
        if block not in blocks or not parts:
            raise ValueError(
                f"tuning.search.{path}: what can be searched lies below {' or '.join(blocks)}, such as "
                "training.learning_rate; another value of anything else would need the days prepared again"
            )
        fields = type(blocks[block]).model_fields
        for number, part in enumerate(parts):
            if part not in fields:
                close = difflib.get_close_matches(part, list(fields), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(
                    f"tuning.search.{path}: {part!r} is no key of {'.'.join([block, *parts[:number]])}{hint}"
                )
            kind = fields[part].annotation
            fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
    if "model.preset" in search and getattr(blocks["model"], "preset", None) is not None:
        raise ValueError("tuning.search.model.preset: leave model.preset out of the YAML where it is searched for")


def with_values(blocks: Blocks, values: Mapping[str, Value]) -> dict[str, BaseModel]:
    """The blocks with other values in place, checked as if the YAML had been written so.

    Raises:
        ValueError: a value is not possible, by itself or beside the others.
    """
    raw = {name: block.model_dump(exclude_unset=True) for name, block in blocks.items()}
    for path, value in values.items():
        *folders, leaf = path.split(".")
        place: dict[str, Any] = raw
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    try:
        return {name: type(block).model_validate(raw[name]) for name, block in blocks.items()}
    except ValidationError as error:
        problem = error.errors()[0]
        where = f"tuning.search.{next(iter(values))}" if len(values) == 1 else "tuning.search"
        tried = " and ".join(f"{path} {value!r}" for path, value in values.items())
        key = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{where}: {tried} cannot be: {key}: {problem['msg'].removeprefix('Value error, ')}") from None


def value_at(blocks: Blocks, path: str) -> Any:
    """What a setting of the blocks is now."""
    block, *parts = path.split(".")
    value: Any = blocks[block]
    for part in parts:
        value = getattr(value, part)
    return value
