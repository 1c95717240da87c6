"""Training on a share of the negatives: what is served is what training on all rows would have given."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from recsys_moe import checkpoint, metrics
from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import Experts, Feature, ModelConfig, SampledNegatives, Task, TrainingConfig
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.errors import UserError
from recsys_moe.explain import Reference, explain
from recsys_moe.knock_out import knock_out
from recsys_moe.losses import loss_sums, sampling_weights
from recsys_moe.model import ancestry
from recsys_moe.scoring import Blend, score_top_n
from recsys_moe.training import Fitted, fit

SHARE = 0.1
TASKS = (Task(name="like"), Task(name="click"), Task(name="buy", given="click"), Task(name="time", kind="regression"))
CONFIG = ModelConfig(
    features=(
        Feature(name="user_id", kind="categorical", side="user"),
        Feature(name="u", kind="numeric", side="user"),
        Feature(name="v", kind="numeric", side="item"),
    ),
    tasks=TASKS,
    embedding_dim=4,
    experts=Experts(shared=1, per_segment=0, routed=0, hidden=(16,)),
    sampled=SampledNegatives(task="click", share=SHARE),
)
TRAINING = TrainingConfig(
    epochs=3, batch_size=256, learning_rate=4e-3, embedding_learning_rate=0.02, hide_ids=0.0, device="cpu", threads=1
)


def logistic_rows(rows: int, seed: int) -> pa.Table:
    """Clicks are rare and logistic in u + v; likes and time go with clicks, so that a sample of these distorts them."""
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(2, rows))
    click = rng.random(rows) < 1 / (1 + np.exp(3.5 - 0.8 * u - 0.8 * v))
    like = rng.random(rows) < np.where(click, 0.6, 0.15)
    buy = click & (rng.random(rows) < 1 / (1 + np.exp(1 - u)))
    columns = {"user_id": [f"u{n}" for n in rng.integers(0, 5, rows)], "u": u, "v": v}
    labels = {"like": like, "click": click, "buy": buy, "time": 1.0 + 5.0 * click + rng.normal(size=rows)}
    columns |= {f"label_{name}": values.astype(np.float64) for name, values in labels.items()}
    return pa.table(columns)


def sample(rows: pa.Table) -> pa.Table:
    kept = (np.array(rows["label_click"]) == 1) | (np.random.default_rng(9).random(rows.num_rows) < SHARE)
    return rows.filter(pa.array(kept))


@dataclass(frozen=True)
class Sampled:
    rows: pa.Table
    ranker: Ranker
    history: Fitted

    @property
    def base_rates(self) -> NDArray[np.float64]:
        return np.array([np.mean(self.rows[f"label_{task.name}"]) for task in TASKS])


@pytest.fixture(scope="module")
def sampled() -> Sampled:
    rows, held_out = logistic_rows(80_000, 0), logistic_rows(40_000, 1)
    kept = sample(rows)
    encoder = Encoder.fit(CONFIG, kept.to_batches())
    encoded, validation = encoder.encode(kept), encoder.encode(held_out)
    fitted = fit(
        CONFIG,
        TRAINING,
        encoder,
        Loader(encoder, encoded, TRAINING.batch_size, shuffle=0),
        validation=Loader(encoder, validation, 5_000),
    )
    return Sampled(held_out, Ranker(encoder, fitted.model), fitted)


def test_every_task_is_calibrated_on_rows_that_were_not_sampled(sampled: Sampled) -> None:
    assert sampled.ranker.predict(sampled.rows).mean(0) == pytest.approx(sampled.base_rates, rel=0.08)


def test_without_the_correction_it_would_not_be(sampled: Sampled) -> None:
    encoder = copy(sampled.ranker.encoder)
    encoder.config = CONFIG.model_copy(update={"sampled": None})
    plain = empty_model(encoder)
    plain.load_state_dict(sampled.ranker.model.state_dict())
    said = Ranker(sampled.ranker.encoder, plain.eval()).predict(sampled.rows).mean(0)
    assert said[1] > 3 * sampled.base_rates[1]
    assert said[2] > 2 * sampled.base_rates[2]
    assert said[0] == pytest.approx(sampled.base_rates[0], rel=0.08)  # by weights, not by the correction
    assert said[3] == pytest.approx(sampled.base_rates[3], rel=0.08)


def test_the_validation_loss_is_that_of_what_is_served(sampled: Sampled) -> None:
    said = sampled.ranker.predict(sampled.rows)
    for position, name in enumerate(["like", "click", "buy"]):
        expected = metrics.log_loss(np.array(sampled.rows[f"label_{name}"]), said[:, position])
        assert sampled.history.history[-1][f"validation/loss/{name}"] == pytest.approx(expected, rel=1e-4)


def test_knock_outs_start_from_the_loss_of_what_is_served(sampled: Sampled) -> None:
    encoder, model = sampled.ranker.encoder, sampled.ranker.model
    found = knock_out(
        model, Loader(encoder, encoder.encode(sampled.rows), 5_000).batches(), np.arange(len(sampled.rows))
    )
    expected = [sampled.history.history[-1][f"validation/loss/{task.name}"] for task in TASKS]
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_checkpoint_keeps_the_correction(sampled: Sampled, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", sampled.ranker.encoder, sampled.ranker.model)
    again = checkpoint.load(tmp_path / "model")
    assert again.config.sampled == CONFIG.sampled
    assert np.array_equal(again.predict(sampled.rows), sampled.ranker.predict(sampled.rows))


def test_scores_and_explanations_are_corrected_too(sampled: Sampled) -> None:
    ranker, pair = sampled.ranker, sampled.rows.slice(0, 1)
    (said,) = ranker.predict(pair)
    (best,) = score_top_n(ranker, pair, pair, np.array([[0]]), Blend({"like": 1.0}), 1)
    assert best.task_scores[0] == pytest.approx(said, rel=1e-5)
    batch = ranker.encoder.to_batch(ranker.encoder.encode(pair))
    reference = Reference.of(ranker.model, [batch])
    explained = explain(ranker.model, ranker.model.inputs(batch), batch.segment, reference)
    assert explained.predictions.numpy() == pytest.approx(said, rel=1e-5)


def test_a_kept_share_turns_a_sampled_probability_into_the_true_one(sampled: Sampled) -> None:
    logits = torch.tensor([[0.0, 1.2, 0.4, 2.0]])
    s = torch.sigmoid(logits[0, 1])
    true = s / (s + (1 - s) / SHARE)
    expected = [0.5, float(true), float(true * torch.sigmoid(logits[0, 2])), 2.0]
    assert sampled.ranker.model.probabilities(logits)[0].tolist() == pytest.approx(expected)


def test_a_kept_negative_stands_for_those_left_out_in_tasks_that_are_not_given_it() -> None:
    labels = torch.tensor([[1.0, 0, 0, 3], [0, 1, 0, 2], [1, 0, 0, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1]]).bool()
    weight = torch.tensor([1.0, 2.0, 3.0])
    assert CONFIG.sampled is not None
    found = sampling_weights(labels, mask, weight, TASKS, ancestry(TASKS), CONFIG.sampled)
    # The last row's click is not known: no such row was left out.
    assert found.tolist() == [[10, 1, 1, 10], [2, 2, 2, 2], [3, 3, 3, 3]]


def test_weights_may_differ_by_task() -> None:
    logits, labels = torch.randn(6, 4), torch.ones(6, 4)
    weight = torch.rand(6, 4)
    sums, counts = loss_sums(logits, labels, torch.ones(6, 4).bool(), weight, TASKS, ancestry(TASKS))
    for task in range(4):
        alone, count = loss_sums(logits, labels, torch.ones(6, 4).bool(), weight[:, task], TASKS, ancestry(TASKS))
        assert sums[task] == pytest.approx(float(alone[task]), rel=1e-6)
        assert counts[task] == pytest.approx(float(count[task]), rel=1e-6)


@pytest.mark.parametrize("task", ["buy", "time", "swipe"])
def test_only_a_binary_task_that_is_given_no_other_can_be_sampled(task: str) -> None:
    config = CONFIG.model_copy(update={"sampled": SampledNegatives(task=task, share=0.5)})
    encoder = Encoder.fit(config, logistic_rows(100, 0).to_batches())
    with pytest.raises(
        UserError, match=rf"keep_negatives\.task: '{task}' must be a binary task that is given no other"
    ):
        empty_model(encoder)
