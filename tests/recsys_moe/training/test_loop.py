from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import distributed as dist

from recsys_moe import metrics
from recsys_moe.checkpoint import Ranker
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.errors import UserError
from recsys_moe.routing import routing_report
from recsys_moe.training import Fitted
from tests.recsys_moe.conftest import raw_rows
from tests.recsys_moe.training.fitting import TRAINING, changed, fit_on, weighted


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
    summary = routing_report(fitted.model, Loader(encoder, held_out, 512).batches()).summary()
    assert {name: last[name] for name in summary} == pytest.approx(summary, rel=1e-3)


def test_no_process_group_is_left(fitted: Fitted) -> None:
    assert not dist.is_initialized()


def test_every_expert_works(encoder: Encoder, fitted: Fitted) -> None:
    encoded = encoder.encode(raw_rows(2_000, seed=3))
    report = routing_report(fitted.model, Loader(encoder, encoded, 500).batches())
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
    rows = raw_rows(1_500)
    first, again = (fit_on(encoder, rows, TRAINING).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = fit_on(encoder, rows, TRAINING.model_copy(update={"seed": 1})).model.state_dict()
    assert not torch.equal(first["embeddings.weight"], other["embeddings.weight"])


def test_the_plain_body_gives_what_the_sharded_one_gave(encoder: Encoder) -> None:
    rows, training = raw_rows(1_500), TRAINING.model_copy(update={"hide_ids": 0.0, "hide_segments": 0.0})
    held_out = encoder.encode(raw_rows(800, seed=4))
    fitted = fit_on(encoder, rows, training, validation=Loader(encoder, held_out, 300))
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


def test_a_row_that_counts_more_is_as_many_rows(encoder: Encoder) -> None:
    """The first step of weighted rows and of repeated ones: the same loss and the same gradient."""
    gates = encoder.config.gates.model_copy(update={"z_loss": 0.0})  # what gates are kept in order by has no weights
    plain = changed(encoder, "dense", gates=gates)
    training = TRAINING.model_copy(update={"batch_size": 1_000, "hide_ids": 0.0, "hide_segments": 0.0})
    rows, seen = weighted(raw_rows(200)), []
    times = np.repeat(np.arange(200), np.array(rows["row_weight"]).astype(int))
    for table in (rows, rows.drop_columns(["row_weight"]).take(pa.array(times))):
        fit_on(plain, table, training, on_step=seen.append)
    for name in ("loss", "loss/click", "loss/buy", "grad_norm"):
        assert seen[0][name] == pytest.approx(seen[1][name], rel=1e-4)


def test_a_segments_change_has_the_rank_that_was_asked_for(encoder: Encoder) -> None:
    sizes = encoder.config.experts.model_copy(update={"segment_rank": 3})
    narrow = copy.copy(encoder)
    narrow.config = encoder.config.model_copy(update={"experts": sizes})
    changes = fit_on(narrow, raw_rows(2_000), TRAINING).model.experts.segments
    for down, up in zip(changes.down, changes.up, strict=True):
        assert down.shape[-1] == up.shape[1] == 8  # padded
        assert torch.linalg.matrix_rank(down[1:].double() @ up[1:].double()).tolist() == [3, 3, 3]


def test_nothing_to_train_on_is_said(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        fit_on(encoder, raw_rows(10).slice(0, 0), TRAINING)


def test_nothing_to_judge_by_is_no_validation(encoder: Encoder) -> None:
    """As of fewer rows than there are processes. A loss of 0 would be the best of all."""
    none = Loader(encoder, encoder.encode(raw_rows(1)), 256, world=2)
    fitted = fit_on(encoder, raw_rows(300), TRAINING.model_copy(update={"early_stopping": 1}), validation=none)
    assert set(fitted.history[0]) == {"epoch", "step", "loss", "loss/click", "loss/buy"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_said(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="CUDA"):
        fit_on(encoder, raw_rows(300), TRAINING.model_copy(update={"device": "cuda"}))


def test_early_stopping_counts_validations(encoder: Encoder) -> None:
    """Rates so high that it overfits: it ends before its epochs do, and says so in its history."""
    rows, held_out = raw_rows(1_024), encoder.encode(raw_rows(500, seed=1))
    changes = {"epochs": 30, "embedding_learning_rate": 3.0, "early_stopping": 3, "validations": 2}
    seen: list[dict[str, float]] = []
    fitted = fit_on(
        encoder,
        rows,
        TRAINING.model_copy(update=changes),
        validation=Loader(encoder, held_out, 500),
        on_validation=seen.append,
    )
    losses = [record["validation/loss"] for record in seen]
    assert [record["step"] for record in seen] == [2 * (n + 1) for n in range(len(seen))]  # of 4 steps an epoch
    assert len(losses) < 60
    assert len(losses) - 1 - int(np.argmin(losses)) == 3
    assert fitted.history[-1]["step"] == seen[-1]["step"]
    assert fitted.history[-1]["validation/loss"] == losses[-1]


@pytest.mark.parametrize("how", ["uncertainty", "gradnorm"])
def test_learned_weights_of_tasks_are_told(encoder: Encoder, how: str) -> None:
    seen: list[dict[str, float]] = []
    fit_on(encoder, raw_rows(1_024), TRAINING.model_copy(update={"loss_weights": how}), on_step=seen.append)
    assert all(record["weight/click"] > 0 and record["weight/buy"] > 0 for record in seen)
    assert seen[0]["weight/click"] != seen[-1]["weight/click"]


def test_fresh_tables_forget_at_the_start_of_every_epoch(encoder: Encoder) -> None:
    """With rates that leave nothing to learn, a table is what it was drawn as: anew in the second epoch."""
    still = {"epochs": 2, "learning_rate": 1e-9, "embedding_learning_rate": 1e-9, "learning_rate_decay": 0.0}
    rows = raw_rows(512)
    once, kept, fresh = (
        fit_on(encoder, rows, TRAINING.model_copy(update=still | changes)).model.embeddings.weight
        for changes in ({"epochs": 1, "fresh_tables": True}, {}, {"fresh_tables": True})
    )
    torch.testing.assert_close(once, kept, atol=1e-6, rtol=0)
    assert (fresh - once).abs().mean() > 0.01


def test_fresh_tables_are_the_same_where_a_training_goes_on(encoder: Encoder, tmp_path: Path) -> None:
    training, rows = TRAINING.model_copy(update={"epochs": 2, "fresh_tables": True}), raw_rows(1000)
    whole = fit_on(encoder, rows, training)

    class Stop(Exception):
        pass

    def stop(_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        fit_on(encoder, rows, training, state=tmp_path, on_step=lambda r: stop(r) if r["step"] == 6 else None)
    again = fit_on(encoder, rows, training, state=tmp_path, resume=True)
    assert torch.equal(whole.model.embeddings.weight, again.model.embeddings.weight)
