from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import distributed as dist

from recsys_moe import metrics
from recsys_moe.batch import Batch
from recsys_moe.checkpoint import Ranker
from recsys_moe.config import TrainingConfig
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError
from recsys_moe.routing import routing_report
from recsys_moe.training import Fitted, fit, rate_share
from tests.recsys_moe.conftest import model_config, raw_rows

TRAINING = TrainingConfig(batch_size=256, learning_rate=5e-3, embedding_learning_rate=0.2, device="cpu", threads=1)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.fit(model_config(), raw_rows(12_000).to_batches())


def epochs(encoder: Encoder, rows: pa.Table, training: TrainingConfig) -> Callable[[int], Iterator[Batch]]:
    encoded = encoder.encode(rows)
    return lambda epoch: encoder.batches(encoded, training.batch_size, (training.seed, epoch))


def fit_on(encoder: Encoder, rows: pa.Table, training: TrainingConfig, **more: object) -> Fitted:
    steps = -(-rows.num_rows // training.batch_size)
    return fit(encoder.config, training, encoder, epochs(encoder, rows, training), steps_per_epoch=steps, **more)


@pytest.fixture(scope="module")
def fitted(encoder: Encoder) -> Fitted:
    training = TRAINING.model_copy(update={"epochs": 3})
    held_out = encoder.encode(raw_rows(2_000, seed=1))
    return fit_on(encoder, raw_rows(12_000), training, validation=lambda: encoder.batches(held_out, 512))


def test_it_learns_tastes_that_differ_in_kind(encoder: Encoder, fitted: Fitted) -> None:
    rows = raw_rows(4_000, seed=2)
    click = metrics.auc(np.array(rows["label_click"]), Ranker(encoder, fitted.model).predict(rows)[:, 0])
    assert click > 0.88  # 0.9 is the best that anyone can reach


def test_history_tells_the_epochs(fitted: Fitted) -> None:
    assert [record["epoch"] for record in fitted.history] == [0, 1, 2]
    losses = [record["validation/loss"] for record in fitted.history]
    assert losses[-1] < losses[0]
    assert fitted.best_epoch == 1 + int(np.argmin(losses))
    losses_of = ["loss", "loss/click", "loss/buy"]
    of_experts = {name for name in fitted.history[0] if name.startswith("validation/experts/")}
    expected = {"epoch", "step", *losses_of, *(f"validation/{name}" for name in losses_of)}
    assert set(fitted.history[0]) - of_experts == expected


def test_history_tells_how_experts_are_used(encoder: Encoder, fitted: Fitted) -> None:
    held_out = encoder.encode(raw_rows(2_000, seed=1))
    last = {name.removeprefix("validation/experts/"): value for name, value in fitted.history[-1].items()}
    summary = routing_report(fitted.model, encoder.batches(held_out, 512)).summary()
    assert {name: last[name] for name in summary} == pytest.approx(summary, rel=1e-3)


def test_no_process_group_is_left(fitted: Fitted) -> None:
    assert not dist.is_initialized()


def test_every_expert_works(encoder: Encoder, fitted: Fitted) -> None:
    encoded = encoder.encode(raw_rows(2_000, seed=3))
    report = routing_report(fitted.model, encoder.batches(encoded, 500))
    assert report.load.shape == (2, 4)
    assert report.load_by_segment.shape == (4, 2, 4)
    assert report.rows.tolist()[0] == 0
    assert int(report.rows.sum()) == 2_000
    assert torch.allclose(report.load.sum(-1), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(report.weight.sum(-1), torch.ones(2, dtype=torch.float64))
    assert report.load_by_segment[0].isnan().all()
    assert report.dead == ()
    assert report.entropy > 0.8


def test_same_seed_same_weights_to_the_bit_and_another_seed_others(encoder: Encoder) -> None:
    # What is quicker is timed where a training starts, and is not computed to the same last digit.
    experts = encoder.config.experts.model_copy(update={"dispatch": "sparse"})
    encoder = Encoder(**vars(encoder) | {"config": encoder.config.model_copy(update={"experts": experts})})
    rows = raw_rows(1_500)
    first, again = (fit_on(encoder, rows, TRAINING).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = fit_on(encoder, rows, TRAINING.model_copy(update={"seed": 1})).model.state_dict()
    assert not torch.equal(first["embeddings.weight"], other["embeddings.weight"])


def test_the_plain_body_gives_what_the_sharded_one_gave(encoder: Encoder) -> None:
    rows, training = raw_rows(1_500), TRAINING.model_copy(update={"hide_ids": 0.0, "hide_segments": 0.0})
    held_out = encoder.encode(raw_rows(800, seed=4))
    fitted = fit_on(encoder, rows, training, validation=lambda: encoder.batches(held_out, 300))
    p = Ranker(encoder, fitted.model).predict(raw_rows(800, seed=4))
    label = np.array(held_out["label_click"])
    assert metrics.log_loss(label, p[:, 0]) == pytest.approx(fitted.history[0]["validation/loss/click"], rel=1e-5)
    label = np.array(held_out["label_buy"])
    assert metrics.log_loss(label, p[:, 1]) == pytest.approx(fitted.history[0]["validation/loss/buy"], rel=1e-5)


def test_on_step_sees_every_step(encoder: Encoder) -> None:
    seen: list[dict[str, float]] = []
    fit_on(encoder, raw_rows(600), TRAINING, on_step=seen.append)
    assert [record["step"] for record in seen] == [1, 2, 3]
    assert [record["rows"] for record in seen] == [256, 256, 88]
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in seen)


def weighted(rows: pa.Table) -> pa.Table:
    """Every second row counts five times."""
    return rows.append_column("row_weight", pa.array(1.0 + 4.0 * (np.arange(rows.num_rows) % 2)))


def test_a_row_that_counts_more_is_as_many_rows(encoder: Encoder) -> None:
    """The first step of weighted rows and of repeated ones: the same loss and the same gradient."""
    gates = encoder.config.gates.model_copy(update={"z_loss": 0.0})  # what gates are kept in order by has no weights
    experts = encoder.config.experts.model_copy(update={"dispatch": "dense"})
    config = encoder.config.model_copy(update={"gates": gates, "experts": experts})
    plain = Encoder(**vars(encoder) | {"config": config})
    training = TRAINING.model_copy(update={"batch_size": 1_000, "hide_ids": 0.0, "hide_segments": 0.0})
    rows, seen = weighted(raw_rows(200)), []
    times = np.repeat(np.arange(200), np.array(rows["row_weight"]).astype(int))
    for table in (rows, rows.drop_columns(["row_weight"]).take(pa.array(times))):
        fit_on(plain, table, training, on_step=seen.append)
    for name in ("loss", "loss/click", "loss/buy", "grad_norm"):
        assert seen[0][name] == pytest.approx(seen[1][name], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(encoder: Encoder) -> None:
    def poisoned(epoch: int) -> Iterator[Batch]:
        for position, batch in enumerate(epochs(encoder, raw_rows(1_000), TRAINING)(epoch)):
            yield replace(batch, dense=batch.dense * float("nan")) if position == 2 else batch

    with pytest.raises(UserError, match="not finite at step 2"):
        fit(encoder.config, TRAINING, encoder, poisoned, steps_per_epoch=4)
    assert not dist.is_initialized()


def test_a_batch_without_rows_is_said_before_it_reaches_the_weights(encoder: Encoder) -> None:
    empty = encoder.to_batch(encoder.encode(raw_rows(10)).slice(0, 0))
    with pytest.raises(UserError, match="step 0 has no rows"):
        fit(encoder.config, TRAINING, encoder, lambda epoch: iter([empty]), steps_per_epoch=1)


def test_a_segments_change_has_the_rank_that_was_asked_for(encoder: Encoder) -> None:
    sizes = encoder.config.experts.model_copy(update={"segment_rank": 3})
    config = encoder.config.model_copy(update={"experts": sizes})
    narrow = Encoder(config, encoder.vocabularies, encoder.scalers, encoder.segment_names, encoder.label_means)
    changes = fit_on(narrow, raw_rows(2_000), TRAINING).model.experts.segments
    for down, up in zip(changes.down, changes.up, strict=True):
        assert down.shape[-1] == up.shape[1] == 8  # padded
        assert torch.linalg.matrix_rank(down[1:].double() @ up[1:].double()).tolist() == [3, 3, 3]


def test_nothing_to_train_on_is_said(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        fit(encoder.config, TRAINING, encoder, lambda epoch: iter(()), steps_per_epoch=0)


def test_rates_rise_stay_and_fall() -> None:
    shares = [rate_share(step, 100, 0.5) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[10:50] == [1.0] * 40
    assert shares[75] == pytest.approx(0.5)
    assert shares[99] == pytest.approx(0.02)
    assert rate_share(120, 100, 0.5) == shares[99]  # told too few steps
    assert rate_share(99, 100, 0.0) == 1.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_said(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="CUDA"):
        fit_on(encoder, raw_rows(300), TRAINING.model_copy(update={"device": "cuda"}))


WORKER = """
import os, sys
from pathlib import Path
from recsys_moe import checkpoint
from recsys_moe.encoding import Encoder
from recsys_moe.training import fit
from tests.recsys_moe.conftest import model_config, raw_rows
from tests.recsys_moe.test_training import TRAINING, weighted

rank, rows = int(os.environ["RANK"]), weighted(raw_rows(3000))
encoder = Encoder.fit(model_config(), rows.to_batches())
encoded = encoder.encode(rows)
mine = lambda e: encoder.batches(encoded, 256, (0, e), rank, 2)
done = fit(encoder.config, TRAINING, encoder, mine, steps_per_epoch=12)
checkpoint.save(Path(sys.argv[1]) / str(rank), encoder, done.model)
print(done.history[0]["loss"])
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_agree_and_learn_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "PYTHONPATH": "."}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, str(tmp_path)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=250) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    weights = [(tmp_path / str(rank) / "weights.safetensors").read_bytes() for rank in range(2)]
    assert weights[0] == weights[1]
    rows = weighted(raw_rows(3000))
    alone = Encoder.fit(model_config(), rows.to_batches())
    assert float(outputs[0][0]) == pytest.approx(fit_on(alone, rows, TRAINING).history[0]["loss"], rel=0.03)
