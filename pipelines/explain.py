"""Which experts speak for a user, or for a user and an item, and what made the gates choose them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from pipelines import sql
from pipelines.config import Recommender
from pipelines.entities import Moment, entity_rows, moments
from pipelines.registry import Registry, Version
from pipelines.scoring.candidates import UserCandidates, of_users
from pipelines.scoring.diversity import diversity_of
from pipelines.tables import Tables
from recsys_moe import checkpoint
from recsys_moe.batch import Batch
from recsys_moe.checkpoint import Ranker
from recsys_moe.encoding import Loader, canonical
from recsys_moe.errors import UserError
from recsys_moe.explain import SEGMENT_FEATURE, Explanation, Reference
from recsys_moe.explain import explain as explain_rows
from recsys_moe.scoring import USER_SIDES, score_top_n

REFERENCE_ROWS = 5000
"""Rows of the newest prepared day, drawn with a fixed seed, whose mean is the average row."""


def explain(
    config: Recommender,
    user: str,
    item: str | None = None,
    as_of: date | None = None,
    model_version: int | None = None,
    context: str | None = None,
) -> dict[str, Any]:
    """Explain the gates' decisions for a user and an item, or on average over the user's top list.

    Features are those that `score` would use on the same day.

    Args:
        config: the recommender.
        user, item: their ids; without an item, those that `score` would list for the user.
        as_of: the last day whose rows are looked at; the newest prepared one where None.
        model_version: a version's number; the champion where None.
        context: a name in `scoring.contexts`; the first where None.

    Raises:
        UserError: there is no such user, item, day, version or context, or no champion yet.
    """
    registry, tables = Registry(config), Tables(config.storage)
    version = _version(registry, model_version)
    moment = _moment(config, _day(tables, as_of), context)
    ranker = checkpoint.load(registry.checkpoint(version))
    rows = _Rows.of(config, tables, ranker, moment, user, item)
    said = explain_rows(ranker.model, rows.inputs(), rows.segment(), _reference(tables, ranker, moment.ds))
    return {
        "step": "explain",
        "user": user,
        "item": item,
        "items": rows.items.column(config.columns.item).to_pylist(),
        "as_of": moment.ds.isoformat(),
        "context": {"name": moment.name, **moment.values},
        "model_version": version.number,
        "champion": version == registry.champion(),
        **rows.segment_name(),
        "score": ranker.config.gates.score,
        "tasks": _tasks(ranker, rows, said),
    }


def _version(registry: Registry, number: int | None) -> Version:
    if number is not None:
        return registry.version(number)
    champion = registry.champion()
    if champion is None:
        raise UserError("there is no champion yet: train and promote a version first, or name one with --model-version")
    return champion


def _day(tables: Tables, as_of: date | None) -> date:
    prepared = tables.days("examples")
    if not prepared:
        raise UserError("no day is prepared yet; run `recsys-moe ingest` and `prepare` first")
    if as_of is not None and as_of not in prepared:
        raise UserError(f"--as-of: {as_of} is not prepared; {prepared[0]} to {prepared[-1]} are")
    return as_of or prepared[-1]


def _moment(config: Recommender, ds: date, name: str | None) -> Moment:
    known = moments(config, ds)
    found = name or next(iter(known))
    if found not in known:
        raise UserError(f"--context: {found!r} is none of {', '.join(known)} (scoring.contexts)")
    return known[found]


@dataclass(frozen=True)
class _Rows:
    """What is explained: one user's row at a moment, and the rows of one or more items."""

    ranker: Ranker
    user: pa.Table
    items: pa.Table

    @classmethod
    def of(
        cls, config: Recommender, tables: Tables, ranker: Ranker, moment: Moment, user: str, item: str | None
    ) -> _Rows:
        """Find the rows, and without an item the user's list."""
        columns = config.columns
        with sql.connect(columns.timezone) as connection:
            users = entity_rows(connection, config, tables, moment, "user")
            items = entity_rows(connection, config, tables, moment, "item")
            who = users.slice(_position(users.column(columns.user), user, "--user", moment.ds), 1)
            if item is not None:
                place = _position(items.column(columns.item), item, "--item", moment.ds)
                return cls(ranker, who, items.slice(place, 1))
        candidates = of_users(config, tables, moment.ds, who, items, ranker)
        return cls(ranker, who, items.take(_best(config, ranker, who, items, candidates)))

    def inputs(self) -> Tensor:
        """x [B, D] of the pairs, a row an item."""
        model = self.ranker.model
        return model.inputs(self._user_batch()) + model.inputs(self._batch(self.items, ("item",)))

    def segment(self) -> Tensor:
        """[B], the user's, for each item."""
        return self._user_batch().segment.expand(self.items.num_rows)

    def _user_batch(self) -> Batch:
        return self._batch(self.user, USER_SIDES)

    def _batch(self, rows: pa.Table, sides: Any) -> Batch:
        return self.ranker.encoder.to_batch(self.ranker.encoder.encode(rows, sides))

    def segment_name(self) -> dict[str, str | None]:
        """The segment and where it comes from; null where the model has none."""
        if self.ranker.config.segments is None:
            return {"segment": None, "segment_source": None}
        (name,), (source,) = (column.to_pylist() for column in self.ranker.encoder.segment_of(self.user))
        return {"segment": name, "segment_source": source}

    def values(self) -> dict[str, Any]:
        """What each feature's raw value is, where it is one: an item's features have many if there are many items."""
        found: dict[str, Any] = {SEGMENT_FEATURE: self.segment_name()["segment"]}
        for feature in self.ranker.config.features:
            table = self.items if feature.side == "item" else self.user
            if table.num_rows == 1:
                found[feature.name] = table.column(feature.name).to_pylist()[0]
        return found


