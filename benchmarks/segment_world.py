"""A made-up world of segments with different tastes, whose probabilities are known.

Users live in one of S regions, the segments. For each task a region has a taste of its own for an item's topic and for
its traits (numbers, such as a content model gives); a part of it is common to all regions. Likes follow the taste for
clicks in part, long views and purchases go against it in part, comments have nothing to do with it. Beside that: how
eager the user is, how good the brand is, where and when the item was shown. All effects are on the log-odds, and all
that they depend on is a column that the model reads. Items are too many and too short-lived to have an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys_moe.config import Feature, Task

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

USERS_PER_REGION = 25
BRANDS, TOPICS, TRAITS, DEVICES, HOURS = 50, 8, 12, 3, 24

_TRAIT_NAMES = tuple(f"trait_{number}" for number in range(1, TRAITS + 1))

FEATURES = (
    Feature(name="user_id", kind="categorical", side="user"),
    Feature(name="region", kind="categorical", side="user"),
    Feature(name="brand", kind="categorical", side="item"),
    Feature(name="topic", kind="categorical", side="item"),
    *(Feature(name=name, kind="numeric", side="item") for name in _TRAIT_NAMES),
    Feature(name="device", kind="categorical", side="context"),
    Feature(name="hour", kind="categorical", side="context"),
)
TASKS = (
    Task(name="click"),
    Task(name="like"),
    Task(name="long_view"),
    Task(name="comment"),
    Task(name="purchase", given="click"),
)


@dataclass(frozen=True)
class Tastes:
    """What each segment likes, for one task."""

    topic: Floats  # [S, topics]
    trait: Floats  # [S, traits]

    @classmethod
    def drawn(cls, rng: np.random.Generator, segments: int, common: float) -> Tastes:
        """Tastes of S segments, of whose variance a share is `common` to all."""

        def effects(columns: int) -> Floats:
            of_all, own = rng.normal(size=columns), rng.normal(size=(segments, columns))
            mixed: Floats = np.sqrt(common) * of_all + np.sqrt(1.0 - common) * own
            return mixed

        return cls(0.6 * effects(TOPICS), 0.4 * effects(TRAITS))

    def leaning(self, other: Tastes, share: float) -> Tastes:
        """These tastes with a share of another's, as spread out as before; a share below 0 goes against it."""
        rest = np.sqrt(1.0 - share**2)
        return Tastes(share * other.topic + rest * self.topic, share * other.trait + rest * self.trait)

    def of(self, segment: Ints, topic: Ints, traits: Floats) -> Floats:
        """[N] effects of items with topics [N] and traits [N, traits] on segments [N]."""
        effect: Floats = self.topic[segment, topic] + (self.trait[segment] * traits).sum(axis=1)
        return effect


@dataclass(frozen=True)
class World:
    """What users and brands are like, and what each segment likes. User u lives in region u mod S."""

    eagerness: Floats  # [users]
    quality: Floats  # [brands]
    moment: Floats  # [devices, hours]
    tastes: dict[str, Tastes]

    @classmethod
    def of(cls, seed: int, segments: int, common: float) -> World:
        """The world of a seed: S `segments`, which have a share `common` of the variance of tastes in common."""
        rng = np.random.default_rng([seed, 0])
        click, like, long_view, comment, purchase = (Tastes.drawn(rng, segments, common) for _ in TASKS)
        tastes = {
            "click": click,
            "like": like.leaning(click, 0.5),
            "long_view": long_view.leaning(click, -0.5),
            "comment": comment,
            "purchase": purchase.leaning(click, -0.5),
        }
        return cls(
            eagerness=rng.normal(0.0, 0.3, USERS_PER_REGION * segments),
            quality=rng.normal(0.0, 0.3, BRANDS),
            moment=rng.normal(0.0, 0.3, (DEVICES, 1)) + 0.3 * np.sin(np.arange(HOURS) * np.pi / 12.0),
            tastes=tastes,
        )

    @property
    def segments(self) -> int:
        """S, how many regions there are."""
        return len(self.eagerness) // USERS_PER_REGION

    def rows(self, count: int, *stream: int, regions: Sequence[int] | None = None) -> pa.Table:
        """Rows of users who live in `regions` (None: in any): features, labels and true `probability_<task>`.

        Args:
            stream: names the random stream; the same gives the same rows.
        """
        rng = np.random.default_rng([1, *stream])
        home = np.arange(len(self.eagerness)) % self.segments
        living_there = np.flatnonzero(np.isin(home, range(self.segments) if regions is None else regions))
        user, traits = rng.choice(living_there, count), rng.normal(size=(count, TRAITS))
        brand, topic, device, hour = (rng.integers(kinds, size=count) for kinds in (BRANDS, TOPICS, DEVICES, HOURS))
        chances = self._probabilities(user, brand, topic, traits, self.moment[device, hour])
        happened = {task: rng.random(count) < chance for task, chance in chances.items()}
        happened["purchase"] &= happened["click"]
        chances["purchase"] = chances["click"] * chances["purchase"]
        ids = {
            "user_id": user,
            "region": home[user],
            "brand": brand,
            "topic": topic,
            "device": device,
            "hour": hour,
        }
        numbers = dict(zip(_TRAIT_NAMES, traits.T, strict=True))
        labels = {f"label_{task}": label.astype(np.float32) for task, label in happened.items()}
        return pa.table(ids | numbers | labels | {f"probability_{task}": p for task, p in chances.items()})

    def _probabilities(self, user: Ints, brand: Ints, topic: Ints, traits: Floats, moment: Floats) -> dict[str, Floats]:
        """[N] each; that of a purchase is given a click."""
        taste = {task: tastes.of(user % self.segments, topic, traits) for task, tastes in self.tastes.items()}
        eager, quality = self.eagerness[user], self.quality[brand]
        return {
            "click": _sigmoid(-0.8 + taste["click"] + eager + quality + moment),
            "like": _sigmoid(-1.0 + taste["like"] + 0.5 * eager + quality),
            "long_view": _sigmoid(-0.5 + taste["long_view"] + 0.5 * eager - quality),
            "comment": _sigmoid(-0.8 + taste["comment"] - 0.5 * eager),
            "purchase": _sigmoid(-0.5 + taste["purchase"] + 0.5 * quality - 0.3 * moment),
        }


def _sigmoid(logit: Floats) -> Floats:
    odds: Floats = 1.0 / (1.0 + np.exp(-logit))
    return odds
