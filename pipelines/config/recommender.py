"""A whole recommender: its parts, and what they must agree on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from pipelines.config.contract import Contract, Leaks, Retention, Sampling
from pipelines.config.data import Columns, Features, TaskSource, history_feature, last_seen_feature
from pipelines.config.exports import Export, FileExport, RedisExport
from pipelines.config.monitoring import Monitoring
from pipelines.config.scoring import CoVisited, Popular, Scoring, Similar
from pipelines.config.segments import WrittenSegments
from pipelines.config.sources import Name, Sources
from pipelines.config.steps import Evaluation, ModelShape, Schedule, Simulation
from pipelines.config.tuning import Tuning, Value, check_paths, value_at, with_values
from recsys_moe.config import BehaviouralSegments, Frozen, Segments, TrainingConfig

if TYPE_CHECKING:
    from recsys_moe.scoring import Blend

RESERVED_COLUMNS = ("ds", "event_day", "event_time", "source_row", "source_file", "row_weight", "removed")
"""Columns that the tables add; a source may not bring its own. (The timestamp itself may be called event_time.)"""


@dataclass(frozen=True)
class Origin:
    """The YAML that a recommender was read from: its file, and its text with `${VAR}` as it is written there."""

    file: Path
    text: str


class Recommender(Frozen):
    """A whole recommender.

    `storage` holds its tables, in a folder or on S3; `local` is the folder for scratch files where that is on S3.
    """

    name: Name
    storage: str
    local: str | None = None
    source: Sources
    columns: Columns
    tasks: Annotated[tuple[TaskSource, ...], Field(min_length=1)]
    features: Features
    contract: Contract = Contract()
    leaks: Leaks = Leaks()
    segments: Segments | None = None
    sampling: Sampling = Sampling()
    model: ModelShape = ModelShape()
    training: TrainingConfig = TrainingConfig()
    tuning: Tuning | None = None
    evaluation: Evaluation = Evaluation()
    scoring: Scoring = Scoring()
    exports: tuple[Export, ...] = ()
    monitoring: Monitoring = Monitoring()
    schedule: Schedule | None = None
    retention: Retention = Retention()
    simulation: Simulation | None = None
    _origin: Origin | None = PrivateAttr(None)

    @field_validator("segments", mode="before", json_schema_input_type=WrittenSegments | None)
    @classmethod
    def _short_forms(cls, value: Any, info: ValidationInfo) -> Any:
        """`by: tab`, `by: {bucket: …}`, `by: {cross: …}` and `by: {behavioural: …}` are what a person writes."""
        if not isinstance(value, dict):
            return value
        written, known = WrittenSegments.model_validate(value), info.data
        if not {"columns", "tasks", "features"} <= set(known):
            return None  # What they hold was refused, and is told first.
        tasks = [task.name for task in known["tasks"]]
        return written.resolved(known["features"].history, known["columns"].user, tasks)

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        _check_tasks(self)
        _check_outcomes(self)
        _check_columns(self)
        _check_names(self)
        _check_experts(self)
        _check_warm_start(self)
        _check_tuning(self)
        _check_lists(self)
        _check_candidates(self)
        _check_exports(self)
        _check_gate(self)
        return self

    @classmethod
    def read(cls, raw: Mapping[str, Any], origin: Origin) -> Self:
        """The recommender of a YAML's values, that knows where they come from.

        Raises:
            ValidationError: they are not valid.
        """
        config = cls.model_validate(raw)
        config._origin = origin
        return config

    @property
    def origin(self) -> Origin:
        """Where it was read from; only one that was made by `read` can be asked."""
        assert self._origin is not None
        return self._origin

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns of the log that hold labels, each once."""
        return tuple(dict.fromkeys(task.label for task in self.tasks if task.label is not None))

    @property
    def workspace(self) -> Path:
        """The local folder for what is only needed on this machine: the storage, or, where that is on S3, one beside
        the YAML's folder."""
        return Path(self.local or self.storage)

    @property
    def primary_task(self) -> str:
        """The task that promotion looks at: the gate's, or the first."""
        return self.evaluation.gate.task or self.tasks[0].name

    def tuned(self, values: Mapping[str, Value]) -> Self:
        """The same recommender with other values at some paths below `model` and `training`.

        Raises:
            ValueError: a value is not possible, by itself or beside the others.
        """
        changed = self.model_copy(update=with_values(self._tunable, values))
        _check_experts(changed)
        return changed

    def setting(self, path: str) -> Any:
        """What stands at a path below `model` or `training`."""
        return value_at(self._tunable, path)

    def takes_whole_numbers(self, path: str) -> bool:
        """Whether the setting at a path that `tuning` searches is a whole number."""
        assert self.tuning is not None
        possible = next(self.tuning.combinations(path.partition(".")[0]))
        return isinstance(self.tuned(possible).setting(path), int)

    @property
    def _tunable(self) -> dict[str, ModelShape | TrainingConfig]:
        return {"model": self.model, "training": self.training}

    @property
    def blend(self) -> Blend:
        """How tasks' probabilities make the final score; the first task's alone where nothing is said."""
        from recsys_moe.scoring import Blend  # with it comes torch, which reading a configuration does without

        if self.scoring.powers:
            return Blend(self.scoring.powers, "product")
        return Blend(self.scoring.weights or {self.tasks[0].name: 1.0})