def _position(ids: pa.ChunkedArray, wanted: str, option: str, ds: date) -> int:
    position: int = pc.index(canonical(ids.combine_chunks()), wanted).as_py()
    if position < 0:
        some = ", ".join(map(str, ids.slice(0, 3).to_pylist()))
        raise UserError(f"{option}: {wanted!r} is none of the {len(ids)} known at the end of {ds}, such as {some}")
    return position


def _best(config: Recommender, ranker: Ranker, user: pa.Table, items: pa.Table, candidates: UserCandidates) -> pa.Array:
    """Positions of the items that `score` would list for the user."""
    diversity, given, top_n = diversity_of(config, items), candidates.given(), config.scoring.top_n
    best = next(score_top_n(ranker, user, items, given, config.blend, top_n, diversity=diversity))
    if not len(best.item):
        raise UserError(
            "--user: has no candidates (scoring.candidates), or has seen all of them (scoring.exclude_seen), so there "
            "is no list; name an --item"
        )
    return pa.array(best.item)


def _reference(tables: Tables, ranker: Ranker, ds: date) -> Reference:
    rows = tables.read_day("examples", ds)
    drawn = np.sort(np.random.default_rng(0).permutation(len(rows))[:REFERENCE_ROWS])
    encoded = ranker.encoder.encode(rows.take(drawn))
    return Reference.of(ranker.model, Loader(ranker.encoder, encoded, REFERENCE_ROWS).batches())


def _tasks(ranker: Ranker, rows: _Rows, said: Explanation) -> list[dict[str, Any]]:
    """For each task: what is predicted, who spoke, and what moved the gate most."""
    segment = rows.segment_name()["segment"]
    names = {name: f"segment {segment}" if name == "segment" else name for name in said.expert_names}
    tasks = []
    for number, task in enumerate(ranker.config.tasks):
        weights = zip(names.values(), said.weights[number].tolist(), strict=True)
        tasks.append(
            {
                "task": task.name,
                "kind": task.kind,
                "prediction": float(said.predictions[number]),
                "experts": dict(weights),
                "logits": dict(_logits(said, number, names)),
                "moved": list(_moved(rows.values(), said, number, names)),
            }
        )
    return tasks


def _logits(said: Explanation, task: int, names: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each expert that the gate sees: its logit less the others' mean, of an average row and by feature."""
    for place, name in enumerate(names.values()):
        start, added = float(said.at_average[task, place]), said.added[task, :, place].tolist()
        if np.isfinite(start):
            yield name, {"average_row": start, "added": dict(zip(said.feature_names, added, strict=True))}


def _moved(values: dict[str, Any], said: Explanation, task: int, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    for feature, expert, added in said.most_moved(task):
        value = {"value": _plain(values[feature])} if feature in values else {}
        yield {"feature": feature, **value, "expert": names[expert], "added": added}


def _plain(value: Any) -> Any:
    """A value that JSON has."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
