"""Which rows are learned from, where negatives are sampled: a share of them, by their content, in training only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.catalog import Sides, model_config
from pipelines.config import Recommender, feature_columns
from pipelines.split import Replay, Split, sample
from pipelines.tables import Tables
from recsys_moe.config import SampledNegatives
from tests.pipelines.conftest import Tiny

ROWS = 4_000
TIME = {"by": "time", "validation_days": 1, "test_days": 1}
RANDOM = {"by": "random", "validation": 0.2, "test": 0.2, "seed": 5}


def examples(number: int) -> pa.Table:
    """A day of examples: half are clicks, a quarter are not, and of a quarter it is not known."""
    start = np.datetime64(Tiny.day(number), "us")
    return pa.table(
        {
            "user": [f"u{n % 50}" for n in range(ROWS)],
            "item": [f"i{n}" for n in range(ROWS)],
            "event_time": pa.array(start + np.arange(ROWS).astype("timedelta64[s]"), pa.timestamp("us", "UTC")),
            "label_click": pa.array([(1.0, 0.0, 1.0, None)[n % 4] for n in range(ROWS)]),
            "label_like": pa.array([(0.0, None, 1.0, None)[n % 4] for n in range(ROWS)]),
        }
    )


@pytest.fixture
def prepared(tiny: Tiny) -> Tiny:
    for number in range(3):
        Tables(tiny().storage).replace_day("examples", Tiny.day(number), examples(number))
    return tiny


def recommender(tiny: Tiny, split: dict[str, Any] = TIME, share: float = 0.25, seed: int = 5) -> Recommender:
    kept = {"keep_negatives": {"task": "click", "share": share, "seed": seed}}
    return tiny(sampling=kept, evaluation={"split": split})


def learned(config: Recommender, *parts: Any) -> pa.Table:
    tables = Tables(config.storage)
    split = Split.of(config, tables.days("examples"), Tiny.day(2))
    return pa.concat_tables(split.rows_to_learn(tables, *parts))


def counts(rows: pa.Table) -> dict[float | None, int]:
    counted = rows["label_click"].value_counts().to_pylist()
    return {count["values"]: count["counts"] for count in counted}


def test_a_share_of_the_negatives_is_learned_from_and_all_other_rows(prepared: Tiny) -> None:
    found = counts(learned(recommender(prepared), "train"))
    assert found[1.0] == ROWS / 2
    assert found[None] == ROWS / 4
    assert found[0.0] == pytest.approx(0.25 * ROWS / 4, rel=0.2)
    both = counts(learned(recommender(prepared), "train", "validation"))
    assert both[1.0] == ROWS
    assert both[0.0] == pytest.approx(0.25 * ROWS / 2, rel=0.2)


def test_what_a_model_is_judged_by_is_whole(prepared: Tiny) -> None:
    config = recommender(prepared)
    tables = Tables(config.storage)
    split = Split.of(config, tables.days("examples"), Tiny.day(2))
    assert [len(day) for day in split.rows(tables, "validation", "test")] == [ROWS, ROWS]


def test_draws_are_not_those_of_a_random_split(prepared: Tiny) -> None:
    """With the same seed and the same draws, the rows left for training would all have the highest ones."""
    config = recommender(prepared, RANDOM)
    tables = Tables(config.storage)
    split = Split.of(config, tables.days("examples"), Tiny.day(2))
    everything = counts(pa.concat_tables(split.rows(tables, "train")))
    assert counts(learned(config, "train"))[0.0] == pytest.approx(0.25 * everything[0.0], rel=0.2)


def test_draws_are_by_content_and_seed(prepared: Tiny) -> None:
    config = recommender(prepared)
    once = learned(config, "train").sort_by("event_time")
    shuffled = examples(0).take(np.random.default_rng(0).permutation(ROWS))
    Tables(config.storage).replace_day("examples", Tiny.day(0), shuffled)
    assert learned(config, "train").sort_by("event_time").equals(once)
    assert not learned(recommender(prepared, seed=6), "train").sort_by("event_time").equals(once)


def test_all_rows_are_learned_from_without_sampling_or_with_a_share_of_1(prepared: Tiny) -> None:
    assert len(learned(recommender(prepared, share=1.0), "train")) == ROWS
    assert len(learned(prepared(evaluation={"split": TIME}), "train")) == ROWS


@pytest.mark.parametrize("share", [0.0, 0.3, 2.0])
def test_of_days_that_were_learned_from_a_share_is_replayed(prepared: Tiny, share: float) -> None:
    config = recommender(prepared, share=1.0)
    tables = Tables(config.storage)
    split = replace(Split.of(config, tables.days("examples"), Tiny.day(2)), replay=Replay(Tiny.day(0), share))
    rows = pa.concat_tables(split.rows_to_learn(tables, "train", "validation", columns=["event_time", "label_click"]))
    days = rows["event_time"].to_numpy().astype("datetime64[D]")
    assert rows.column_names == ["event_time", "label_click"]
    assert (days == np.datetime64(Tiny.day(0))).sum() == pytest.approx(min(share, 1.0) * ROWS, rel=0.1)
    assert (days == np.datetime64(Tiny.day(1))).sum() == ROWS


def test_what_is_replayed_is_drawn_by_content_and_anew_every_day(prepared: Tiny) -> None:
    config = recommender(prepared)
    draws = [
        sample(config, rows, 0.3, as_of) for rows, as_of in [(examples(0), Tiny.day(2)), (examples(0), Tiny.day(3))]
    ]
    assert not draws[0].equals(draws[1])
    turned = sample(config, examples(0).take(np.arange(ROWS)[::-1]), 0.3, Tiny.day(2))
    assert turned.sort_by("event_time").equals(draws[0])


def test_the_model_is_told(tiny: Tiny) -> None:
    config = recommender(tiny)
    sides = Sides.of(config, ["user"], ["item"])
    assert set(sides.by_column) >= set(feature_columns(config))
    assert model_config(config, sides).sampled == SampledNegatives(task="click", share=0.25)
    assert model_config(tiny(), sides).sampled is None