def _check_tasks(config: Recommender) -> None:
    names = [task.name for task in config.tasks]
    if len(set(names)) < len(names):
        raise ValueError(f"tasks: two tasks share a name in {names}")
    for position, task in enumerate(config.tasks):
        if task.given is None:
            continue
        if task.given not in names[:position]:
            raise ValueError(f"tasks.{task.name}.given: {task.given!r} is no task listed before it (there is {names})")
        if config.tasks[names.index(task.given)].kind != "binary":
            raise ValueError(f"tasks.{task.name}.given: {task.given!r} is no yes or no; name a binary task")
    sampled = config.sampling.keep_negatives
    history = config.features.history
    wanted = {"evaluation.gate.task": config.evaluation.gate.task}
    wanted |= {"sampling.keep_negatives.task": sampled.task if sampled else None}
    wanted |= {f"features.history.recent.{n}.task": r.task for n, r in enumerate(history.recent if history else ())}
    wanted |= {f"scoring.weights.{name}": name for name in config.scoring.weights or {}}
    wanted |= {f"scoring.powers.{name}": name for name in config.scoring.powers or {}}
    for where, name in wanted.items():
        if name is not None and name not in names:
            raise ValueError(f"{where}: {name!r} is no task; there is {names}")
    for name in config.scoring.powers or {}:
        if config.tasks[names.index(name)].kind != "binary":
            raise ValueError(
                f"scoring.powers.{name}: {name!r} is no yes or no, and its value may be negative; use weights"
            )


def _check_outcomes(config: Recommender) -> None:
    outcomes = {outcome.name: outcome for outcome in config.source.outcomes}
    for task in config.tasks:
        if task.outcome is not None and task.outcome not in outcomes:
            raise ValueError(f"tasks.{task.name}.outcome: {task.outcome!r} is none of source.outcomes {[*outcomes]}")
        if task.value and task.value.lower() in {"outcome", "user", "item", "request", *RESERVED_COLUMNS}:
            raise ValueError(
                f"tasks.{task.name}.value: {task.value!r} is a column of the table itself; rename it at its source"
            )
    sampled = config.sampling.keep_negatives
    kinds = {task.name: task.kind for task in config.tasks}
    parents = {task.name: task.given for task in config.tasks}
    if sampled is not None and parents[sampled.task] is not None:
        raise ValueError(
            f"sampling.keep_negatives.task: {sampled.task!r} is given {parents[sampled.task]!r}; "
            "name a task that is given no other"
        )
    if sampled is not None and kinds[sampled.task] != "binary":
        raise ValueError(f"sampling.keep_negatives.task: {sampled.task!r} is no yes or no; name a binary task")


def _check_experts(config: Recommender) -> None:
    experts = config.model.experts
    if config.segments and experts.per_segment and not experts.shared:
        raise ValueError(
            "model.experts: per_segment needs shared >= 1, since a segment's expert is a change of a shared one"
        )


def _check_warm_start(config: Recommender) -> None:
    if config.training.warm_start and config.evaluation.split.by != "time":
        raise ValueError(
            "training.warm_start: needs evaluation.split.by: time, as it learns from the days that its start does not "
            f"know; with {config.evaluation.split.by} these are not told apart"
        )


