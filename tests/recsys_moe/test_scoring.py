from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_moe.checkpoint import Ranker
from recsys_moe.config import ColumnSegments, Segments
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError
from recsys_moe.scoring import Blend, Diversity, TopN, score_top_n, top_n
from tests.recsys_moe.conftest import model_config, raw_rows

WEIGHTS = (1.0, 3.0)
BLEND = Blend({"click": 1.0, "buy": 3.0})
USER_COLUMNS = ["user_id", "country", "hour", "country_rate"]
ITEM_COLUMNS = ["item_id", "tags", "price"]


@pytest.fixture
def users() -> pa.Table:
    return raw_rows(30, seed=5).select(USER_COLUMNS)


@pytest.fixture
def items() -> pa.Table:
    return raw_rows(25, seed=6).select(ITEM_COLUMNS)


def joined(users: pa.Table, items: pa.Table, user: np.ndarray, item: np.ndarray) -> pa.Table:
    left, right = users.take(pa.array(user)), items.take(pa.array(item))
    return pa.table({name: table[name] for table in (left, right) for name in table.column_names})


def whole(blocks: list[TopN], name: str) -> np.ndarray:
    return np.concatenate([getattr(block, name) for block in blocks])


def test_scores_are_those_of_the_joined_rows_and_the_best_come_first(
    ranker: Ranker, users: pa.Table, items: pa.Table
) -> None:
    everything = np.tile(np.arange(25), (30, 1))
    blocks = list(score_top_n(ranker, users, items, everything, BLEND, 7, users_at_once=8))
    assert len(blocks) == 4
    user, item, rank = (whole(blocks, name) for name in ("user", "item", "rank"))
    assert rank.tolist() == list(range(1, 8)) * 30
    assert user.tolist() == np.repeat(np.arange(30), 7).tolist()
    predicted = ranker.predict(joined(users, items, user, item))
    assert whole(blocks, "task_scores") == pytest.approx(predicted, abs=1e-6)
    assert whole(blocks, "score") == pytest.approx(predicted @ np.array(WEIGHTS), abs=1e-6)

    grid = ranker.predict(joined(users, items, np.repeat(np.arange(30), 25), everything.ravel()))
    best = -np.sort(-(grid @ np.array(WEIGHTS)).reshape(30, 25), axis=1)[:, :7]
    assert whole(blocks, "score").reshape(30, 7) == pytest.approx(best, abs=1e-6)


def test_candidates_may_be_few_repeated_or_none_and_come_from_a_function(
    ranker: Ranker, users: pa.Table, items: pa.Table
) -> None:
    listed = np.full((30, 5), -1)
    listed[0] = [3, 3, -1, 1, 3]
    listed[2] = [9, 8, 7, 6, 5]
    (block,) = score_top_n(ranker, users, items, lambda start, stop: listed[start:stop], BLEND, 4)
    assert block.user.tolist() == [0, 0, 2, 2, 2, 2]
    assert block.rank.tolist() == [1, 2, 1, 2, 3, 4]
    assert set(block.item[:2].tolist()) == {1, 3}


def test_ties_go_to_the_item_that_stands_first(ranker: Ranker, users: pa.Table, items: pa.Table) -> None:
    same = items.take(pa.array([4] * 10))
    candidates = np.tile(np.array([7, 2, 9, 0, 5]), (30, 1))
    (block,) = score_top_n(ranker, users, same, candidates, BLEND, 3)
    assert block.item.reshape(30, 3).tolist() == [[0, 2, 5]] * 30


def test_a_segment_made_of_an_items_column_is_refused(rows: pa.Table, users: pa.Table, items: pa.Table) -> None:
    config = model_config(segments=Segments(by=ColumnSegments(column="item_id"), min_rows=1))
    encoder = Encoder.fit(config, rows.to_batches())
    from recsys_moe.checkpoint import empty_model

    with pytest.raises(UserError, match="belongs to the item"):
        next(score_top_n(Ranker(encoder, empty_model(encoder)), users, items, np.zeros((30, 1)), BLEND, 1))


def test_no_users_and_no_items_give_nothing(ranker: Ranker, users: pa.Table, items: pa.Table) -> None:
    assert not list(score_top_n(ranker, users.slice(0, 0), items, np.zeros((0, 3)), BLEND, 2))
    (block,) = score_top_n(ranker, users, items.slice(0, 0), np.zeros((30, 0)), BLEND, 2)
    assert len(block.user) == 0
    assert block.task_scores.shape == (0, 2)


def test_a_product_of_powers_ranks_as_its_logarithms(ranker: Ranker, users: pa.Table, items: pa.Table) -> None:
    blend = Blend({"click": 9.0, "buy": 20.0}, "product")
    (block,) = score_top_n(ranker, users, items, np.tile(np.arange(25), (30, 1)), blend, 25)
    powers = (np.log(block.task_scores.astype(np.float64)) * [9.0, 20.0]).sum(1)
    assert block.score == pytest.approx(np.exp(powers), rel=1e-5)
    assert (np.diff(powers.reshape(30, 25), axis=1) < 1e-9).all()


@pytest.mark.parametrize("tile", [10, 2**20])
def test_lists_are_re_ranked_and_keep_their_scores(
    ranker: Ranker, users: pa.Table, items: pa.Table, monkeypatch: pytest.MonkeyPatch, tile: int
) -> None:
    monkeypatch.setattr(top_n, "PAIRS_AT_ONCE", tile)
    everything, pool = np.tile(np.arange(25), (30, 1)), 9
    (plain,) = score_top_n(ranker, users, items, everything, BLEND, pool)
    diversity = Diversity(np.arange(25) % 3, 0.5, pool)
    (diverse,) = score_top_n(ranker, users, items, everything, BLEND, 4, diversity=diversity)
    assert diverse.rank.tolist() == [1, 2, 3, 4] * 30
    order = diversity.order(
        torch.from_numpy(plain.item.reshape(30, 9)), torch.from_numpy(plain.score.reshape(30, 9)), 4
    )
    for name in ("item", "score", "task_scores"):
        before = getattr(plain, name).reshape(30, 9, -1)
        expected = np.take_along_axis(before, order.numpy()[..., None], axis=1)
        assert np.array_equal(getattr(diverse, name).reshape(30, 4, -1), expected)
    kinds = diverse.item.reshape(30, 4) % 3
    assert np.mean([len(set(row)) for row in kinds.tolist()]) > np.mean(
        [len(set(row)) for row in (plain.item.reshape(30, 9)[:, :4] % 3).tolist()]
    )
