"""Sparse dispatch says what computing every expert says: outputs and gradients, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_moe import dispatch
from recsys_moe.config import Experts, Feature, ModelConfig, Task
from recsys_moe.dispatch import Plan, grouped_outer, grouped_product
from recsys_moe.experts import ExpertBank


def bank_of(tasks: int, sizes: Experts, inputs: int, segments: int) -> ExpertBank:
    """A bank with random weights everywhere, those that start at zero too, its padding left alone."""
    config = ModelConfig(
        features=(Feature(name="x", kind="numeric", side="user"),),
        tasks=tuple(Task(name=f"task {n}") for n in range(tasks)),
        experts=sizes,
    )
    bank = ExpertBank(config, inputs, segments).double()
    with torch.no_grad():
        for bias, wide in zip(bank.routed.biases, sizes.hidden[1:], strict=True):
            bias[..., :wide] = torch.randn_like(bias[..., :wide])
        for up, wide in zip(bank.segments.up if bank.segments is not None else (), sizes.hidden, strict=False):
            up[..., :wide] = torch.randn_like(up[..., :wide])
    return bank


def outputs_and_gradients(bank: ExpertBank, way: str, x: Tensor, segment: Tensor, weights: Tensor, chosen: Tensor):
    bank.dispatch = way
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    out = bank(x, segment, weights, chosen)
    toward = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    wanted = {"x": x, "weights": weights, **dict(bank.named_parameters())}
    grads = torch.autograd.grad((out * toward).sum(), tuple(wanted.values()), allow_unused=True)
    return {"output": out.detach(), **dict(zip(wanted, grads, strict=True))}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    routed = draw(st.integers(1, 12))
    sizes = Experts(
        shared=draw(st.integers(1, 2)),
        per_task=draw(st.integers(0, 1)),
        per_segment=draw(st.integers(0, 1)),
        routed=routed,
        top_k=draw(st.integers(1, routed)),
        hidden=tuple(draw(st.lists(st.integers(1, 19), min_size=1, max_size=3))),
        segment_rank=draw(st.integers(1, 9)),
    )
    return {
        "tasks": draw(st.integers(1, 4)),
        "sizes": sizes,
        "inputs": draw(st.integers(1, 21)),
        "segments": draw(st.integers(1, 5)),
        "rows": draw(st.sampled_from([0, 1, 2, 7, 40])),
        "popular": draw(st.integers(1, routed)),
        "seed": draw(st.integers(0, 2**31)),
    }


@settings(max_examples=150, deadline=None)
@given(cases())
@example({"tasks": 2, "sizes": Experts(routed=9, top_k=2, hidden=(5,)), "inputs": 3, "segments": 3, "rows": 0,
          "popular": 2, "seed": 0})  # fmt: skip
def test_sparse_equals_dense_and_masked(case: dict) -> None:
    """Choices fall on the first `popular` experts only, so that others stay empty."""
    torch.manual_seed(case["seed"])
    sizes, rows, tasks = case["sizes"], case["rows"], case["tasks"]
    bank = bank_of(tasks, sizes, case["inputs"], case["segments"])
    k = min(sizes.top_k, case["popular"])
    chosen = torch.rand(rows, tasks, case["popular"]).topk(k, dim=-1).indices
    slots = sizes.shared + sizes.per_task + k + (sizes.per_segment if case["segments"] > 1 else 0)
    weights = torch.rand(rows, tasks, slots, dtype=torch.float64).softmax(-1)
    x = torch.randn(rows, case["inputs"], dtype=torch.float64)
    segment = torch.randint(0, case["segments"], (rows,))
    dense = outputs_and_gradients(bank, "dense", x, segment, weights, chosen)
    sparse = outputs_and_gradients(bank, "sparse", x, segment, weights, chosen)
    for name, expected in dense.items():
        if expected is None or sparse[name] is None:  # a bank of no such experts
            assert not rows or (expected is None and sparse[name] is None), name
            continue
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        assert torch.allclose(sparse[name], expected, rtol=1e-6, atol=1e-6 * scale), name


def test_padding_gets_no_gradient() -> None:
    torch.manual_seed(0)
    bank = bank_of(2, Experts(shared=1, per_segment=1, routed=5, top_k=2, hidden=(5, 3)), 11, 3)
    chosen = torch.rand(30, 2, 5).topk(2).indices
    weights = torch.rand(30, 2, 4, dtype=torch.float64)
    found = outputs_and_gradients(bank, "sparse", torch.randn(30, 11).double(), torch.arange(30) % 3, weights, chosen)
    assert found["output"].shape == (30, 2, 3)
    for group in ("always", "routed"):
        assert not found[f"{group}.weights.0"][:, 12:].any()  # 11 inputs and the biases
        assert not found[f"{group}.weights.0"][..., 5:].any()
        assert not found[f"{group}.biases.0"][..., 3:].any()
        assert not found[f"{group}.weights.1"][:, 5:].any()
        assert not found[f"{group}.weights.1"][..., 3:].any()
        assert found[f"{group}.weights.1"].any()


def test_a_pair_that_two_tasks_chose_is_planned_once() -> None:
    plan = Plan.of(torch.tensor([[[2, 0], [0, 1]], [[2, 1], [2, 1]]]), 4)
    assert list(zip(plan.expert.tolist(), plan.row.tolist(), strict=True)) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert plan.ends.tolist() == [1, 3, 5, 5]
    assert plan.position.tolist() == [[[3, 0], [0, 1]], [[4, 2], [4, 2]]]


@pytest.mark.parametrize("counts", [[3, 0, 13, 1], [0, 0, 0, 0], [0, 5, 0, 0]])
def test_the_native_product_and_the_fallback_agree(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows, ends = sum(counts), torch.tensor(counts).cumsum(0).to(torch.int32)
    left, right = torch.randn(rows, 16), torch.randn(rows, 24)
    weights = torch.randn(4, 16, 24)
    native = grouped_product(left, weights, ends), grouped_outer(left, right, ends)
    monkeypatch.setattr(dispatch, "_has_native", lambda *_: False)
    assert torch.allclose(native[0], grouped_product(left, weights, ends), atol=1e-5)
    assert torch.allclose(native[1], grouped_outer(left, right, ends), atol=1e-5)


def test_auto_takes_the_quicker_way() -> None:
    assert bank_of(2, Experts(routed=4, top_k=2, hidden=(8,)), 8, 1).settle_dispatch(64, 2, 2) == "dense"  # 1 of 4 idle
    assert bank_of(2, Experts(routed=0, hidden=(8,)), 8, 1).settle_dispatch(64, 2, 2) == "dense"
    many = bank_of(1, Experts(routed=64, top_k=1, hidden=(64, 32)), 64, 1).float()
    before = [parameter.clone() for parameter in many.parameters()]
    assert many.settle_dispatch(1024, 1, 1) == many.dispatch == "sparse"
    assert all(torch.equal(a, b) for a, b in zip(before, many.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in many.parameters())
    for way in ("dense", "sparse"):
        assert bank_of(1, Experts(dispatch=way), 8, 1).settle_dispatch(64, 2, 2) == way


@pytest.mark.parametrize(("dense", "chosen"), [(0.6, "dense"), (0.9, "sparse"), (2.0, "sparse")])
def test_auto_takes_dense_only_if_it_is_clearly_quicker(
    dense: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = bank_of(2, Experts(routed=16, top_k=2, hidden=(8,)), 8, 1)
    monkeypatch.setattr(ExpertBank, "_seconds", lambda self, way, *_: {"sparse": 1.0, "dense": dense}[way])
    assert bank.settle_dispatch(64, 2, 2) == chosen
