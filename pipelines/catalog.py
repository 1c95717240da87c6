"""Which column lives where: whose property it is, and which features the model gets from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import chain

from pipelines import sources
from pipelines.config import (
    DERIVED_COLUMNS,
    Recommender,
    Source,
    feature_columns,
    history_feature,
    last_seen_feature,
    request_columns,
    segment_columns,
)
from recsys_moe.config import Feature, ModelConfig, SampledNegatives, Side, Task
from recsys_moe.errors import UserError


def log_columns(config: Recommender) -> list[str]:
    """The columns that every interaction must have: who, what, when, and the labels."""
    columns = config.columns
    split = config.evaluation.split
    wanted = [columns.user, columns.item, columns.timestamp.name, *config.label_columns]
    wanted += [*columns.unique, *([split.column] if split.by == "column" else [])]
    wanted += [*([columns.weight] if columns.weight else []), *request_columns(config)]
    return list(dict.fromkeys(wanted))


@dataclass(frozen=True)
class Files:
    """Which columns to take from which file. `users` and `items` go with the sources of the same position."""

    interactions: tuple[str, ...]
    users: tuple[tuple[str, ...], ...]
    items: tuple[tuple[str, ...], ...]


def columns_of_log(config: Recommender, ds: date) -> tuple[str, ...]:
    """The columns that come from the log: those that it must have, and what it has of the others.

    Raises:
        UserError: it lacks one that it must have.
    """
    header = sources.columns_of(config.source.interactions, ds)
    for column in log_columns(config):
        if column not in header:
            raise UserError(f"{_place(config.source.interactions, ds)}: has no column {column!r}; {_header(header)}")
    others = [column for column in (*feature_columns(config), *config.contract.columns) if column in header]
    return tuple(dict.fromkeys([*log_columns(config), *others]))


def locate(config: Recommender, ds: date) -> Files:
    """Find every column that the YAML names in the headers of day `ds`: in the log, else the users, else the items.

    Raises:
        UserError: a column is in none of them.
    """
    from_log = columns_of_log(config, ds)
    features = [c for c in feature_columns(config) if c not in from_log and c not in DERIVED_COLUMNS]
    wanted = list(dict.fromkeys([*features, *(c for c in config.contract.columns if c not in from_log)]))
    users, wanted = _take(config.source.users, config.columns.user, wanted, ds)
    of_items = [c for c in config.scoring.item_columns if c not in (*from_log, *wanted, *chain(*users))]
    items, wanted = _take(config.source.items, config.columns.item, [*wanted, *of_items], ds)
    wanted = [column for column in wanted if column in features or column not in _outcome_columns(config)]
    if wanted:
        where = "features" if wanted[0] in features else "scoring" if wanted[0] in of_items else "contract.columns"
        read = (config.source.interactions, *config.source.users, *config.source.items)
        headers = "; ".join(f"{_place(source, ds)}: {_header(sources.columns_of(source, ds))}" for source in read)
        raise UserError(f"{where}: {wanted} are columns of no source; {headers}")
    return Files(from_log, users, items)


def _outcome_columns(config: Recommender) -> set[str | None]:
    """The columns of outcome logs, for which the contract may have rules, too."""
    read = {task.value for task in config.tasks}
    for outcome in config.source.outcomes:
        read |= {outcome.request, outcome.user, outcome.item, outcome.timestamp.name}
    return read


def _take(
    found_in: Iterable[Source], key: str, wanted: list[str], ds: date
) -> tuple[tuple[tuple[str, ...], ...], list[str]]:
    """What each source gives of `wanted`, with its key, and what is still wanted after them."""
    taken = []
    for source in found_in:
        header = sources.columns_of(source, ds)
        if key not in header:
            raise UserError(f"{_place(source, ds)}: has no column {key!r} to join by; {_header(header)}")
        found = tuple(column for column in wanted if column in header)
        taken.append((key, *found))
        wanted = [column for column in wanted if column not in found]
    return tuple(taken), wanted


def _place(source: Source, ds: date) -> str:
    """What messages call a source on a day."""
    return source.path_for(ds) if source.path else source.title


def _header(names: list[str]) -> str:
    hint = "; is its delimiter right?" if len(names) == 1 else ""
    return f"it has {', '.join(map(repr, names)) or 'none'}{hint}"


@dataclass(frozen=True)
class Sides:
    """Whose property each raw column is. Read off the tables, so that a YAML need not say it."""

    by_column: Mapping[str, Side]

    @classmethod
    def of(cls, config: Recommender, user_columns: Iterable[str], item_columns: Iterable[str]) -> Sides:
        """Columns of the users table are the user's, those of the items table the item's, others the moment's."""
        sides: dict[str, Side] = dict.fromkeys(feature_columns(config), "context")
        sides |= dict.fromkeys((*user_columns, config.columns.user), "user")
        sides |= dict.fromkeys((*item_columns, config.columns.item), "item")
        return cls(sides)

    def of_key(self, columns: tuple[str, ...]) -> Side:
        """The side of something made of several columns.

        Raises:
            UserError: it mixes a user's columns with an item's.
        """
        found = {self.by_column[column] for column in columns}
        if {"user", "item"} <= found:
            raise UserError(
                f"features.history.keys: {list(columns)} mixes a user's column with an item's; "
                "a key may pair either of them with the moment, not with each other"
            )
        return "user" if "user" in found else "item" if "item" in found else "context"

    def columns(self, *sides: Side) -> list[str]:
        """The raw columns of some sides."""
        return [column for column, side in self.by_column.items() if side in sides]


