from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_moe.batch import Hiding
from recsys_moe.config import BehaviouralSegments, Feature, ModelConfig, Segments, Task
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.mixing import draws
from tests.recsys_moe.conftest import model_config


def test_a_row_is_hidden_alike_whatever_batch_it_is_in(encoder: Encoder, rows: pa.Table) -> None:
    encoded, hiding = encoder.encode(rows), Hiding.of(model_config(), 0.3, 0.3)

    def seen(batch_size: int, *key: int, shuffle: int | None = None, world: int = 1) -> list[tuple[object, ...]]:
        """What is left of each row, in the order of the table."""
        loaders = [Loader(encoder, encoded, batch_size, shuffle=shuffle, rank=r, world=world) for r in range(world)]
        hidden = [hiding(batch, *key) for loader in loaders for batch in loader.batches()]
        cells = [(*b.row.view(1, -1), *b.values[: 3 * len(b)].view(3, -1), b.segment, *b.dense.T) for b in hidden]
        return sorted(row for columns in cells for row in zip(*(c.tolist() for c in columns), strict=True))

    assert seen(300, 1, 2) == seen(111, 1, 2, shuffle=5, world=2)
    assert len({tuple(seen(300, *key)) for key in [(1, 2), (2, 1), (1, 3), (0, 2)]}) == 4


def test_what_is_hidden_of_a_row_is_drawn_independently() -> None:
    drawn = draws(3, 1, np.arange(40_000), 5) / 2**32
    assert drawn.mean(1) == pytest.approx(0.5, abs=0.007)  # 5 deviations
    assert np.corrcoef(drawn) == pytest.approx(np.eye(5), abs=0.025)
    assert abs(np.corrcoef(drawn[:, :-1], drawn[:, 1:])[:5, 5:]).max() < 0.025
    next_epoch = draws(3, 2, np.arange(40_000), 5)
    assert abs(np.corrcoef(drawn, next_epoch)[:5, 5:]).max() < 0.025


def test_hiding_a_segment_hides_all_that_would_tell_it(encoder: Encoder, rows: pa.Table) -> None:
    batch = encoder.to_batch(encoder.encode(rows))
    hidden = Hiding.of(model_config(), 0.0, 0.3)(batch, 0, 0)
    gone = (batch.segment > 0) & (hidden.segment == 0)
    assert 0.25 < gone.float().mean() < 0.35
    user, country, item = hidden.values[: 3 * len(batch)].view(3, -1)
    assert not country[gone].any()
    assert (country[~gone] > 0).all()
    assert (user > 0).all()
    assert (item > 0).all()
    price, rate = hidden.dense.T
    assert not rate[gone].any()
    assert torch.equal(price, batch.dense[:, 0])
    assert torch.equal(hidden.lengths, batch.lengths)


def test_hiding_behaviour_hides_the_user_and_all_of_their_history() -> None:
    """Also other windows than those of the segment, and the history of the user with something else."""
    made_of = {
        "user_id": ("user_id",),
        "country": ("country",),
        "tab": ("tab",),
        "user_id_7d_rows": ("user_id",),
        "user_id_7d_click_rate": ("user_id",),
        "user_id_1d_rows": ("user_id",),
        "user_id_x_tab_7d_rows": ("user_id", "tab"),
        "country_7d_rows": ("country",),
        "tab_7d_rows": ("tab",),
    }
    features = [
        Feature(
            name=name, kind="numeric" if "7d" in name or "1d" in name else "categorical", side="user", from_keys=keys
        )
        for name, keys in made_of.items()
    ]
    by = BehaviouralSegments(counts=("user_id_7d_rows",), rates=("user_id_7d_click_rate",), k=2)
    config = ModelConfig(features=features, tasks=(Task(name="click"),), segments=Segments(by=by))
    hiding = Hiding.of(config, 0.0, 0.5)
    assert hiding.sparse_tells == (True, False, False)
    assert hiding.dense_tells == (True, True, True, True, False, False)


def test_hiding_ids_hides_their_share_in_every_feature(encoder: Encoder, rows: pa.Table) -> None:
    batch = encoder.to_batch(encoder.encode(rows))
    hidden = Hiding.of(model_config(), 0.1, 0.0)(batch, 0, 0)
    shares = (hidden.values == 0).float()[: 3 * len(batch)].view(3, -1).mean(1)
    assert ((shares > 0.07) & (shares < 0.13)).all()
    assert torch.equal(hidden.segment, batch.segment)


def test_nothing_to_hide_leaves_the_batch_alone(encoder: Encoder, rows: pa.Table) -> None:
    batch = encoder.to_batch(encoder.encode(rows))
    assert Hiding.of(model_config(segments=None), 0.0, 0.5)(batch, 0, 0) is batch
