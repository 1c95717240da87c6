"""A marketplace whose probabilities are known: who its users are, what they like, and how likely they act.

Segments (age band × country) differ in kind: every topic is loved by some and avoided by others, some want what is new
and some what has lasted, some the cheap and some the dear. What draws a click (novelty, a lurid title) partly puts off
a buyer. Users have small tastes of their own. All numbers are effects on the log-odds; none is read from data.

Every part is drawn from a stream of its own, named by (seed, part, day), so that more days change no earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config import Simulation

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

AGE_BANDS = ("18-24", "25-34", "35-49", "50+")
COUNTRIES = ("DE", "FR")
SURFACES = ("home", "search", "feed")
TOPICS = ("art", "books", "cooking", "fashion", "games", "garden", "music", "sport", "tech", "travel")
SLATE = 10
"""Items shown at one request, in positions 1..SLATE."""

AGE_BAND_SHARES = (0.35, 0.30, 0.20, 0.15)
COUNTRY_SHARES = (0.6, 0.4)
SURFACE_SHARES = (0.5, 0.2, 0.3)
SURFACE_EFFECT = np.array([0.0, 0.7, -0.5])
POSITION_EFFECT = -0.5
"""Per unit of the position's logarithm: the tenth place draws about a third of the first place's odds."""
HOURLY_TRAFFIC = np.array([3, 2, 1, 1, 1, 2, 4, 6, 6, 5, 5, 6, 8, 7, 6, 6, 7, 9, 12, 14, 15, 13, 9, 5]) / 153.0

_STREAMS = {name: number for number, name in enumerate(("users", "tastes", "items", "requests", "actions"))}


def stream(seed: int, name: str, day: int = 0) -> np.random.Generator:
    """A random stream that belongs to one part of the world on one day (0 = the first)."""
    return np.random.default_rng([seed, _STREAMS[name], day])


@dataclass(frozen=True)
class Users:
    """U users; days count from the first simulated day."""

    age_band: Ints  # [U]
    country: Ints  # [U]
    joined: Ints  # [U]
    activity: Floats  # [U], sums to 1
    eagerness: Floats  # [U]
    taste: Floats  # [U, topics]

    @property
    def segment(self) -> Ints:
        """[U] age band × country as one number."""
        return self.age_band * len(COUNTRIES) + self.country


@dataclass(frozen=True)
class Items:
    """I items; days count from the first simulated day."""

    topics: Floats  # [I, topics], rows sum to 1 over the one to three topics that an item has
    creator: Ints  # [I]
    price: Floats  # [I]
    uploaded: Ints  # [I]
    lure: Floats  # [I] how much the title promises: clicks more, sells less
    quality: Floats  # [I]
    popularity: Floats  # [I] relative chance of being shown, heavy-tailed


@dataclass(frozen=True)
class Tastes:
    """What each of S segments wants. Every column has mean 0 and deviation 1 over segments, so signs always differ."""

    click: Floats  # [S, topics]
    purchase: Floats  # [S, topics]
    novelty: Floats  # [S, 1]
    price: Floats  # [S, 1]


@dataclass(frozen=True)
class Market:
    """The whole world, over all its days."""

    users: Users
    items: Items
    tastes: Tastes


@dataclass(frozen=True)
class Exposures:
    """N rows: which item was shown to whom, where and when."""

    user: Ints  # [N]
    item: Ints  # [N]
    surface: Ints  # [N]
    position: Ints  # [N], 1..SLATE
    day: Ints  # [N] the day that it happened on; a late one is delivered the day after
    millisecond: Ints  # [N] of the local day


def open_market(size: Simulation) -> Market:
    """Make the users, items and tastes. More `size.days` add items at the end and change nothing else."""
    rng = stream(size.seed, "items")
    num_creators = max(2, size.items // 10)
    creator_lure = rng.normal(0.0, 0.5, num_creators)
    batches = [_new_items(rng, creator_lure, size.items, -2 - rng.exponential(60.0, size.items).astype(np.int64))]
    for day in range(1, size.days):
        count = max(1, size.items // 200)
        uploaded = np.full(count, day - 1, dtype=np.int64)
        batches.append(_new_items(stream(size.seed, "items", day), creator_lure, count, uploaded))
    return Market(_users(size), _concatenate(batches), _tastes(stream(size.seed, "tastes")))


def _users(size: Simulation) -> Users:
    rng = stream(size.seed, "users")
    activity = rng.lognormal(0.0, 0.8, size.users)
    return Users(
        age_band=rng.choice(len(AGE_BANDS), size.users, p=AGE_BAND_SHARES),
        country=rng.choice(len(COUNTRIES), size.users, p=COUNTRY_SHARES),
        joined=-2 - rng.exponential(300.0, size.users).astype(np.int64),
        activity=activity / activity.sum(),
        eagerness=rng.normal(0.0, 0.2, size.users),
        taste=rng.normal(0.0, 0.2, (size.users, len(TOPICS))),
    )


def _new_items(rng: np.random.Generator, creator_lure: Floats, count: int, uploaded: Ints) -> Items:
    creator = rng.integers(len(creator_lure), size=count)
    turn = rng.permuted(np.tile(np.arange(len(TOPICS)), (count, 1)), axis=1)
    has_topic = turn < rng.choice([1, 2, 3], (count, 1), p=[0.6, 0.3, 0.1])
    return Items(
        topics=has_topic / has_topic.sum(axis=1, keepdims=True),
        creator=creator,
        price=np.exp(rng.normal(3.0, 0.8, count)).round(2),
        uploaded=uploaded,
        lure=creator_lure[creator] + rng.normal(0.0, 0.2, count),
        quality=rng.normal(0.0, 0.4, count),
        popularity=np.minimum(rng.pareto(1.2, count) + 1.0, 40.0),
    )


def _concatenate(batches: list[Items]) -> Items:
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(batch, name) for batch in batches]) for name in Items.__dataclass_fields__
    }
    return Items(**columns)


def _tastes(rng: np.random.Generator) -> Tastes:
    def opposed(columns: int) -> Floats:
        by_band = np.repeat(rng.normal(size=(len(AGE_BANDS), columns)), len(COUNTRIES), axis=0)
        by_country = np.tile(rng.normal(size=(len(COUNTRIES), columns)), (len(AGE_BANDS), 1))
        raw = by_band + 0.5 * by_country + 0.5 * rng.normal(size=by_band.shape)
        centred = raw - raw.mean(axis=0)
        scaled: Floats = centred / centred.std(axis=0)
        return scaled

    return Tastes(opposed(len(TOPICS)), opposed(len(TOPICS)), opposed(1), opposed(1))


def show(market: Market, size: Simulation, day: int, num_rows: int) -> Exposures:
    """Draw what one day's file delivers, in the order of delivery.

    Items uploaded before that day can be shown; each request gets distinct ones as long as none is owed more than one
    place in SLATE. Half a percent of rows happened the day before.
    """
    rng = stream(size.seed, "requests", day)
    num_requests = -(-num_rows // SLATE)
    hours = np.sort(np.interp(rng.random(num_requests), np.append(0.0, HOURLY_TRAFFIC.cumsum()), np.arange(25.0)))
    position = np.tile(np.arange(SLATE), (num_requests, 1))
    scrolled = rng.integers(500, 4000, position.shape).cumsum(axis=1)
    columns = {
        "user": np.repeat(rng.choice(len(market.users.activity), num_requests, p=market.users.activity), SLATE),
        "item": _slates(rng, market.items, day, num_requests).ravel(),
        "surface": np.repeat(rng.choice(len(SURFACES), num_requests, p=SURFACE_SHARES), SLATE),
        "position": 1 + position.ravel(),
        "day": day - (rng.random(position.size) < 0.005),
        "millisecond": np.minimum(hours[:, None] * 3.6e6 + scrolled, 24 * 3.6e6 - 1).astype(np.int64).ravel(),
    }
    return Exposures(**{name: values[:num_rows] for name, values in columns.items()})


def _slates(rng: np.random.Generator, items: Items, day: int, num_requests: int) -> Ints:
    """[requests, SLATE] items, by systematic sampling: places in proportion to popularity, evenly spread."""
    weight = items.popularity * (items.uploaded < day)
    edges = np.cumsum(weight / weight.sum())
    start = rng.random((num_requests, 1))
    first = rng.integers(SLATE, size=(num_requests, 1))
    points = ((np.arange(SLATE) + first) % SLATE + start) / SLATE
    return np.minimum(np.searchsorted(edges, points, side="right"), len(weight) - 1)


def probabilities(market: Market, shown: Exposures) -> dict[str, Floats]:
    """The true probability of each action for N exposures.

    Returns:
        [N] each: `click`, `like`, and `purchase`, which is given a click.
    """
    users, items, tastes = market.users, market.items, market.tastes
    segment = users.segment[shown.user]
    topics = items.topics[shown.item]
    liked = ((tastes.click[segment] + users.taste[shown.user]) * topics).sum(axis=1)
    wanted = (tastes.purchase[segment] * topics).sum(axis=1)
    age = np.log1p(shown.day - items.uploaded[shown.item])
    novelty = tastes.novelty[segment, 0] * np.clip((3.5 - age) / 1.2, -2.0, 2.0)
    price = np.clip((np.log(items.price[shown.item]) - 3.0) / 0.8, -2.0, 2.0)
    price_taste = tastes.price[segment, 0] * price
    lure, quality = items.lure[shown.item], items.quality[shown.item]
    moment = SURFACE_EFFECT[shown.surface] + 0.3 * np.sin((shown.millisecond / 3.6e6 - 14.0) * np.pi / 12.0)
    seen = moment + POSITION_EFFECT * np.log(shown.position) + users.eagerness[shown.user]
    return {
        "click": _sigmoid(-0.9 + seen + 1.1 * liked + 0.5 * novelty + 0.4 * price_taste + 0.6 * lure + quality),
        "like": _sigmoid(-2.8 + 0.5 * seen + 0.8 * liked + 0.2 * novelty - 0.4 * lure + 1.2 * quality),
        "purchase": _sigmoid(-2.6 + 0.9 * wanted - 0.5 * novelty + 0.5 * price_taste - 0.4 * price - 1.0 * lure),
    }


def _sigmoid(logit: Floats) -> Floats:
    odds: Floats = 1.0 / (1.0 + np.exp(-logit))
    return odds
