"""Held-out rows in columns on disk: the same as the table that they stand for, in blocks of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines import tables as tables_module
from pipelines.config import Recommender
from pipelines.held_out import HeldOut
from pipelines.split import Split
from pipelines.tables import Tables
from recsys_moe import metrics
from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import Feature, ModelConfig, Task
from recsys_moe.encoding import Encoder
from tests.pipelines.conftest import Tiny

ROWS = 200
SPLIT = {"by": "time", "validation_days": 1, "test_days": 2}
TASKS = [
    {"name": "click", "label": "clicked"},
    {"name": "like", "label": "liked", "given": "click"},
    {"name": "watched", "label": "watched", "kind": "regression"},
]


def examples(number: int) -> pa.Table:
    """A day of 200 rows. Each has two users and three items that the days before do not have."""
    draw = np.random.default_rng(number)
    click = draw.integers(0, 2, ROWS).astype(float)
    like = np.where(click == 1, draw.integers(0, 2, ROWS), np.nan)
    start = np.datetime64(Tiny.day(number), "us")
    return pa.table(
        {
            "user": [f"u{n}" for n in draw.integers(0, 10 + 2 * number, ROWS)],
            "item": [f"i{n}" for n in draw.integers(0, 5 + 3 * number, ROWS)],
            "tab": [("home", "search")[n] for n in draw.integers(0, 2, ROWS)],
            "event_time": pa.array(start + np.arange(ROWS).astype("timedelta64[s]"), pa.timestamp("us", "UTC")),
            "label_click": pa.array(click),
            "label_like": pa.array(like, mask=np.isnan(like)),
            "label_watched": pa.array(draw.random(ROWS), mask=draw.random(ROWS) < 0.1),
        }
    )


@pytest.fixture
def recommender(tiny: Tiny) -> Recommender:
    """Four days of examples, of which the last two are held out."""
    config = tiny(tasks=TASKS, evaluation={"split": SPLIT}, features={"categorical": ["user", "item", "tab"]})
    for number in range(4):
        Tables(config.storage).replace_day("examples", Tiny.day(number), examples(number))
    return config


def held_out_of(config: Recommender, part: Any = "test") -> HeldOut:
    tables = Tables(config.storage)
    return HeldOut.of(config, tables, Split.of(config, tables.days("examples"), Tiny.day(3)), part)


def held_table() -> pa.Table:
    return pa.concat_tables([examples(2), examples(3)])


def ranker_of(config: Recommender) -> Ranker:
    shape = ModelConfig(
        features=tuple(Feature(name=name, kind="categorical", side="context", min_count=1) for name in ("item", "tab")),
        tasks=tuple(Task(name=task.name, kind=task.kind, given=task.given) for task in config.tasks),
        segments=config.segments,
    )
    encoder = Encoder.fit(shape, examples(0).to_batches())
    torch.manual_seed(0)
    return Ranker(encoder, empty_model(encoder).eval().requires_grad_(False))


@pytest.mark.parametrize("block_rows", [7, 1000])
def test_what_is_read_in_blocks_is_what_the_table_has(
    recommender: Recommender, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables_module, "BLOCK_ROWS", block_rows)
    held_out, table = held_out_of(recommender), held_table()
    assert max(block.num_rows for block in held_out.blocks()) <= block_rows
    click, like = (table.column(f"label_{name}").to_numpy() for name in ("click", "like"))
    assert held_out.labels["click"].tolist() == click.tolist()
    assert held_out.labels["like"].tolist() == np.nan_to_num(like).tolist(), "no click, no like"
    np.testing.assert_array_equal(held_out.labels["watched"], table.column("label_watched").to_numpy())
    for name in ("user", "item"):
        texts = table.column(name).to_pylist()
        assert len(set(zip(texts, held_out.codes[name].tolist(), strict=True))) == len(set(texts))
        assert set(held_out.codes[name].tolist()) == set(range(len(set(texts))))


def test_metrics_of_blocks_are_those_of_the_table(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "BLOCK_ROWS", 7)
    held_out, table, ranker = held_out_of(recommender), held_table(), ranker_of(recommender)
    names = [task.name for task in recommender.tasks]
    said = held_out.said_by(lambda block: dict(zip(names, ranker.predict(block).T, strict=True)), ranker.config, "f4")
    whole = dict(zip(names, ranker.predict(table).T, strict=True))
    users = np.array(table.column("user").to_pylist())
    expected = metrics.binary(table.column("label_click").to_numpy(), whole["click"], users)
    assert held_out.measure(said)["click"] == pytest.approx(expected, abs=1e-6)
    segments = held_out.segments(ranker)
    named = ranker.encoder.segment_of(table)[0].to_pylist()
    assert [segments.names[code] for code in segments.codes] == named
    for name, found in held_out.measure_groups(said, segments.groups())["like"].items():
        inside = np.array(named) == name
        likes = np.nan_to_num(table.column("label_like").to_numpy())[inside]
        assert found == pytest.approx(metrics.binary(likes, whole["like"][inside], users[inside]), abs=1e-6)
    both = table.column("label_click").to_numpy() == 1
    given = whole["like"][both].astype(float) / whole["click"][both]
    likes = table.column("label_like").to_numpy()[both]
    assert held_out.conditional_auc("like", said) == pytest.approx(metrics.auc(likes, given))


def test_a_model_of_other_tasks_and_labels_says_what_it_can(recommender: Recommender) -> None:
    ranker = ranker_of(recommender)
    more = ranker.config.model_copy(update={"tasks": (*ranker.config.tasks, Task(name="shared"))})
    said = held_out_of(recommender).said_by(
        lambda block: {task.name: np.zeros(block.num_rows) for task in more.tasks}, more
    )
    assert [*said] == [task.name for task in recommender.tasks]


def test_rows_stay_those_of_the_beginning(recommender: Recommender) -> None:
    held_out, before = held_out_of(recommender), held_table()
    Tables(recommender.storage).replace_day("examples", Tiny.day(3), examples(3).slice(0, 10))
    assert held_out.table.column("user").to_pylist() == before.column("user").to_pylist()


@pytest.mark.parametrize("refit", [True, False])
def test_cold_is_who_has_no_row_that_was_learned_from(recommender: Recommender, refit: bool) -> None:
    changed = {"evaluation": recommender.evaluation.model_copy(update={"refit": refit})}
    held_out, table = held_out_of(recommender.model_copy(update=changed)), held_table()
    learned = pa.concat_tables([examples(number) for number in range(2 if refit else 1)])
    is_cold = {
        name: np.array([one not in set(learned.column(name).to_pylist()) for one in table.column(name).to_pylist()])
        for name in ("user", "item")
    }
    found = dict(held_out.cold())
    assert found["cold users"].tolist() == np.flatnonzero(is_cold["user"]).tolist()
    assert found["cold items"].tolist() == np.flatnonzero(is_cold["item"]).tolist()
    assert found["others"].tolist() == np.flatnonzero(~is_cold["user"] & ~is_cold["item"]).tolist()
    assert all(len(rows) for rows in found.values())


def test_a_sample_has_all_rows_of_some_users(recommender: Recommender) -> None:
    held_out, ranker = held_out_of(recommender), ranker_of(recommender)
    rows, users = held_out.sample(ranker.config, 100)
    assert 50 < rows.num_rows == len(users) <= 100
    assert rows.num_rows == np.isin(held_out.users, users).sum()
    assert held_out.sample(ranker.config, 10_000)[0].num_rows == 2 * ROWS


def test_nothing_is_left_on_disk(recommender: Recommender) -> None:
    held_out = held_out_of(recommender)
    scratch = recommender.workspace / "scratch"
    assert list(scratch.iterdir())
    del held_out
    assert not list(scratch.iterdir())


def test_validation_rows_are_held_out_too(recommender: Recommender) -> None:
    assert len(held_out_of(recommender, "validation").users) == ROWS
