"""How experts are chosen, weighted and kept busy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recsys_moe.config import Experts, Feature, Gating, ModelConfig, Task
from recsys_moe.experts import ExpertLayout
from recsys_moe.gates import Gates, Routing, auxiliary_loss

INPUTS, SEGMENTS = 12, 3


def gates_of(gating: Gating, tasks: int = 2, **sizes: int) -> Gates:
    config = ModelConfig(
        features=(Feature(name="x", kind="numeric", side="user"),),
        tasks=tuple(Task(name=f"task {n}") for n in range(tasks)),
        experts=Experts(**{"shared": 1, "per_segment": 0, "routed": 8, "top_k": 2, **sizes}),
    )
    torch.manual_seed(0)
    gates = Gates(ExpertLayout.of(config, SEGMENTS), INPUTS, SEGMENTS, config.experts.top_k, gating)
    with torch.no_grad():
        gates.segment_embedding[1:].normal_()
        gates.offset.normal_()
    return gates


def route(gates: Gates, rows: int = 200) -> Routing:
    torch.manual_seed(1)
    return gates(torch.randn(rows, INPUTS), torch.arange(rows) % SEGMENTS)


def loads(routing: Routing, routed: int) -> Tensor:
    picked = torch.zeros(len(routing.chosen), 1, routed).scatter_(-1, routing.chosen.flatten(1).unsqueeze(1), 1.0)
    return picked.sum((0, 1)) / picked.sum()


def test_one_gate_for_all_tasks_chooses_and_weighs_alike() -> None:
    shared = route(gates_of(Gating(shared_gate=True)))
    assert torch.equal(shared.chosen[:, 0], shared.chosen[:, 1])
    assert torch.equal(shared.weights[:, 0], shared.weights[:, 1])
    own = route(gates_of(Gating(routing="task")))
    assert not torch.equal(own.chosen[:, 0], own.chosen[:, 1])


def test_a_rows_one_choice_is_of_the_highest_mean_and_weighed_by_each_tasks_gate() -> None:
    gates = gates_of(Gating(routing="example"))
    x, segment = torch.randn(50, INPUTS), torch.arange(50) % SEGMENTS
    mean = gates.logits(x, segment)[..., gates.layout.routed_slice].softmax(-1).mean(1)
    routing = gates(x, segment)
    expected = mean.topk(gates.top_k).indices.sort(-1).values
    for task in range(routing.chosen.shape[1]):
        assert torch.equal(routing.chosen[:, task].sort(-1).values, expected)
    assert not torch.allclose(routing.weights[:, 0], routing.weights[:, 1])


@pytest.mark.parametrize("balance", ["union", "task"])
def test_one_choice_has_one_bias(balance: str) -> None:
    gates = gates_of(Gating(routing="example", balance=balance))
    gates.balance(gates(torch.randn(50, INPUTS), torch.zeros(50, dtype=torch.int64)).chosen)
    assert gates.bias.shape == (1, gates.layout.routed)
    assert gates.bias.abs().sum() > 0


def test_with_one_gate_each_task_still_has_experts_of_its_own() -> None:
    routing = route(gates_of(Gating(shared_gate=True), per_task=1))
    assert (routing.experts[:, 0, 1] == 1).all()
    assert (routing.experts[:, 1, 1] == 2).all()


@pytest.mark.parametrize("top_k", [1, 2, 4, 5, 7])
def test_the_highest_are_chosen_whatever_k(top_k: int) -> None:
    gates = gates_of(Gating(), top_k=top_k)
    x = torch.randn(50, INPUTS)
    segment = torch.zeros(50, dtype=torch.int64)
    routed = gates.logits(x, segment)[..., gates.layout.routed_slice]
    expected = routed.topk(top_k, dim=-1).indices.sort(-1).values
    assert torch.equal(gates(x, segment).chosen.sort(-1).values, expected)


def test_without_renormalising_weights_are_shares_of_all_experts() -> None:
    gates = gates_of(Gating(renormalise=False), shared=0, top_k=1)
    x, segment = torch.randn(50, INPUTS), torch.ones(50, dtype=torch.int64)
    routing = gates(x, segment)
    best = gates.logits(x, segment).softmax(-1).max(-1)
    assert torch.allclose(routing.weights.squeeze(-1), best.values)
    routing.weights.sum().backward()
    assert gates.weight.grad.abs().sum() > 0  # a gate of top-1 learns only so


def test_without_renormalising_another_tasks_experts_take_no_share() -> None:
    gates = gates_of(Gating(renormalise=False), per_task=1, routed=2, top_k=2)
    assert torch.allclose(route(gates).weights.sum(-1), torch.ones(200, 2))


@pytest.mark.parametrize("renormalise", [True, False])
def test_sigmoid_scores(renormalise: bool) -> None:
    gates = gates_of(Gating(score="sigmoid", renormalise=renormalise), shared=0)
    x, segment = torch.randn(50, INPUTS), torch.ones(50, dtype=torch.int64)
    expected = gates.logits(x, segment).sigmoid().topk(2, dim=-1).values
    if renormalise:
        expected = expected / expected.sum(-1, keepdim=True)
    assert torch.allclose(gates(x, segment).weights, expected)


def test_sigmoid_scores_that_are_all_tiny_still_sum_to_1() -> None:
    gates = gates_of(Gating(score="sigmoid"), shared=0)
    with torch.no_grad():
        gates.offset -= 110.0
    assert torch.allclose(route(gates).weights.sum(-1), torch.ones(200, 2))


@pytest.mark.parametrize("balance", ["union", "task"])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_balance_evens_a_skewed_load(balance: str, score: str) -> None:
    gates = gates_of(Gating(balance=balance, score=score, balance_rate=0.1))
    with torch.no_grad():
        gates.offset.view(2, -1)[:, 1:] += torch.linspace(-2, 2, 8)

    def imbalance() -> float:
        routing = route(gates, 600)
        tasks = range(2) if balance == "task" else [slice(None)]
        chosen = [routing.chosen[:, t].view(600, -1).unsqueeze(1) for t in tasks]
        return max(float((loads(Routing(c, c, c, c), 8) - 1 / 8).abs().max()) for c in chosen)

    before = imbalance()
    for _ in range(100):
        gates.balance(route(gates, 600).chosen)
    assert gates.bias.shape == (2 if balance == "task" else 1, 8)
    assert imbalance() < 0.4 * before


def test_bias_takes_no_gradient_and_stays_as_it_is_without_a_rate() -> None:
    gates = gates_of(Gating(balance_rate=0.0))
    gates.balance(route(gates).chosen)
    assert not gates.bias.any()
    assert "bias" not in dict(gates.named_parameters())
    assert "bias" in gates.state_dict()


def test_auxiliary_loss_is_1_when_even_and_grows_with_the_skew() -> None:
    even = torch.arange(8).repeat(4)[:, None, None]
    assert float(auxiliary_loss(torch.zeros(32, 1, 8), even)) == pytest.approx(1.0)
    skewed = torch.zeros(32, 1, 8)
    skewed[..., 0] = 9.0
    assert float(auxiliary_loss(skewed, torch.zeros(32, 1, 1, dtype=torch.int64))) > 7.0


def test_auxiliary_loss_alone_evens_the_load() -> None:
    gates = gates_of(Gating(auxiliary_loss=1.0, z_loss=0.0, balance_rate=0.0), shared=0)
    with torch.no_grad():
        gates.offset.view(2, -1)[:] += torch.linspace(-2, 2, 8)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.02)
    before = loads(route(gates), 8).std()
    for _ in range(100):
        optimizer.zero_grad()
        route(gates).penalty.backward()
        optimizer.step()
    assert loads(route(gates), 8).std() < 0.3 * before


def test_penalties_are_for_training_only() -> None:
    gates = gates_of(Gating(auxiliary_loss=1.0, z_loss=1.0))
    assert float(route(gates).penalty.detach()) > 0
    assert float(route(gates.eval()).penalty) == 0.0


def test_dropout_leaves_experts_out_in_training_only() -> None:
    gates = gates_of(Gating(dropout=0.5))
    weights = route(gates).weights
    assert (weights == 0).any()
    assert torch.allclose(weights.sum(-1), torch.ones(200, 2))
    assert (route(gates.eval()).weights > 0).all()


def test_dense_warm_up_runs_all_experts_in_training_only() -> None:
    gates = gates_of(Gating())
    gates.all_chosen = True
    routing = route(gates)
    assert routing.chosen.shape == (200, 2, 8)
    assert torch.allclose(routing.weights.sum(-1), torch.ones(200, 2))
    gates.balance(routing.chosen)  # there was no choice to be balanced
    assert not gates.bias.any()
    assert route(gates.eval()).chosen.shape == (200, 2, 2)


def test_weights_over_all_experts_are_zero_where_one_does_not_run() -> None:
    gates = gates_of(Gating(), per_task=1, per_segment=1)
    routing = route(gates)
    dense = routing.over_experts(gates.layout.total)
    assert torch.allclose(dense.sum(-1), torch.ones(200, 2))
    assert int((dense > 0).sum()) == routing.weights.numel()
    assert torch.equal(dense.gather(-1, routing.experts), routing.weights)
