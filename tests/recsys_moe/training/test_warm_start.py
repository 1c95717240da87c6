"""Beginning with the model of the day before, in a world that has drifted since."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from recsys_moe import checkpoint
from recsys_moe.checkpoint import Ranker
from recsys_moe.config import Task, WarmStart
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.errors import UserError
from recsys_moe.training import Fitted, fit
from recsys_moe.training.warm_start import BY_SEGMENT
from tests.recsys_moe.conftest import raw_rows
from tests.recsys_moe.training.fitting import TRAINING, changed, fit_on, small_encoder

STILL = TRAINING.model_copy(update={"learning_rate": 1e-30, "embedding_learning_rate": 1e-30, "segment_decay": 0.0})


def drifted_rows(rows: int, seed: int) -> pa.Table:
    """A day later: a tenth of the users are new and in a new country, and prices have risen."""
    table = raw_rows(rows, seed)
    is_new = np.char.endswith(np.array(table["user_id"]).astype(str), "7")
    user = pc.if_else(pa.array(is_new), pc.binary_join_element_wise(table["user_id"], "new", "-"), table["user_id"])
    country = pc.if_else(pa.array(is_new), "ES", table["country"])
    return (
        table.set_column(0, "user_id", user)
        .set_column(1, "country", country)
        .set_column(4, "price", pc.multiply(table["price"], 1.2))
    )


@pytest.fixture(scope="module")
def start(encoder: Encoder, fitted: Fitted) -> Ranker:
    return Ranker(encoder, fitted.model, fitted.table_sums)


@pytest.fixture(scope="module")
def grown(start: Ranker) -> Encoder:
    return small_encoder(drifted_rows(6_000, 5), previous=start.encoder)


def test_a_day_later_it_needs_a_third_of_the_steps_of_a_cold_start(start: Ranker, grown: Encoder) -> None:
    rows, held_out = drifted_rows(6_000, 5), grown.encode(drifted_rows(4_000, 6))
    cold_encoder = small_encoder(rows)
    cold = fit_on(
        cold_encoder,
        rows,
        TRAINING.model_copy(update={"epochs": 3}),
        validation=Loader(cold_encoder, cold_encoder.encode(drifted_rows(4_000, 6)), 1_000),
    )
    warm = fit_on(grown, rows, TRAINING, validation=Loader(grown, held_out, 1_000), start=start)
    assert warm.history[-1]["step"] * 3 == cold.history[-1]["step"]
    assert warm.history[-1]["validation/loss"] <= cold.history[-1]["validation/loss"]


def test_a_share_of_the_start_is_kept(start: Ranker, grown: Encoder) -> None:
    """At the end of every epoch, before it is validated and written."""
    rows = drifted_rows(2_000, 5)
    learned = fit_on(grown, rows, TRAINING, start=start)
    still = fit_on(grown, rows, STILL, start=start)
    kept = fit_on(grown, rows, TRAINING.model_copy(update={"warm_start": WarmStart(keep=0.25)}), start=start)
    before, after = start.model.state_dict(), learned.model.state_dict()
    before["embeddings.weight"] = still.model.state_dict()["embeddings.weight"]
    for name, tensor in kept.model.state_dict().items():
        if name.startswith(BY_SEGMENT):  # a new segment has nothing to keep
            continue
        assert torch.allclose(tensor, 0.25 * before[name] + 0.75 * after[name], atol=1e-6), name


def test_what_both_know_is_taken_over_and_the_rest_begins_as_unknown(start: Ranker, grown: Encoder) -> None:
    warm = fit_on(grown, drifted_rows(256, 5), STILL, start=start)
    old, new = start.model.state_dict(), warm.model.state_dict()
    sizes = start.encoder.vocab_sizes, grown.vocab_sizes
    assert sizes[1][0] > sizes[0][0]  # new users
    pairs = zip(*(model["embeddings.weight"].split(s) for model, s in zip((old, new), sizes, strict=True)), strict=True)
    for was, now in pairs:
        assert torch.allclose(now[: len(was)], was)
        assert torch.allclose(now[len(was) :], was[0].expand(len(now) - len(was), -1))
    segments = len(start.encoder.segment_names)
    assert grown.segment_names[:segments] == start.encoder.segment_names
    assert grown.segment_names[segments:] == ("ES",)
    for name in ("gates.segment_embedding", "experts.segments.up.0", "experts.segments.down.1"):
        assert torch.allclose(new[name][:segments], old[name], atol=1e-7), name
    assert new["experts.segments.up.0"][segments:].abs().max() < 1e-7
    for name in ("experts.routed.weights.0", "gates.weight", "towers.weights.1"):
        assert torch.allclose(new[name], old[name]), name
    assert warm.table_sums is not None
    assert start.table_sums is not None
    sums = warm.table_sums.split(sizes[1])[0]
    assert torch.all(sums[: sizes[0][0]] >= start.table_sums[: sizes[0][0]])


def test_the_sums_travel_with_the_checkpoint_and_serving_leaves_them(start: Ranker, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", start.encoder, start.model, start.table_sums)
    assert checkpoint.load(tmp_path / "model").table_sums is None
    again = checkpoint.load(tmp_path / "model", to_train=True).table_sums
    assert again is not None
    assert start.table_sums is not None
    assert torch.equal(again, start.table_sums)
    checkpoint.save(tmp_path / "old", start.encoder, start.model)
    assert checkpoint.load(tmp_path / "old", to_train=True).table_sums is None


def test_a_part_of_another_shape_begins_anew(start: Ranker, grown: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    other = changed(grown, towers=(16,))
    model = fit_on(other, drifted_rows(256, 5), STILL, start=start).model
    assert "towers are of another shape" in caplog.text
    assert torch.allclose(model.gates.weight, start.model.gates.weight)


def test_what_cannot_go_on_is_refused(start: Ranker, grown: Encoder) -> None:
    others = {
        "features": changed(grown, features=grown.config.features[:-1]),
        "tasks": changed(grown, tasks=(Task(name="click"), Task(name="buy"))),
        "model.embedding_dim": changed(grown, embedding_dim=8),
        "features.user_id": small_encoder(drifted_rows(2_000, 9)),
    }
    for where, encoder in others.items():
        loader = Loader(grown, grown.encode(raw_rows(256)), 256)
        with pytest.raises(UserError, match=f"^{where}"):
            fit(encoder.config, STILL, copy.copy(encoder), loader, start=start)
