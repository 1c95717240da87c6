from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys_moe.config import Experts, Task
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError
from recsys_moe.loss_weights import GradNormWeights, Method, TaskWeights, UncertaintyWeights, last_shared
from recsys_moe.losses import loss_sums
from recsys_moe.model import RankingModel
from tests.recsys_moe.conftest import TASKS, model_config, raw_rows

METHODS: tuple[Method, ...] = ("static", "uncertainty", "gradnorm")
CPU = torch.device("cpu")
MIXED = (Task(name="click"), Task(name="seconds", kind="regression", weight=2.0), Task(name="like", weight=0.5))


def mean_losses(values: list[float]) -> Tensor:
    return torch.tensor(values, requires_grad=True)


def scalar_losses(shared: Tensor, scales: list[float]) -> Tensor:
    """Losses whose gradients at `shared` [D] have norms of exactly `scales`, each in a direction of its own."""
    directions = torch.eye(len(shared))[: len(scales)]
    return torch.tensor(scales) * (directions @ shared)


@torch.no_grad()
def descend(parameters: Iterable[nn.Parameter], rate: float) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter -= rate * parameter.grad
            parameter.grad = None


def test_static_weights_are_those_of_the_yaml() -> None:
    weights = TaskWeights.of(MIXED, "static", CPU)
    losses = mean_losses([0.5, 10.0, 0.1])
    total = weights.total(losses, None)
    total.backward()
    assert total.item() == pytest.approx(0.5 + 20.0 + 0.05)
    assert losses.grad is not None
    assert losses.grad.tolist() == [1.0, 2.0, 0.5]
    assert weights.current() == {"click": 1.0, "seconds": 2.0, "like": 0.5}


def kendall(losses: np.ndarray, s: np.ndarray) -> float:
    """The objective of Kendall et al. of MIXED, written out: log-loss / σ² + log σ, squared error / 2σ² + log σ."""
    click, seconds, like = losses / np.exp(s)
    return float(click + s[0] / 2 + 2.0 * (seconds / 2 + s[1] / 2) + 0.5 * (like + s[2] / 2))


def test_uncertainty_is_the_objective_of_kendall_with_its_gradients() -> None:
    weights = TaskWeights.of(MIXED, "uncertainty", CPU)
    assert isinstance(weights, UncertaintyWeights)
    weights.total(mean_losses([0.3, 100.0, 0.05]), None)  # the first batch sets where s starts
    losses, s = (
        np.array([0.4, 150.0, 0.02]),
        weights.log_variance.detach().double().numpy() + np.array([0.2, -0.1, 0.4]),
    )
    with torch.no_grad():
        weights.log_variance.copy_(torch.from_numpy(s))
    leaf = mean_losses(losses.tolist())
    total = weights.total(leaf, None)
    total.backward()
    assert total.item() == pytest.approx(kendall(losses, s), rel=1e-5)
    step = np.eye(3) * 1e-5
    by_s = [(kendall(losses, s + d) - kendall(losses, s - d)) / 2e-5 for d in step]
    by_loss = [(kendall(losses + d, s) - kendall(losses - d, s)) / 2e-5 for d in step]
    assert weights.log_variance.grad is not None
    assert weights.log_variance.grad.tolist() == pytest.approx(by_s, rel=1e-4, abs=1e-6)
    assert leaf.grad is not None
    assert leaf.grad.tolist() == pytest.approx(by_loss, rel=1e-4)
    assert list(weights.current().values()) == pytest.approx(by_loss, rel=1e-4)


def test_uncertainty_settles_where_a_task_counts_one_over_twice_its_loss() -> None:
    weights = TaskWeights.of(MIXED, "uncertainty", CPU)
    weights.total(mean_losses([0.5, 4.0, 0.1]), None)  # far from what comes
    for _ in range(60):
        weights.total(mean_losses([0.25, 8.0, 0.02]), None).backward()
        descend(weights.parameters(), 1.0)
    expected = np.array([1.0, 2.0, 0.5]) / (2 * np.array([0.25, 8.0, 0.02]))
    assert list(weights.current().values()) == pytest.approx(expected.tolist(), rel=1e-3)


