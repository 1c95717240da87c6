"""Lists on KuaiRand-Pure's test days: how many of a user's long views are in the 20 places, beside what is popular.

The model of configs/kuairand.yaml is fitted to the days before. For each of the two test days it makes lists of the
evening before, of the candidates that the YAML names and of the whole catalogue, for users who were known and then
watched something long. Popularity by segment is how often an item was watched long, or shown, in the user's segment in
the last days; users and what each may get are the same for all. A user's share of long views that are in the list
(recall) is averaged over users and days. Intervals are 95 %, by drawing users.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.kuairand import CONFIG, LAST_DAY, OURS, Days
from pipelines import sql
from pipelines.config import AllItems, Recommender, load
from pipelines.entities import entity_rows, moments
from pipelines.scoring.candidates import Everything, UserCandidates, of_users
from pipelines.tables import Tables
from recsys_moe import list_metrics
from recsys_moe.checkpoint import Ranker
from recsys_moe.errors import UserError
from recsys_moe.list_metrics import Positions
from recsys_moe.memory import keep_freed_memory
from recsys_moe.scoring import score_top_n
from recsys_moe.user_draws import UserDraws, over_draws

log = logging.getLogger(__name__)

K, TASK = 20, "long_view"
OF_THE_YAML, OF_ALL = "model, the YAML's candidates", "model, every item"
LONG_VIEWS, SHOWN = "most long views in the segment, 3 days", "most shown in the segment, 7 days"

Gains = NDArray[np.float64]
"""[U, 2] recall and NDCG of each user's list."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which days, which seed, and for how many users the whole catalogue is scored."""
    last = "the last test day; 2022-05-04 leaves the last two for the end (2022-05-06)"
    parser.add_argument("--as-of", type=date.fromisoformat, default=LAST_DAY, help=last)
    parser.add_argument("--seed", type=int, default=0, help="of the model (0)")
    parser.add_argument("--every-item", type=int, default=300, help="users a day who get a list of every item (300)")


def run(as_of: date = LAST_DAY, seed: int = 0, every_item: int = 300) -> dict[str, Any]:
    """Fit the model and measure the lists of the two days up to `as_of`.

    Raises:
        UserError: nobody is to get a list of every item.
    """
    if every_item < 1:
        raise UserError(f"--every-item: must be at least 1, not {every_item}")
    keep_freed_memory()
    config = load(CONFIG)
    days = Days.of(config.model_copy(update={"training": config.training.model_copy(update={"threads": 1})}), as_of)
    ranker, seconds = days.fit(OURS, seed)
    log.info("fitted in %.0f s", seconds)
    evenings = [Evening.of(days.config, days.tables, ranker, as_of - timedelta(days=ago)) for ago in (1, 0)]
    few = [evening.of_some(every_item) for evening in evenings]
    return {
        "as_of": as_of.isoformat(),
        "seed": seed,
        "everyone": compared(evenings, [evening.lists() for evening in evenings], OF_THE_YAML),
        "some": compared(few, [evening.lists(of_all=True) for evening in few], OF_ALL),
    }


@dataclass(frozen=True)
class Evening:
    """Users with long views on a day, and what was known of them and of all items the evening before.

    Attributes:
        day: of the long views.
        users: [U] rows of users, sorted by id.
        items: [I] rows of all known items, sorted by id.
        may_get: [U, I] what a user may get at all.
        liked: [P] positions of a user and of an item that the user may get and watched long.
    """

    config: Recommender
    tables: Tables
    ranker: Ranker
    day: date
    users: pa.Table
    items: pa.Table
    may_get: NDArray[np.bool_]
    liked: tuple[Positions, Positions]

    @classmethod
    def of(cls, config: Recommender, tables: Tables, ranker: Ranker, day: date) -> Self:
        """Read them."""
        key = config.columns
        rows = _examples(config, tables, day, days=1, columns=[key.user, key.item])
        rows = rows.filter(pc.equal(rows.column(f"label_{TASK}"), 1.0))
        moment = next(iter(moments(config, day - timedelta(days=1)).values()))
        with sql.connect(key.timezone) as connection:
            items, users = (entity_rows(connection, config, tables, moment, side) for side in ("item", "user"))
        users = users.filter(pc.is_in(users.column(key.user), value_set=rows.column(key.user).unique()))
        everything = of_users(_with_candidates(config, (AllItems(),)), tables, moment.ds, users, items)
        assert isinstance(everything, Everything)
        may_get = everything.mask(len(users))
        user, item = (_places(rows.column(one), of.column(one)) for one, of in ((key.user, users), (key.item, items)))
        known = (user >= 0) & (item >= 0)
        user, item = user[known], item[known]
        possible = may_get[user, item]
        return cls(config, tables, ranker, day, users, items, may_get, (user[possible], item[possible]))

    def of_some(self, count: int) -> Self:
        """The same for some of the users, drawn by the hash of their ids."""
        ids = self.users.column(self.config.columns.user).to_pandas()
        drawn = np.sort(np.argsort(pd.util.hash_array(ids.to_numpy(object)), kind="stable")[:count])
        place = np.full(len(self.users), -1)
        place[drawn] = np.arange(len(drawn))
        user, item = self.liked
        kept = place[user] >= 0
        liked = place[user[kept]], item[kept]
        rest = self.users.take(pa.array(drawn)), self.items, self.may_get[drawn], liked
        return type(self)(self.config, self.tables, self.ranker, self.day, *rest)

    def lists(self, of_all: bool = False) -> dict[str, Positions]:
        """[U, K] by who made them; the model's are of the YAML's candidates or, with `of_all`, of every item."""
        sources = (AllItems(),) if of_all else self.config.scoring.candidates
        config = _with_candidates(self.config, sources)
        given = of_users(config, self.tables, self.day - timedelta(days=1), self.users, self.items, self.ranker)
        return {
            OF_ALL if of_all else OF_THE_YAML: self._by_model(given),
            LONG_VIEWS: self._popular(days=3, of=TASK),
            SHOWN: self._popular(days=7),
        }

    def _by_model(self, candidates: UserCandidates) -> Positions:
        made = np.full((len(self.users), K), -1)
        for best in score_top_n(self.ranker, self.users, self.items, candidates.given(), self.config.blend, K):
            made[best.user, best.rank - 1] = best.item
        return made

    def _popular(self, days: int, of: str | None = None) -> Positions:
        """What had most rows in the user's segment on the last days, or most rows with a label of 1."""
        encoder, item = self.ranker.encoder, self.config.columns.item
        columns = [item, *encoder.config.segments.columns] if encoder.config.segments else [item]
        rows = _examples(self.config, self.tables, self.day - timedelta(days=1), days, columns)
        rows = rows if of is None else rows.filter(pc.equal(rows.column(f"label_{of}"), 1.0))
        users_segment, rows_segment = (encoder.segment_of(table)[0] for table in (self.users, rows))
        names = users_segment.unique()
        segment, place = _places(rows_segment, names), _places(rows.column(item), self.items.column(item))
        counts = np.zeros((len(names), len(self.items)))
        known = (segment >= 0) & (place >= 0)
        np.add.at(counts, (segment[known], place[known]), 1.0)
        return list_metrics.best(np.where(self.may_get, counts[_places(users_segment, names)], -np.inf), K)