def _check_tuning(config: Recommender) -> None:
    """Every value that a trial may get is tried before anything runs."""
    tuning = config.tuning
    if tuning is None:
        return
    check_paths(tuning.search, {"model": config.model, "training": config.training})
    for block in ("model", "training"):
        for values in tuning.combinations(block):
            config.tuned(values)
    for path, setting in tuning.search.items():
        if setting.step is not None and setting.step % 1 and config.takes_whole_numbers(path):
            raise ValueError(f"tuning.search.{path}: the setting is a whole number, so its step is no {setting.step:g}")
    kinds = {task.name: task.kind for task in config.tasks}
    judged = tuning.task or config.primary_task
    if tuning.task is not None and tuning.task not in kinds:
        raise ValueError(f"tuning.task: {tuning.task!r} is no task; there is {[*kinds]}")
    if tuning.higher_is_better and kinds.get(judged) == "regression":
        raise ValueError(f"tuning.metric: {tuning.metric} is for a binary task, and {judged!r} is a regression")


def _check_gate(config: Recommender) -> None:
    gate, kinds = config.evaluation.gate, {task.name: task.kind for task in config.tasks}
    for number, guard in enumerate(gate.guards):
        if guard.task not in kinds:
            raise ValueError(f"evaluation.gate.guards.{number}.task: {guard.task!r} is no task; there is {[*kinds]}")
    judged = {"gate": (config.primary_task, gate.metric)}
    judged |= {f"gate.guards.{number}": (guard.task, guard.metric) for number, guard in enumerate(gate.guards)}
    for where, (task, metric) in judged.items():
        if metric is not None and (metric == "rmse") != (kinds.get(task) == "regression"):
            fit = "rmse" if kinds.get(task) == "regression" else "auc, gauc or log_loss"
            raise ValueError(f"evaluation.{where}.metric: {metric} is not for {task!r}; it has {fit}")


def _check_lists(config: Recommender) -> None:
    named, names = config.evaluation.lists.diversity_by, [feature.name for feature in config.features.categorical]
    if named is not None and named not in names:
        raise ValueError(f"evaluation.lists.diversity_by: {named!r} is no categorical feature; there is {names}")


def _check_candidates(config: Recommender) -> None:
    kinds = {task.name: task.kind for task in config.tasks}
    for one in config.scoring.candidates:
        where = f"scoring.candidates.{one.source}"
        if isinstance(one, Popular) and one.by == "segment" and config.segments is None:
            raise ValueError(f"{where}.by: there are no segments; take everyone, or say what `segments` are by")
        if isinstance(one, CoVisited | Similar) and one.task is not None and kinds.get(one.task) != "binary":
            binary = [name for name, kind in kinds.items() if kind == "binary"]
            raise ValueError(f"{where}.task: {one.task!r} is no binary task; there is {binary}")


def _check_exports(config: Recommender) -> None:
    if doubled := _doubled([target.name for target in config.exports]):
        raise ValueError(f"exports: two targets share the name {doubled[0]!r}")
    servers = [target for target in config.exports if isinstance(target, RedisExport)]
    if doubled := _doubled([f"{target.prefix or config.name}: at {target.connection}" for target in servers]):
        raise ValueError(f"exports: two targets write {doubled[0]}; give each a prefix of its own")
    if doubled := _doubled([target.path for target in config.exports if isinstance(target, FileExport)]):
        raise ValueError(f"exports: two targets write {doubled[0]!r}")