def test_uncertainty_starts_at_its_best_values_for_the_first_batch() -> None:
    weights = TaskWeights.of(MIXED, "uncertainty", CPU)
    losses = mean_losses([0.3, 4e6, 0.05])
    weights.total(losses, None).backward()
    assert weights.current() == pytest.approx({"click": 1 / 0.6, "seconds": 2 / 8e6, "like": 0.5 / 0.1})
    assert isinstance(weights, UncertaintyWeights)
    assert weights.log_variance.grad is not None
    assert weights.log_variance.grad.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_gradnorm_brings_gradients_to_the_mean_times_the_relative_rate(alpha: float) -> None:
    weights = GradNormWeights([Task(name=name) for name in "abc"], CPU, alpha=alpha)
    shared = nn.Parameter(torch.ones(4))
    scales, first, left = [10.0, 1e4, 0.01], [20.0, 1e4, 0.01], np.array([0.5, 1.0, 1.0])
    weights.first_loss.copy_(torch.tensor(first))
    for _ in range(400):
        weights.total(scalar_losses(shared, scales), shared)
    pull = np.array(list(weights.current().values())) * scales
    wanted = (left / left.mean()) ** alpha
    assert pull / pull.mean() == pytest.approx(wanted / wanted.mean(), rel=1e-4)
    assert sum(weights.current().values()) == pytest.approx(3.0)


def test_gradnorm_is_there_with_the_first_batch_of_a_task() -> None:
    weights = GradNormWeights([Task(name=name) for name in "abc"], CPU)
    shared = nn.Parameter(torch.ones(3))
    losses = scalar_losses(shared, [1.0, 1e5, 1e7])
    total = weights.total(losses * torch.tensor([1.0, 1.0, 0.0]), shared)  # the third comes later
    a, b, _ = weights.current().values()
    assert a == pytest.approx(1e5 * b, rel=1e-4)
    assert total.item() < 5.0
    weights.total(losses, shared)
    a, b, c = weights.current().values()
    assert a == pytest.approx(1e5 * b, rel=1e-4)
    assert a == pytest.approx(1e7 * c, rel=1e-4)
    assert a + b + c == pytest.approx(3.0)


def test_a_tasks_weight_of_the_yaml_is_its_share_of_the_gradient() -> None:
    weights = GradNormWeights([Task(name="a", weight=3.0), Task(name="b")], CPU)
    shared = nn.Parameter(torch.ones(2))
    for _ in range(300):
        weights.total(scalar_losses(shared, [1.0, 50.0]), shared)
    a, b = weights.current().values()
    assert a * 1.0 == pytest.approx(3.0 * b * 50.0, rel=1e-4)


@pytest.mark.parametrize("how", METHODS)
def test_a_task_without_rows_changes_nothing_and_gives_no_nan(how: Method) -> None:
    tasks = [Task(name=name) for name in "abc"]
    weights = TaskWeights.of(tasks, how, CPU)
    shared = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(8, 3).bool()
    for absent in (False, True):
        mask[:, 1] = not absent
        seen = weights.current()["b"]
        weights.zero_grad()
        sums, counts = loss_sums(x @ shared, torch.zeros(8, 3), mask, torch.ones(8), tasks, torch.eye(3))
        weights.total(sums / counts.clamp(min=1e-12), shared).backward()
    assert shared.grad is not None
    assert shared.grad.isfinite().all()
    assert weights.current()["b"] == pytest.approx(seen, rel=1e-6)
    assert all(np.isfinite(value) for value in weights.current().values())
    assert all(parameter.grad is not None and parameter.grad[1] == 0.0 for parameter in weights.parameters())


@pytest.mark.parametrize("how", METHODS)
def test_a_state_that_was_put_back_goes_on_to_the_bit(how: Method) -> None:
    def train(weights: TaskWeights, shared: nn.Parameter, steps: range) -> None:
        for step in steps:
            losses = (scalar_losses(shared, [3.0, 40.0, 0.5]) + step).abs()
            weights.total(losses, shared).backward()
            descend((shared, *weights.parameters()), 0.01)

    whole, first, second = (TaskWeights.of(MIXED, how, CPU) for _ in range(3))
    undisturbed, resumed = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    train(whole, undisturbed, range(6))
    train(first, resumed, range(3))
    second.load_state_dict(first.state_dict())
    train(second, resumed, range(3, 6))
    assert second.current() == whole.current()
    assert torch.equal(undisturbed, resumed)


