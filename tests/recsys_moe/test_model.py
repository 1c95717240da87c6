from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import Experts, Gating, Task
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError
from recsys_moe.experts import ExpertLayout, with_one
from recsys_moe.model import Towers, ancestry
from recsys_moe.presets import PRESETS, with_preset
from tests.recsys_moe.conftest import model_config


def test_the_model_is_the_formula_of_a_gated_mixture(ranker: Ranker, encoder: Encoder, rows: pa.Table) -> None:
    """A second, plain computation in float64, row by row and expert by expert, after the gates."""
    model = ranker.model.double()
    batch = encoder.to_batch(encoder.encode(rows.slice(0, 6)))
    x, bank, towers, layout = model.inputs(batch).double(), model.experts, model.towers, model.experts.layout
    logits, routing = model.forward_inputs(x, batch.segment)
    weights = routing.over_experts(layout.total)
    stacks = [torch.cat(both) for both in zip(bank.always.weights, bank.routed.weights, strict=True)]
    offsets = [torch.zeros(len(stacks[0]), 1, 1)]  # the first layer's are in its weights
    offsets += [torch.cat(both) for both in zip(bank.always.biases, bank.routed.biases, strict=True)]
    x = with_one(x)
    for b in range(6):
        outputs = []
        for e in range(layout.num_plain):
            hidden = x[b]
            for weight, bias in zip(stacks, offsets, strict=True):
                hidden = (hidden @ weight[e] + bias[e, 0]).relu()
            outputs.append(hidden)
        hidden, s = x[b], int(batch.segment[b])
        for layer, (weight, bias) in enumerate(zip(stacks, offsets, strict=True)):
            change = bank.segments.down[layer][s] @ bank.segments.up[layer][s]
            hidden = (hidden @ (weight[0] + change) + bias[0, 0]).relu()
        stacked = torch.stack([*outputs, hidden])
        for t in range(2):
            top = weights[b, t] @ stacked
            for layer, (weight, bias) in enumerate(zip(towers.weights, towers.biases, strict=True)):
                top = top @ weight[t] + bias[t, 0]
                top = top.relu() if layer == 0 else top
            assert float(logits[b, t]) == pytest.approx(float(top), rel=1e-9)


def test_gates_see_their_own_tasks_experts_and_the_chosen_ones_only(
    ranker: Ranker, encoder: Encoder, rows: pa.Table
) -> None:
    _, routing = ranker.model(encoder.to_batch(encoder.encode(rows)))
    # shared 0 1, click 0, buy 0, routed 0 1 2 3, segment
    weights = routing.over_experts(ranker.model.experts.layout.total)
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:2]))
    assert not weights[:, 0, 3].any()
    assert not weights[:, 1, 2].any()
    assert (weights[:, 0, 2] > 0).all()
    chosen = torch.zeros_like(weights[..., 4:8], dtype=torch.bool).scatter(-1, routing.chosen, True)
    assert (chosen.sum(-1) == 2).all()
    assert torch.equal(weights[..., 4:8] > 0, chosen)


def test_the_unknown_segment_is_shared_expert_0(ranker: Ranker) -> None:
    always, segments = ranker.model.experts.always, ranker.model.experts.segments
    x, unknown = with_one(torch.randn(5, ranker.model.input_dim)), torch.zeros(5, dtype=torch.int64)
    assert torch.allclose(segments(x, unknown, always), always(x)[0], atol=1e-6)
    assert not torch.allclose(segments(x, unknown + 1, always), always(x)[0], atol=1e-3)