def _check_columns(config: Recommender) -> None:
    columns, features = config.columns, config.features
    named = [*(f.name for f in features.categorical), *features.multivalued, *(f.name for f in features.numeric)]
    if not named:
        raise ValueError("features: name at least one categorical, multivalued or numeric column")
    doubled = _doubled(named)
    if doubled:
        raise ValueError(f"features: {doubled} stand twice; a column is one kind of feature")
    labels = set(config.label_columns)
    for what, column in (("user", columns.user), ("item", columns.item), ("timestamp", columns.timestamp.name)):
        if column in labels:
            raise ValueError(f"tasks: the label {column!r} is columns.{what}; a label is a column of its own")
    inputs = set(feature_columns(config)) | set(named)
    leaks = sorted(labels & inputs)
    if leaks:
        raise ValueError(f"features: {leaks} is a task's label; a model must not read what it predicts")
    late = sorted(set(columns.outcomes) & inputs)
    if late:
        raise ValueError(
            f"features: {late} is in columns.outcomes; a model must not read what is known only afterwards"
        )
    if columns.weight in inputs | labels:
        raise ValueError(f"columns.weight: {columns.weight!r} is a feature or a label; a weight is a column of its own")
    if columns.timestamp.name in inputs:
        raise ValueError(f"features: {columns.timestamp.name!r} is the event's time; use hour or weekday")
    for place, context in config.scoring.named_contexts.items():
        unread = sorted(set(context) - set(feature_columns(config)))
        if unread:
            where = f"scoring.contexts.{place}" if config.scoring.contexts else "scoring.context"
            raise ValueError(f"{where}: {unread} is read by no feature, history key or segment")


def _check_names(config: Recommender) -> None:
    """Names that tables will hold side by side. SQL takes `Tab` and `tab` for one name, so they must not both be."""
    columns, split = config.columns, config.evaluation.split
    raw = [columns.user, columns.item, *columns.unique, *feature_columns(config)]
    raw += [*config.label_columns, *([split.column] if split.by == "column" else [])]
    raw += [column for column in (columns.weight, *request_columns(config)) if column]
    raw += config.contract.columns
    stamp = columns.timestamp.name
    raw = [column for column in dict.fromkeys([stamp, *raw]) if column != stamp or stamp.lower() != "event_time"]
    made = [feature.name for feature in config.features.numeric if feature.days_since and feature.name not in raw]
    history = _history_features(config)
    reserved = {*RESERVED_COLUMNS, *(f"label_{task.name}" for task in config.tasks), *map(str.lower, history)}
    clash = sorted(name for name in [*raw, *made] if name.lower() in reserved or name.startswith("__"))
    if clash:
        raise ValueError(f"{clash} are names that the tables use themselves; rename the column at its source")
    alike = _doubled([name.lower() for name in [*raw, *made]])
    if alike:
        raise ValueError(f"{alike} are columns that differ in upper and lower case only; rename one at its source")
    if _doubled(history):
        raise ValueError(f"features.history: two features would be called {_doubled(history)}; rename a column")
    ages = [feature for feature in config.features.numeric if feature.days_since not in (None, feature.name)]
    overwritten = sorted(feature.name for feature in ages if feature.name in raw)
    if overwritten:
        raise ValueError(f"features.numeric: {overwritten} is a column already; call the days since it something else")


def segment_columns(config: Recommender) -> tuple[str, ...]:
    """The raw columns that a segment is made of: for one by behaviour, which is made of history, the user's id."""
    if config.segments is None:
        return ()
    by_history = isinstance(config.segments.by, BehaviouralSegments)
    return (config.columns.user,) if by_history else config.segments.columns


def request_columns(config: Recommender) -> tuple[str, ...]:
    """The columns of the log that outcomes are joined by, each once."""
    return tuple(dict.fromkeys(outcome.request for outcome in config.source.outcomes if outcome.request))


def feature_columns(config: Recommender) -> list[str]:
    """Every raw column that a feature, a history key or a segment is made of, each once."""
    features = config.features
    keys = features.history.keys if features.history else ()
    recent = features.history.recent if features.history else ()
    columns = [
        *(feature.name for feature in features.categorical),
        *features.multivalued,
        *(feature.days_since or feature.name for feature in features.numeric),
        *(column for key in keys for column in key),
        *(column for one in recent for column in (one.key, one.of)),
        *segment_columns(config),
    ]
    return list(dict.fromkeys(columns))


def _history_features(config: Recommender) -> list[str]:
    history = config.features.history
    measures = ["rows", *(f"{task.name}_rate" for task in config.tasks)]
    windows = [(key, days) for key in history.keys for days in history.days] if history else []
    names = [history_feature(key, days, what) for key, days in windows for what in measures]
    if history and history.days_since_last:
        names += [last_seen_feature(key) for key in history.keys]
    return [*names, *(recent.feature for recent in (history.recent if history else ()))]


def _doubled(names: Iterable[str]) -> list[str]:
    names = list(names)
    return sorted({name for name in names if names.count(name) > 1})
