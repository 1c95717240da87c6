from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_moe.batch import Batch
from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import Experts, Gating, ModelConfig
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.gates import Routing
from recsys_moe.knock_out import DRAWS, knock_out
from recsys_moe.losses import loss_sums
from recsys_moe.model import RankingModel
from recsys_moe.user_draws import UserDraws
from tests.recsys_moe.conftest import model_config, raw_rows


def random_model(config: ModelConfig) -> tuple[Encoder, RankingModel]:
    encoder = Encoder.fit(config, raw_rows(300).to_batches())
    torch.manual_seed(1)
    model = empty_model(encoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return encoder, model.eval().requires_grad_(False)


def losses(model: RankingModel, batch: Batch, logits: Tensor) -> Tensor:
    sums, counts = loss_sums(logits, batch.labels, batch.label_mask, batch.weight, model.config.tasks, model.ancestry)
    return sums / counts


def rise_by_hand(model: RankingModel, batch: Batch, expert: int) -> Tensor:
    """The model run again with the expert's weight at 0 and the others' brought to the same sum."""
    x = model.inputs(batch)
    routing: Routing = model.gates(x, batch.segment)
    kept = routing.weights.masked_fill(routing.experts == expert, 0.0)
    kept = kept * routing.weights.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)
    logits = [model.towers(model.experts(x, batch.segment, w, routing.chosen)) for w in (routing.weights, kept)]
    return losses(model, batch, logits[1]) - losses(model, batch, logits[0])


def test_each_expert_is_taken_out_as_the_model_itself_would_run_without(ranker: Ranker, encoder: Encoder) -> None:
    encoded = encoder.encode(raw_rows(600, seed=7))
    found = knock_out(ranker.model, Loader(encoder, encoded, 250).batches(), np.arange(600))
    whole = encoder.to_batch(encoded)
    assert found.expert_names[-1] == "segment"
    assert found.rows == 600
    expected = torch.stack([rise_by_hand(ranker.model, whole, expert) for expert in range(9)]).double()
    assert torch.allclose(found.rise, expected, atol=2e-6)
    assert (found.rise.abs() > 1e-4).any(1).all()
    assert torch.allclose(found.loss, losses(ranker.model, whole, ranker.model(whole)[0]).double(), atol=1e-6)


@pytest.mark.parametrize("gone", range(3))
def test_it_equals_a_model_that_was_built_without_the_expert(gone: int) -> None:
    encoder, model = random_model(model_config(experts=Experts(shared=3, per_segment=0, routed=0, hidden=(8,))))
    _, smaller = random_model(model_config(experts=Experts(shared=2, per_segment=0, routed=0, hidden=(8,))))
    left = [expert for expert in range(3) if expert != gone]
    state = model.state_dict()
    state["experts.always.weights.0"] = state["experts.always.weights.0"][left]
    for name in ("gates.weight", "gates.segment_weight", "gates.offset"):
        state[name] = state[name].unflatten(-1, (2, 3))[..., left].flatten(-2)
    smaller.load_state_dict(state)
    encoded = encoder.encode(raw_rows(400, seed=7))
    batch = encoder.to_batch(encoded)
    expected = losses(model, batch, smaller(batch)[0]) - losses(model, batch, model(batch)[0])
    assert torch.allclose(knock_out(model, [batch], np.arange(len(batch))).rise[gone], expected.double(), atol=2e-6)


def test_what_has_all_the_weight_cannot_be_taken_out() -> None:
    config = model_config(experts=Experts(shared=1, per_segment=0, routed=0, hidden=(8,)))
    encoder, model = random_model(config)
    found = knock_out(model, Loader(encoder, encoder.encode(raw_rows(50)), 50).batches(), np.arange(50))
    assert found.rise.isnan().all()
    assert found.loss.isfinite().all()
    assert found.summary() == {}


def test_tasks_that_an_expert_does_not_serve_lose_nothing() -> None:
    """Each task has one expert of its own; buy is given click, so without click's expert both are undefined."""
    experts = Experts(shared=0, per_task=1, per_segment=0, routed=0, hidden=(8,))
    encoder, model = random_model(model_config(experts=experts))
    rise = knock_out(model, Loader(encoder, encoder.encode(raw_rows(50)), 50).batches(), np.arange(50)).rise
    assert rise.isnan().tolist() == [[True, True], [False, True]]
    assert rise[1, 0] == 0


def test_weights_that_sum_to_less_than_one_keep_their_sum() -> None:
    gates = Gating(renormalise=False)
    experts = Experts(shared=1, per_segment=0, routed=4, top_k=2, hidden=(8,))
    encoder, model = random_model(model_config(experts=experts, gates=gates))
    batch = encoder.to_batch(encoder.encode(raw_rows(200, seed=3)))
    expected = torch.stack([rise_by_hand(model, batch, expert) for expert in range(5)]).double()
    assert torch.allclose(knock_out(model, [batch], np.arange(len(batch))).rise, expected, atol=2e-6)


def test_intervals_are_of_users_with_all_their_rows(ranker: Ranker, encoder: Encoder) -> None:
    """The same rows said by fewer users are less certain; a plain loop over draws gives the same bounds."""
    encoded = encoder.encode(raw_rows(60, seed=7))
    few, many = (
        knock_out(ranker.model, Loader(encoder, encoded, 25).batches(), np.arange(60) % users) for users in (6, 60)
    )
    assert torch.allclose(few.rise, many.rise)
    assert (few.low <= few.rise).all()
    assert (few.rise <= few.high).all()
    single = [
        knock_out(ranker.model, Loader(encoder, encoded.slice(row, 1), 1).batches(), np.zeros(1)) for row in range(60)
    ]
    rises, drawn = np.stack([one.rise[0, 0].item() for one in single]), UserDraws.of(np.arange(60) % 6, DRAWS)
    counts = [drawn.counts[drawn.user, draw] for draw in range(1, DRAWS + 1)]
    by_draw = [np.average(rises, weights=count) for count in counts if count.any()]
    assert few.low[0, 0].item() == pytest.approx(np.quantile(by_draw, 0.025), abs=1e-6)
    assert few.high[0, 0].item() == pytest.approx(np.quantile(by_draw, 0.975), abs=1e-6)
