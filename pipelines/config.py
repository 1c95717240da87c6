"""One YAML describes a recommender: read, checked whole, and frozen before anything runs."""

from __future__ import annotations

import difflib
import os
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

import yaml
from pydantic import Discriminator, Field, PositiveInt, Tag, ValidationError, field_validator, model_validator

from recsys_moe.config import (
    BucketSegments,
    ColumnSegments,
    CrossSegments,
    Experts,
    Frozen,
    Segments,
    Share,
    Task,
    TrainingConfig,
)
from recsys_moe.errors import UserError

DERIVED_COLUMNS = ("hour", "weekday")
"""Context columns that every interaction has without asking: local hour 0..23 and ISO weekday 1..7."""
RESERVED_COLUMNS = ("ds", "event_day", "event_time")
"""Columns that the tables add; a source may not bring its own."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Column = Annotated[str, Field(min_length=1)]


class Source(Frozen):
    """Where rows come from: a path, with `{ds}` or `{ds_nodash}` if there is one file a day."""

    path: str
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet"] = "auto"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None

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


class History(Frozen):
    """Counts and smoothed rates per key (a column, or a pair) over windows of days strictly before the event."""

    keys: Annotated[tuple[tuple[Column, ...], ...], Field(min_length=1)]
    days: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (7,)
    smoothing: Annotated[float, Field(gt=0)] = 20.0

    @field_validator("keys", mode="before", json_schema_input_type=list[Column | list[Column]])
    @classmethod
    def _single_or_pair(cls, value: Any) -> Any:
        return [[key] if isinstance(key, str) else key for key in value] if isinstance(value, list) else value


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


class CrossForm(Frozen):
    """`by: {cross: {columns: […], parent: …}}`."""

    cross: CrossSegments


def _segment_form(by: str | dict[str, Any]) -> str:
    """Which of the three it is, so that a mistake inside is told of that one alone."""
    return next(iter(by)) if isinstance(by, dict) else "column"


class WrittenSegments(Frozen):
    """Segments as a person writes them; `recsys_moe.config.Segments` is what they become."""

    by: Annotated[
        Annotated[Column, Tag("column")] | Annotated[BucketForm, Tag("bucket")] | Annotated[CrossForm, Tag("cross")],
        Discriminator(_segment_form),
    ]
    min_rows: PositiveInt = 1000

    @field_validator("by", mode="before", json_schema_input_type=Column | BucketForm | CrossForm)
    @classmethod
    def _one_of_three(cls, value: Any) -> Any:
        if not isinstance(value, str) and not (isinstance(value, dict) and list(value) in (["bucket"], ["cross"])):
            raise ValueError(f"should be a column, {{bucket: …}} or {{cross: …}}, not {value!r}")
        return value

    def resolved(self) -> Segments:
        """The same, without the short forms."""
        match self.by:
            case BucketForm(bucket=bucket):
                return Segments(by=bucket, min_rows=self.min_rows)
            case CrossForm(cross=cross):
                return Segments(by=cross, min_rows=self.min_rows)
            case column:
                return Segments(by=ColumnSegments(column=column), min_rows=self.min_rows)


class ModelShape(Frozen):
    """The sizes of the network; see `recsys_moe.config.ModelConfig`."""

    embedding_dim: PositiveInt = 16
    min_count: PositiveInt = 1
    experts: Experts = Experts()
    towers: tuple[PositiveInt, ...] = (32,)


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


class RandomSplit(Frozen):
    """Rows are held out at random, as tables in papers do. History features still look at days before only."""

    by: Literal["random"]
    seed: Annotated[int, Field(ge=0)] = 0
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
    """When the DAGs run. Cron times are in `columns.timezone`."""

    ingest: str
    train: Literal["after_ingest"] = "after_ingest"
    score: Literal["after_train", "after_ingest"] = "after_train"
    every_day: bool = False
    start: date | None = None

    @field_validator("ingest")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError(f"{value!r} is no cron expression of five fields, such as '0 3 * * *'")
        return value


class Simulation(Frozen):
    """The size of the marketplace that `simulate` makes."""

    users: PositiveInt = 3000
    items: PositiveInt = 600
    rows_per_day: PositiveInt = 30000
    days: PositiveInt = 8
    start: date = date(2026, 1, 1)
    seed: Annotated[int, Field(ge=0)] = 0


class Recommender(Frozen):
    """A whole recommender."""

    name: Name
    storage: str
    source: Sources
    columns: Columns
    tasks: Annotated[tuple[TaskSource, ...], Field(min_length=1)]
    features: Features
    segments: Segments | None = None
    model: ModelShape = ModelShape()
    training: TrainingConfig = TrainingConfig()
    evaluation: Evaluation = Evaluation()
    scoring: Scoring = Scoring()
    schedule: Schedule | None = None
    simulation: Simulation | None = None

    @field_validator("segments", mode="before", json_schema_input_type=WrittenSegments | None)
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """`by: tab`, `by: {bucket: …}` and `by: {cross: …}` are what a person writes."""
        return WrittenSegments.model_validate(value).resolved() if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        _check_tasks(self)
        _check_columns(self)
        return self

    @property
    def primary_task(self) -> str:
        """The task that promotion looks at: the gate's, or the first."""
        return self.evaluation.gate.task or self.tasks[0].name

    @property
    def score_weights(self) -> dict[str, float]:
        """Weight of each task's probability in the final score; the first task alone where nothing is said."""
        return self.scoring.weights or {self.tasks[0].name: 1.0}


