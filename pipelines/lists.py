"""How good the lists are that users would have got: of all known items, made the evening before the last test day.

A list is what `score` would publish, but of all items, so that no choice of candidates hides a model's mistakes:
ranked by the tasks' weighted probabilities, at the (first) moment of `scoring.context`. What a user did on the day says
how good it was.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import sql
from pipelines.baselines import Popularity
from pipelines.config import AllItems, Recommender
from pipelines.entities import entity_rows, moments
from pipelines.prepare import sides_of
from pipelines.scoring.candidates import Everything, of_users
from pipelines.scoring.diversity import diversity_of
from pipelines.split import Split
from pipelines.tables import Tables
from recsys_moe import list_metrics
from recsys_moe.checkpoint import Ranker
from recsys_moe.errors import UserError
from recsys_moe.list_metrics import Positions
from recsys_moe.scoring import score_top_n

log = logging.getLogger(__name__)

Measured = dict[str, dict[str, float]]
"""By task and metric: `ndcg@20`, `recall@20`, `coverage`, `diversity`, and the `users` that the first two are of."""


def lists(
    config: Recommender,
    tables: Tables,
    split: Split,
    rankers: Mapping[str, Ranker],
    popularity: Popularity | None = None,
) -> dict[str, Measured]:
    """Measure the lists of some models, by name, and those of `popularity` for the same users.

    What the YAML leaves open (a context, say, if nothing is scored) or a model that needs other columns makes no lists:
    the log says why.

    Raises:
        UserError: `evaluation.lists.diversity_by` is no column of items.
    """
    diversity_by = _diversity_column(config, tables)
    try:
        asked = Asked.of(config, tables, split, diversity_by)
    except UserError as error:
        log.warning("lists are not measured: %s", error)
        return {}
    found = {}
    for name, ranker in rankers.items():
        try:
            found[name] = asked.measure(asked.lists_of(ranker))
        except UserError as error:
            log.warning("lists of %s are not measured: %s", name, error)
    if popularity is not None:
        found[popularity.name] = asked.measure(asked.popular(popularity))
    return found


@dataclass(frozen=True)
class Asked:
    """Users who get a list, the items it may have, and what the users did.

    Attributes:
        users: [U] rows of the users, as a model reads them.
        items: [I] rows of all known items, sorted by id.
        candidates: what a user may get.
        liked: by binary task, [P] positions of a user and of an item that the user may get: a label of 1.
        groups: [I] the kind of each item, None where items have no kinds.
    """

    config: Recommender
    users: pa.Table
    items: pa.Table
    candidates: Everything
    liked: Mapping[str, tuple[Positions, Positions]]
    groups: NDArray[np.int64] | None

    @classmethod
    def of(cls, config: Recommender, tables: Tables, split: Split, diversity_by: str | None) -> Self:
        """Draw users by their ids among those who are known and who liked something on the last test day.

        Raises:
            UserError: nobody can be asked for, or the YAML's context lacks what the model reads.
        """
        day, key = split.days_of("test")[-1], config.columns
        done = pa.concat_tables(replace(split, days=(day,)).rows(tables, "test", columns=_columns(config)))
        liked = {task.name: _liked(done, task.name) for task in config.tasks if task.kind == "binary"}
        if not liked:
            raise UserError("no task is a yes or no, so nobody can be said to have liked anything")
        who = pa.concat_tables(liked.values()).column(key.user)
        moment = next(iter(moments(config, day - timedelta(days=1)).values()))
        with sql.connect(key.timezone) as connection:
            items = entity_rows(connection, config, tables, moment, "item")
            users = entity_rows(connection, config, tables, moment, "user")
            users = _drawn(config, users.filter(pc.is_in(users.column(key.user), value_set=who.unique())), len(items))
            if not len(users):
                raise UserError(f"nobody who was known on {moment.ds} did anything on {day} that a task asks for")
        candidates = of_users(_of_all_items(config), tables, moment.ds, users, items)
        assert isinstance(candidates, Everything)
        pairs = {task: _possible(config, of, users, items, candidates) for task, of in liked.items()}
        return cls(config, users, items, candidates, pairs, _groups(items, diversity_by))

    def lists_of(self, ranker: Ranker) -> Positions:
        """[U, k] the best items by a model, ties by id."""
        made, blend = np.full((len(self.users), self._k), -1), self.config.blend
        diversity = diversity_of(self.config, self.items)
        given = self.candidates.given()
        for best in score_top_n(ranker, self.users, self.items, given, blend, self._k, diversity=diversity):
            made[best.user, best.rank - 1] = best.item
        return made

    def popular(self, popularity: Popularity) -> Positions:
        """[U, k] the best items by what is popular in the user's segment, ties by id."""
        names, _ = popularity.segments.segment_of(self.users)
        segments, count = names.unique(), len(self.items)
        every = pa.array(np.tile(np.arange(count), len(segments)))
        rates = popularity.rates(
            self.items.column(self.config.columns.item).take(every),
            pa.chunked_array([segments.take(pa.array(np.repeat(np.arange(len(segments)), count)))]),
        )
        scores = self.config.blend.scores(rates).reshape(len(segments), count)
        of_user = scores[pc.index_in(names, segments).to_numpy()]
        may_get = self.candidates.mask(len(self.users))
        return list_metrics.best(np.where(may_get, of_user, -np.inf), self._k)

    def measure(self, made: Positions) -> Measured:
        """The metrics of lists [U, k]."""
        k = self._k
        shown = {"coverage": list_metrics.coverage(made, len(self.items), k)}
        if self.groups is not None:
            shown["diversity"] = list_metrics.diversity(made, self.groups, k)
        return {
            task: {
                f"ndcg@{k}": list_metrics.ndcg(made, user, item, k),
                f"recall@{k}": list_metrics.recall(made, user, item, k),
                **shown,
                "users": float(len(np.unique(user))),
            }
            for task, (user, item) in self.liked.items()
        }

    @property
    def _k(self) -> int:
        return self.config.evaluation.lists.k