def test_rows_go_through_their_own_segment_in_any_order(ranker: Ranker) -> None:
    always, segments = ranker.model.experts.always, ranker.model.experts.segments
    x, segment = with_one(torch.randn(40, ranker.model.input_dim)), torch.randint(0, 4, (40,))
    together = segments(x, segment, always)
    alone = torch.cat([segments(x[n : n + 1], segment[n : n + 1], always) for n in range(40)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_bias_changes_the_choice_but_not_the_weights(ranker: Ranker) -> None:
    gates = ranker.model.gates
    x, segment = torch.randn(50, ranker.model.input_dim), torch.ones(50, dtype=torch.int64)
    before = gates(x, segment)
    gates.bias += torch.tensor([5.0, 0.0, 0.0, 0.0])
    after = gates(x, segment)
    assert (after.chosen == 0).any(-1).all()
    same = (before.chosen.sort().values == after.chosen.sort().values).all(-1)
    assert same.any()
    assert not same.all()
    total = ranker.model.experts.layout.total
    assert torch.allclose(before.over_experts(total)[same], after.over_experts(total)[same])


def test_segment_parts_decay_also_for_segments_that_are_not_there(ranker: Ranker) -> None:
    gates, bank = ranker.model.gates, ranker.model.experts
    embedding, up = gates.segment_embedding.clone(), bank.segments.up[0].clone()
    gates.decay_segments(0.5)
    bank.decay_segments(0.5)
    assert torch.equal(gates.segment_embedding, embedding / 2)
    assert torch.equal(bank.segments.up[0], up / 2)


@pytest.mark.parametrize("preset", PRESETS)
def test_published_mixtures_are_settings(preset: str, rows: pa.Table) -> None:
    sizes = with_preset({"preset": preset, "experts": {"hidden": (8, 6)}})
    config = model_config(experts=Experts(**sizes["experts"]), gates=Gating(**sizes.get("gates", {})))
    encoder = Encoder.fit(config, rows.to_batches())
    logits, routing = empty_model(encoder)(encoder.to_batch(encoder.encode(rows.slice(0, 7))))
    assert logits.shape == (7, 2)
    assert logits.isfinite().all()
    layout = ExpertLayout.of(encoder.config, encoder.num_segments)
    assert int(routing.experts.max()) < layout.total
    assert len(layout.names(("click", "buy"))) == layout.total


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (Experts(shared=0, per_segment=1), "per_segment needs shared"),
        (Experts(routed=1, top_k=2), "top_k: 2 of 1"),
        (Experts(shared=0, per_segment=0, routed=0), "at least one"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(experts: Experts, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExpertLayout.of(model_config(experts=experts), 3)


@pytest.mark.parametrize(
    "tasks",
    [
        (Task(name="buy", given="click"), Task(name="click")),
        (Task(name="buy", given="buy"),),
        (Task(name="time", kind="regression"), Task(name="buy", given="time")),
    ],
)
def test_given_must_name_a_binary_task_before(tasks: tuple[Task, ...]) -> None:
    with pytest.raises(UserError, match="given"):
        ancestry(tasks)


def test_given_tasks_are_served_as_products(ranker: Ranker) -> None:
    tasks = (Task(name="click"), Task(name="cart", given="click"), Task(name="buy", given="cart"))
    ranker.model.ancestry = ancestry(tasks)
    ranker.model.config = ranker.config.model_copy(update={"tasks": tasks})
    logits = torch.randn(20, 3)
    expected = np.cumprod(1 / (1 + np.exp(-logits.double().numpy())), axis=1)
    assert ranker.model.probabilities(logits).numpy() == pytest.approx(expected, rel=1e-5)


def test_a_regression_is_served_as_it_is(ranker: Ranker) -> None:
    tasks = (Task(name="click"), Task(name="time", kind="regression"))
    ranker.model.ancestry = ancestry(tasks)
    ranker.model.config = ranker.config.model_copy(update={"tasks": tasks})
    assert ranker.model.probabilities(torch.tensor([[0.0, 7.5]])).tolist() == [[0.5, 7.5]]


def test_towers_start_at_the_tasks_means() -> None:
    towers = Towers(3, (4, 1))
    for weight in towers.weights:
        nn.init.zeros_(weight)
    tasks = (Task(name="click"), Task(name="rare"), Task(name="time", kind="regression"))
    towers.start_at(tasks, {"click": 0.4, "rare": 0.01, "time": 3.0})
    click, rare, time = towers(torch.randn(2, 3, 4))[0].detach()
    assert float(click.sigmoid()) == pytest.approx(0.4)
    assert float(rare.sigmoid()) == pytest.approx(0.01)
    assert float(time) == pytest.approx(3.0)