def _check_tasks(config: Recommender) -> None:
    names = [task.name for task in config.tasks]
    if len(set(names)) < len(names):
        raise ValueError(f"tasks: two tasks share a name in {names}")
    for position, task in enumerate(config.tasks):
        if task.given is not None and task.given not in names[:position]:
            raise ValueError(f"tasks.{task.name}.given: {task.given!r} is no task listed before it (there is {names})")
    wanted = {"evaluation.gate.task": config.evaluation.gate.task}
    wanted |= {f"scoring.weights.{name}": name for name in config.scoring.weights or {}}
    for where, name in wanted.items():
        if name is not None and name not in names:
            raise ValueError(f"{where}: {name!r} is no task; there is {names}")


def _check_columns(config: Recommender) -> None:
    features = config.features
    labels = {task.label for task in config.tasks}
    named = [*features.categorical, *features.multivalued, *(f.name for f in features.numeric)]
    if not named:
        raise ValueError("features: name at least one categorical, multivalued or numeric column")
    doubled = sorted({name for name in named if named.count(name) > 1})
    if doubled:
        raise ValueError(f"features: {doubled} stand twice; a column is one kind of feature")
    history = [column for key in (features.history.keys if features.history else ()) for column in key]
    inputs = {*named, *history, *(config.segments.columns if config.segments else ())}
    inputs |= {f.days_since for f in features.numeric if f.days_since}
    leaks = sorted(labels & inputs)
    if leaks:
        raise ValueError(f"features: {leaks} is a task's label; a model must not read what it predicts")
    if config.columns.timestamp.name in inputs:
        raise ValueError(f"features: {config.columns.timestamp.name!r} is the event's time; use hour or weekday")
    reserved = sorted({*inputs, *labels} & set(RESERVED_COLUMNS))
    if reserved:
        raise ValueError(f"{reserved} are names that the tables use themselves; rename the column at its source")


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _expand(value: Any, where: str) -> Any:
    """Put `${VAR}` and `${VAR:-default}` in place, in every string."""
    if isinstance(value, dict):
        return {key: _expand(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{where}.{n}") for n, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise UserError(f"{where}: the environment has no {match[1]}; set it or write ${{{match[1]}:-default}}")
        return found

    return _VARIABLE.sub(lookup, value)


def _absolute(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the storage and source paths absolute; what is malformed is left for pydantic to name."""

    def place(path: Any) -> Any:
        return str((folder / path).resolve()) if isinstance(path, str) and "://" not in path else path

    def source(value: Any) -> Any:
        if isinstance(value, list):
            return [source(item) for item in value]
        return {**value, "path": place(value.get("path"))} if isinstance(value, dict) and "path" in value else value

    raw = dict(raw)
    if isinstance(raw.get("storage"), str):
        raw["storage"] = _inside_root(raw["storage"], folder)
    if isinstance(raw.get("source"), dict):
        raw["source"] = {key: source(value) for key, value in raw["source"].items()}
    return raw


def _inside_root(storage: str, folder: Path) -> str:
    """The storage folder, made absolute; a YAML must not write where nobody expects it."""
    if "://" in storage:
        raise UserError(f"storage: {storage!r} is no local folder; object stores are not read or written yet")
    root = Path(os.environ.get("RECSYS_MOE_STORAGE_ROOT", folder.parent)).resolve()
    path = (folder / storage).resolve()
    if path == root or not path.is_relative_to(root):
        raise UserError(
            f"storage: {storage!r} leaves its root {root}; name a folder inside it, or set RECSYS_MOE_STORAGE_ROOT"
        )
    return str(path)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"unknown key{_did_you_mean(problem['loc'])}"
    elif problem["type"] not in ("value_error", "missing"):
        message += f", not {problem['input']!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {message}{more}" if where else f"{message}{more}"


def _did_you_mean(loc: tuple[int | str, ...]) -> str:
    model: Any = Recommender
    for part in loc[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    close = difflib.get_close_matches(str(loc[-1]), list(getattr(model, "model_fields", {})), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def load(path: Path) -> Recommender:
    """Read and check a recommender's YAML.

    Raises:
        UserError: naming the file, the key inside it and what would be right.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --config takes a recommender's YAML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: should hold keys such as name, storage and source")
    try:
        return Recommender.model_validate(_absolute(_expand(raw, ""), path.resolve().parent))
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recommender's YAML, for editors and for the DAG file."""
    schema = Recommender.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "recsys_moe recommender", **schema}