def _columns(config: Recommender) -> list[str]:
    return [config.columns.user, config.columns.item, *(f"label_{task.name}" for task in config.tasks)]


def _liked(rows: pa.Table, task: str) -> pa.Table:
    return rows.filter(pc.fill_null(pc.equal(rows.column(f"label_{task}"), 1.0), False))


def _of_all_items(config: Recommender) -> Recommender:
    scoring = config.scoring.model_copy(update={"candidates": (AllItems(),)})
    return config.model_copy(update={"scoring": scoring})


def _drawn(config: Recommender, users: pa.Table, num_items: int) -> pa.Table:
    """As many users as the YAML allows for, those of the lowest hash of their ids."""
    wanted = config.evaluation.lists
    most = min(wanted.max_users, max(1, wanted.max_pairs // max(1, num_items)))
    ids = users.select([config.columns.user]).to_pandas()
    draws = pd.util.hash_pandas_object(ids, index=False, hash_key="users with lists").to_numpy()
    return users.take(pa.array(np.sort(np.argsort(draws, kind="stable")[:most])))


def _possible(
    config: Recommender, liked: pa.Table, users: pa.Table, items: pa.Table, candidates: Everything
) -> tuple[Positions, Positions]:
    """Positions of the users' and the items' of liked rows; without what a user cannot get, which no list could hit."""
    user, item = (
        pc.fill_null(pc.index_in(liked.column(key), value_set=among.column(key)), -1).to_numpy().astype(np.int64)
        for key, among in ((config.columns.user, users), (config.columns.item, items))
    )
    possible = (user >= 0) & (item >= 0) & candidates.mask(len(users))[user, item]
    return user[possible], item[possible]


def _groups(items: pa.Table, column: str | None) -> NDArray[np.int64] | None:
    """[I] the kind of each item, from 0; a missing one is a kind, too."""
    if column is None:
        return None
    kinds: NDArray[np.int64] = pd.factorize(items.column(column).to_pandas(), use_na_sentinel=False)[0].astype(np.int64)
    return kinds


def _diversity_column(config: Recommender, tables: Tables) -> str | None:
    """The column of items that the YAML names, or the first of their categorical ones; None where there is none.

    Raises:
        UserError: what the YAML names is not a column of items.
    """
    sides = sides_of(config, tables).by_column
    of_items = [f.name for f in config.features.categorical if sides[f.name] == "item"]
    named = config.evaluation.lists.diversity_by
    if named is not None and named not in of_items:
        raise UserError(
            f"evaluation.lists.diversity_by: {named!r} is no categorical feature of items; there is {of_items}"
        )
    return named or next((name for name in of_items if name != config.columns.item), None)
