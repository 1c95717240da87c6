"""Losses that stop a training, and what is said of a GPU whose memory ran out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import distributed as dist

from recsys_moe.batch import Batch
from recsys_moe.config import Task
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.errors import UserError
from recsys_moe.training import fit
from recsys_moe.training.trouble import FIRST_STEPS, LossGuard, memory_errors_explained, rows_that_fit
from tests.recsys_moe.conftest import raw_rows
from tests.recsys_moe.training.fitting import TRAINING, small_encoder

TASKS = (Task(name="click"), Task(name="seconds", kind="regression"))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return small_encoder(raw_rows(1_000))


class Spoilt(Loader):
    """The third batch has numbers in two rows that no model can take."""

    factor = float("nan")

    def batches(self, epoch: int = 0, first_step: int = 0) -> Iterator[Batch]:
        for position, batch in enumerate(super().batches(epoch, first_step), first_step):
            factor = torch.ones(len(batch), 1)
            factor[[5, 9]] = self.factor
            yield replace(batch, dense=batch.dense * factor) if position == 2 else batch


class Absurd(Spoilt):
    factor = 1e12


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(encoder: Encoder, tmp_path: Path) -> None:
    loader = Spoilt(encoder, encoder.encode(raw_rows(1_000)), 256)
    with pytest.raises(UserError) as caught:
        fit(encoder.config, TRAINING, encoder, loader)
    message = str(caught.value)
    assert "the loss of task click is not finite at step 3" in message
    assert "rows 512 to 767 of the training set, not finite by themselves: 517, 521)" in message
    assert message.endswith("there is no checkpoint yet")
    assert "\n" not in message
    assert not dist.is_initialized()


def test_the_last_good_checkpoint_is_named(encoder: Encoder, tmp_path: Path) -> None:
    loader = Spoilt(encoder, encoder.encode(raw_rows(1_000)), 256)
    training = TRAINING.model_copy(update={"checkpoint_minutes": 1e-9})
    with pytest.raises(UserError, match=r"the last good checkpoint is of step 2, in .*state/000002$"):
        fit(encoder.config, training, encoder, loader, state=tmp_path / "state")


def test_an_exploding_loss_stops(encoder: Encoder) -> None:
    loader = Absurd(encoder, encoder.encode(raw_rows(1_000)), 256)
    with pytest.raises(UserError, match=r"the loss of task \w+ explodes: .* at step 3 \(rows 512 to 767 of the"):
        fit(encoder.config, TRAINING, encoder, loader)


def test_a_rare_task_and_a_regression_may_jump() -> None:
    guard = LossGuard(TASKS)
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert guard.problem([0.001 * rng.random(), 1.0]) is None
    assert guard.problem([10.0, 1e9]) is None  # ten thousand times the usual, and still what a bad batch may have
    assert guard.problem([51.0, 1.0]) == "the loss of task click explodes: 51, where 0.05 is usual"
    assert guard.problem([0.1, float("inf")]) == "the loss of task seconds is not finite"


def test_the_usual_loss_is_that_of_the_first_steps() -> None:
    guard = LossGuard(TASKS[:1])
    assert guard.problem([1e30]) is None  # nothing to compare with yet
    for _ in range(FIRST_STEPS):
        assert guard.problem([0.7]) is None
    assert guard.problem([699.0]) is None
    assert guard.problem([701.0]) is not None
    assert len(guard.first) == FIRST_STEPS


def test_rows_that_fit_follow_from_memory_per_row() -> None:
    gib = 2**30
    # 4 GiB of weights; 1,000,000 rows had taken 80 GiB of 80 when it ended.
    assert rows_that_fit(80 * gib, 4 * gib, 80 * gib, 1_000_000) == 500_000
    # The device was shared with another: weights and rows take what they take.
    assert rows_that_fit(8 * gib, 4 * gib, 20 * gib, 16_000) == int(3.2 * gib / (16 * gib / 16_000))
    assert rows_that_fit(4 * gib, 4 * gib, 4 * gib, 100) == 1


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(KeyError), memory_errors_explained(10, torch.device("cpu")):
        raise KeyError("x")


def test_healthy_runs_with_rare_positives_do_not_stop(encoder: Encoder) -> None:
    """A task with a positive in five hundred, high rates, small batches."""
    rows = raw_rows(2_000)
    rare = pa.array((np.arange(2_000) % 500 == 0).astype(np.float32))
    rows = rows.set_column(rows.schema.get_field_index("label_click"), "label_click", rare)
    training = TRAINING.model_copy(update={"learning_rate": 0.05, "embedding_learning_rate": 0.5, "batch_size": 64})
    loader = Loader(encoder, encoder.encode(rows), 64, shuffle=0)
    assert fit(encoder.config, training, encoder, loader).history[0]["loss"] > 0