def model_features(config: Recommender, sides: Sides) -> tuple[Feature, ...]:
    """The features of a recommender, history included, as the model knows them."""
    of = sides.by_column
    written = config.features
    features = [
        Feature(
            name=f.name,
            kind="categorical",
            side=of[f.name],
            from_keys=(f.name,),
            hash_buckets=f.hash_buckets,
            min_count=f.min_count,
        )
        for f in written.categorical
    ]
    features += [Feature(name=c, kind="multivalued", side=of[c], from_keys=(c,)) for c in written.multivalued]
    for numeric in written.numeric:
        source = numeric.days_since or numeric.name
        features.append(
            Feature(
                name=numeric.name,
                kind="numeric",
                side=of[source],
                transform=numeric.transform,
                from_keys=(source,),
            )
        )
    return (*features, *_history_features(config, sides))


def _history_features(config: Recommender, sides: Sides) -> list[Feature]:
    history = config.features.history
    if history is None:
        return []
    features = []
    for key in history.keys:
        side = sides.of_key(key)
        for days in history.days:
            name = history_feature(key, days, "rows")
            features.append(Feature(name=name, kind="numeric", side=side, transform="log1p", from_keys=key))
            features += [
                Feature(name=history_feature(key, days, f"{task.name}_rate"), kind="numeric", side=side, from_keys=key)
                for task in config.tasks
            ]
        if history.days_since_last:
            name = last_seen_feature(key)
            features.append(Feature(name=name, kind="numeric", side=side, transform="log1p", from_keys=key))
    for recent in history.recent:
        side = sides.of_key((recent.key,))
        features.append(Feature(name=recent.feature, kind="multivalued", side=side, from_keys=(recent.key,)))
    return features


def model_config(config: Recommender, sides: Sides) -> ModelConfig:
    """What the model library is to build for this recommender.

    Raises:
        UserError: a segment would be a property of the item.
    """
    for column in segment_columns(config):
        if sides.by_column[column] == "item":
            raise UserError(f"segments.by: {column!r} is an item's column; segments are of users or of the moment")
    shape, kept = config.model, config.sampling.keep_negatives
    return ModelConfig(
        features=model_features(config, sides),
        tasks=tuple(Task(name=t.name, kind=t.kind, given=t.given, weight=t.weight) for t in config.tasks),
        segments=config.segments,
        embedding_dim=shape.embedding_dim,
        min_count=shape.min_count,
        experts=shape.experts,
        gates=shape.gates,
        towers=shape.towers,
        sampled=SampledNegatives(task=kept.task, share=kept.share) if kept else None,
    )