def compared(evenings: list[Evening], made: list[dict[str, Positions]], ours: str) -> dict[str, Any]:
    """Recall and NDCG by who made the lists, and how many times as high ours are, over the users of all evenings."""
    who: list[NDArray[np.object_]] = []
    gains: dict[str, list[Gains]] = {name: [] for name in made[0]}
    for evening, lists in zip(evenings, made, strict=True):
        each_users = {name: gains_of(places, *evening.liked) for name, places in lists.items()}
        asked = np.unique(evening.liked[0])
        who.append(
            evening.users.column(evening.config.columns.user).take(pa.array(asked)).to_numpy(zero_copy_only=False)
        )
        for name, each in each_users.items():
            gains[name].append(each[asked])
    draws = UserDraws.of(np.concatenate(who))
    joined = {name: np.concatenate(each) for name, each in gains.items()}
    return {
        "users": sum(map(len, who)),
        "lists": {name: dict(_measured(draws, each, np.ones_like(each))) for name, each in joined.items()},
        "times": {name: dict(_measured(draws, joined[ours], each)) for name, each in joined.items() if name != ours},
    }


def _measured(draws: UserDraws, above: Gains, below: Gains) -> Iterator[tuple[str, dict[str, float]]]:
    for column, metric in enumerate((f"recall@{K}", f"ndcg@{K}")):
        yield metric, over_draws(draws.ratio(above[:, column], below[:, column]))


def gains_of(lists: Positions, user: Positions, item: Positions) -> Gains:
    """[U, 2] recall and NDCG of each list [U, K], as `list_metrics` has their means; 0 for who liked nothing."""
    width = 1 + max(int(lists.max(initial=0)), int(item.max(initial=0)))
    liked = np.unique(user * width + item)
    hits = (lists >= 0) & np.isin(np.arange(len(lists))[:, None] * width + lists, liked)
    count = np.bincount(liked // width, minlength=len(lists))
    discounts = 1.0 / np.log2(np.arange(2, K + 2))
    ideal = np.cumsum(discounts)[np.clip(count, 1, K) - 1]
    return np.stack([hits.sum(axis=1) / np.maximum(count, 1), hits @ discounts / ideal], axis=1)


def _with_candidates(config: Recommender, sources: tuple[Any, ...]) -> Recommender:
    return config.model_copy(update={"scoring": config.scoring.model_copy(update={"candidates": sources})})


def _examples(config: Recommender, tables: Tables, last: date, days: int, columns: list[str]) -> pa.Table:
    """Some columns of the days up to `last`, and the label."""
    window = (pc.field("ds") <= last) & (pc.field("ds") > last - timedelta(days=days))
    return tables.dataset("examples").to_table(columns=[*columns, f"label_{TASK}"], filter=window)


def _places(values: pa.ChunkedArray | pa.Array, among: pa.ChunkedArray | pa.Array) -> Positions:
    """Where each value stands, -1 for nowhere."""
    places: Positions = pc.fill_null(pc.index_in(values, value_set=among), -1).to_numpy().astype(np.int64)
    return places


def table(result: Mapping[str, Any]) -> str:
    """Recall and NDCG of all lists, and how many times as high the model's are, in Markdown."""
    metrics = [f"recall@{K}", f"ndcg@{K}"]
    titles = [*metrics, *(f"the model's {metric} over it" for metric in metrics)]
    lines = [f"| | users | {' | '.join(titles)} |", "|---" * (len(titles) + 2) + "|"]
    for part in (result["everyone"], result["some"]):
        for name, of in part["lists"].items():
            times = part["times"].get(name, {})
            cells = [f"{of[metric]['mean']:.4f}" for metric in metrics]
            cells += ["{mean:.2f} ({low:.2f} to {high:.2f})".format(**times[m]) if times else "" for m in metrics]
            lines.append(f"| {name} | {part['users']} | {' | '.join(cells)} |")
    return "\n".join(lines)
