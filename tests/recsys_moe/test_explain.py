from __future__ import annotations

import pytest
import torch

from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import Experts, Gating
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.explain import Explanation, Reference, explain, gate_strengths
from tests.recsys_moe.conftest import FEATURES, model_config, raw_rows


def explained(ranker: Ranker, rows: int = 1) -> Explanation:
    """The first of some rows, against others."""
    encoder, model = ranker.encoder, ranker.model
    reference = Reference.of(model, Loader(encoder, encoder.encode(raw_rows(300, seed=4)), 128).batches())
    batch = encoder.to_batch(encoder.encode(raw_rows(rows, seed=9)))
    return explain(model, model.inputs(batch), batch.segment, reference)


def differences(ranker: Ranker, rows: int = 1) -> torch.Tensor:
    """[T, E] each expert's mean logit less the mean of the others that the task's gate sees, by a plain loop."""
    encoder, model = ranker.encoder, ranker.model
    batch = encoder.to_batch(encoder.encode(raw_rows(rows, seed=9)))
    layout = model.experts.layout
    logits = model.gates.logits(model.inputs(batch), batch.segment).double().mean(0).expand(layout.num_tasks, -1)
    names = layout.names(("click", "buy"))
    out = torch.full((2, layout.total), torch.nan, dtype=torch.float64)
    for task, other in enumerate(("buy", "click")):
        seen = [expert for expert in range(layout.total) if not names[expert].startswith(other)]
        for expert in seen:
            rest = [logits[task, one] for one in seen if one != expert]
            out[task, expert] = logits[task, expert] - sum(rest) / len(rest)
    return out


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("gating", [Gating(), Gating(routing="example"), Gating(shared_gate=True)])
def test_what_features_add_sums_to_the_logits(gating: Gating, count: int) -> None:
    encoder = Encoder.fit(model_config(gates=gating), raw_rows(300).to_batches())
    torch.manual_seed(3)
    model = empty_model(encoder)
    with torch.no_grad():
        model.gates.segment_embedding[1:].normal_()
        model.gates.offset.normal_()
    ranker = Ranker(encoder, model.eval())
    found = explained(ranker, count)
    assert found.added.shape == (2, len(FEATURES) + 1, 9)
    total = found.at_average + found.added.sum(1)
    assert torch.allclose(total, differences(ranker, count), atol=1e-5, equal_nan=True)


def test_weights_and_predictions_are_the_models(ranker: Ranker) -> None:
    found = explained(ranker, rows=50)
    batch = ranker.encoder.to_batch(ranker.encoder.encode(raw_rows(50, seed=9)))
    logits, routing = ranker.model(batch)
    assert torch.allclose(found.weights, routing.over_experts(9).double().mean(0))
    assert torch.allclose(found.predictions, ranker.model.probabilities(logits).double().mean(0))


def test_the_average_row_has_nothing_to_explain(ranker: Ranker) -> None:
    encoder, model = ranker.encoder, ranker.model
    encoded = encoder.encode(raw_rows(200))
    batch = encoder.to_batch(encoded)
    reference = Reference.of(model, Loader(encoder, encoded, 64).batches())
    found = explain(model, model.inputs(batch), batch.segment, reference)
    assert float(found.added.nan_to_num().abs().max()) < 1e-6


def test_a_feature_that_the_gate_reads_alone_moved_it_most(ranker: Ranker) -> None:
    gates, price = ranker.model.gates, 5 * 4  # behind five sparse features of four columns each
    gates.weight.zero_()
    gates.segment_weight.zero_()
    gates.weight[price, [4, 9 + 4]] = 2.0  # routed 0 of both tasks
    gates.offset.zero_()
    gates.offset[[4, 9 + 4]] = 3.0
    found = explained(ranker)
    feature, expert, added = found.most_moved(0)[0]
    assert (feature, expert) == ("price", "routed 0")
    assert added == pytest.approx(float(found.added[0, 5, 4]))
    assert [size for _, _, size in found.most_moved(0)[1:]] == [0.0] * len(FEATURES)


def test_one_expert_leaves_nothing_to_explain() -> None:
    config = model_config(experts=Experts(shared=1, per_segment=0, routed=0, hidden=(8,)))
    encoder = Encoder.fit(config, raw_rows(300).to_batches())
    found = explained(Ranker(encoder, empty_model(encoder)))
    assert found.weights.tolist() == [[1.0], [1.0]]
    assert found.most_moved(0) == []


def test_strengths_are_the_typical_size_of_what_features_add(ranker: Ranker) -> None:
    """Against the explanations of single rows, whose mean square is taken by a plain loop."""
    encoder, model = ranker.encoder, ranker.model
    batch = encoder.to_batch(encoder.encode(raw_rows(40, seed=9)))
    x, segment = model.inputs(batch), batch.segment
    segments = segment.bincount(minlength=len(model.gates.segment_embedding)).double() / len(segment)
    average = Reference(x.double().mean(0), segments)
    rows = [explain(model, x[row : row + 1], segment[row : row + 1], average) for row in range(len(x))]
    sizes = torch.stack([row.added for row in rows]).square().mean(0).sqrt().nan_to_num()
    weights = torch.stack([row.weights for row in rows]).mean(0)
    expected = torch.einsum("tfe,te->tf", sizes, weights) / weights.sum(1, keepdim=True)
    found = gate_strengths(model, x, segment)
    assert found.shape == (2, len(FEATURES) + 1)
    assert torch.allclose(found, expected, rtol=1e-4)
    assert (found > 0).all()


def test_a_gate_that_sees_one_expert_is_moved_by_nothing() -> None:
    config = model_config(experts=Experts(shared=1, per_task=0, per_segment=0, routed=0, hidden=(8,)))
    encoder = Encoder.fit(config, raw_rows(100).to_batches())
    model = empty_model(encoder)
    batch = encoder.to_batch(encoder.encode(raw_rows(20)))
    assert (gate_strengths(model, model.inputs(batch), batch.segment) == 0).all()