class _Written(torch.autograd.Function):
    """Stands for the fused kernel: what it would write to the tables happens in its `backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log: list[int]) -> Tensor:
        ctx.log = log
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.log.append(1)
        return grads[0], None


@pytest.mark.parametrize("experts", [{}, {"shared": 0, "per_segment": 0}, {"hidden": (8,)}, {"dispatch": "dense"}])
def test_gradnorm_on_the_model_writes_the_tables_once(encoder: Encoder, experts: dict[str, Any]) -> None:
    sizes = Experts(**(model_config().experts.model_dump() | {"dispatch": "sparse"} | experts))
    config = model_config(experts=sizes)
    written: list[int] = []
    embeddings = nn.EmbeddingBag(1, len(encoder.vocab_sizes) * config.embedding_dim)
    model = RankingModel(config, encoder.vocab_sizes, encoder.num_dense, encoder.num_segments, embeddings)
    batch = encoder.to_batch(encoder.encode(raw_rows(64)))
    pooled = _Written.apply(embeddings(torch.zeros(64, 1, dtype=torch.long)), written)  # type: ignore[no-untyped-call]
    logits, _ = model.forward_inputs(torch.cat([pooled, batch.dense], 1), batch.segment)
    sums, counts = loss_sums(logits, batch.labels, batch.label_mask, batch.weight, config.tasks, model.ancestry)
    weights, shared = TaskWeights.of(config.tasks, "gradnorm", CPU), last_shared(model)
    total = weights.total(sums / counts, shared)
    assert not written
    assert all(parameter.grad is None for parameter in model.parameters())
    assert weights.current()["click"] != 1.0
    total.backward()
    assert written == [1]
    assert shared is not None
    assert shared.grad is not None
    assert shared.grad.abs().sum() > 0


def test_the_last_shared_weights_are_those_of_shared_experts_else_of_routed_ones(encoder: Encoder) -> None:
    def model(**sizes: int) -> RankingModel:
        config = model_config(experts=Experts(per_segment=0, **sizes))
        return RankingModel(config, encoder.vocab_sizes, encoder.num_dense, 1, nn.Identity())

    both, routed, own = model(shared=1), model(shared=0), model(shared=0, routed=0, per_task=1)
    assert last_shared(both) is both.experts.always.weights[-1]
    assert last_shared(routed) is routed.experts.routed.weights[-1]
    assert last_shared(own) is None
    with pytest.raises(UserError, match=r"training\.loss_weights: gradnorm needs experts that tasks share"):
        TaskWeights.of(TASKS, "gradnorm", CPU).total(mean_losses([1.0, 1.0]), last_shared(own))


TRUTH = torch.tensor([[1.0, -1.0, 0.5, 0.0], [-0.5, 1.0, 1.0, 1.0]])


def left_of_losses(how: Method) -> tuple[float, float]:
    """Shares of two regressions' losses that are left after training; they share a layer, and one is 30 times wider.

    Plain descent with a clipped gradient: whoever has the larger one decides where it goes.
    """
    draw = torch.Generator().manual_seed(0)
    tasks = [Task(name="wide", kind="regression"), Task(name="narrow", kind="regression")]
    weights, scale = TaskWeights.of(tasks, how, CPU), torch.tensor([30.0, 1.0])
    x = torch.randn(256, 4, generator=draw)
    labels = (x @ TRUTH.T).tanh() * scale
    shared, heads = (nn.Parameter(torch.randn(4, 4, generator=draw) * 0.5) for _ in range(2))
    parameters = [shared, heads]
    for _ in range(400):
        losses = ((x @ shared).tanh() @ heads[:, :2] * scale - labels).square().mean(0)
        weights.total(losses, shared).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        descend(parameters, 0.05)
        descend(weights.parameters(), 0.02)
    wide, narrow = (losses.detach() / labels.square().mean(0)).tolist()
    return wide, narrow


def test_a_small_task_learns_beside_a_large_one_where_weights_are_balanced() -> None:
    static, uncertainty, gradnorm = (left_of_losses(how) for how in METHODS)
    assert static[1] > 0.2
    for balanced in (uncertainty, gradnorm):
        assert balanced[1] < 0.25 * static[1]
        assert balanced[0] < 0.1


TWO = """
import sys, json, torch
from torch import distributed as dist, nn
from recsys_moe.config import Task
from recsys_moe.loss_weights import TaskWeights
rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
draw = torch.Generator().manual_seed(0)
x, start, y = (torch.randn(*size, generator=draw) for size in ((10, 4), (4, 3), (10, 3)))
mine = slice(rank, None, world)
found = {}
for how in ("uncertainty", "gradnorm"):
    tasks = [Task(name=name, kind="regression") for name in "abc"]
    weights, shared = TaskWeights.of(tasks, how, torch.device("cpu")), nn.Parameter(start.clone())
    for _ in range(5):
        losses = ((x[mine] @ shared).tanh() * torch.tensor([1.0, 30.0, 0.1]) - y[mine]).square().sum(0) / len(x) * world
        weights.total(losses, shared).backward()
        grads = shared.grad / world
        dist.all_reduce(grads)
        with torch.no_grad():
            shared -= 0.01 * grads
            for parameter in weights.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        shared.grad = None
    found[how] = weights.current()
print(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_have_the_weights_of_one(tmp_path: Path) -> None:
    def start(rank: int, world: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", TWO, str(rank), str(world), str(tmp_path / f"store{world}")]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    ran = [start(0, 1), start(0, 2), start(1, 2)]
    one, first, second = (json.loads(process.communicate(timeout=100)[0]) for process in ran)
    assert first == second
    for how in ("uncertainty", "gradnorm"):
        assert first[how] == pytest.approx(one[how], rel=1e-4)
        assert len(set(one[how].values())) == 3
