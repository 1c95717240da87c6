from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from recsys_moe.config import Task
from recsys_moe.losses import entire_space, loss_sums
from recsys_moe.model import ancestry

CLICK_BUY = (Task(name="click"), Task(name="buy", given="click"))


def means(logits, labels, mask, weight, tasks):
    sums, counts = loss_sums(logits, labels, mask, weight, tasks, ancestry(tasks))
    return (sums / counts).tolist()


CHAIN = (*CLICK_BUY, Task(name="keep", given="buy"))


def exact_chain_loss(logits: np.ndarray, label: float) -> float:
    """The loss of the last task of CHAIN with mpmath's 60 digits, from the definition alone."""
    with mpmath.workdps(60):
        p = mpmath.fprod(1 / (1 + mpmath.exp(-mpmath.mpf(float(logit)))) for logit in logits)
        return float(-label * mpmath.log(p) - (1 - label) * mpmath.log(1 - p))


@pytest.mark.parametrize("label", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "row", [(0.3, -0.2, 1.0), (17.0, 18.0, 20.0), (60.0, 60.0, 60.0), (-60.0, 40.0, 2.0), (25.0, -40.0, 30.0)]
)
def test_a_task_given_of_given_is_exact_for_all_logits_with_its_gradient(row: tuple[float, ...], label: float) -> None:
    logits = torch.tensor([row], requires_grad=True)
    labels = torch.tensor([[1.0, 1.0, label]])
    sums, _ = loss_sums(logits, labels, torch.ones(1, 3).bool(), torch.ones(1), CHAIN, ancestry(CHAIN))
    sums[2].backward()
    assert sums[2].item() == pytest.approx(exact_chain_loss(np.array(row), label), rel=1e-5)
    step = np.eye(3) * 1e-6
    slopes = [(exact_chain_loss(row + d, label) - exact_chain_loss(row - d, label)) / 2e-6 for d in step]
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx(slopes, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_of_full_precision_under_autocast(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(500, 3, generator=rng), torch.randint(0, 2, (500, 3), generator=rng).float()
    given = (labels, torch.ones(500, 3).bool(), torch.ones(500), CHAIN, ancestry(CHAIN))
    expected = loss_sums(logits.to(dtype).float(), *given)[0]
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(loss_sums(logits.to(dtype), *given)[0], expected)


def test_rows_that_are_masked_or_weigh_nothing_have_no_say() -> None:
    logits = torch.tensor([[1e30, -1e30, 5.0], [0.1, 0.2, 0.3]], requires_grad=True)
    labels, ones = torch.zeros(2, 3), torch.ones(2, 3).bool()
    for mask, weight in ((ones & torch.tensor([[False], [True]]), torch.ones(2)), (ones, torch.tensor([0.0, 1.0]))):
        logits.grad = None
        sums, counts = loss_sums(logits, labels, mask, weight, CHAIN, ancestry(CHAIN))
        alone, _ = loss_sums(logits[1:], labels[1:], ones[1:], weight[1:], CHAIN, ancestry(CHAIN))
        (sums / counts).sum().backward()
        assert torch.equal(sums, alone)
        assert counts.tolist() == [1.0, 1.0, 1.0]
        assert logits.grad is not None
        assert logits.grad[0].tolist() == [0.0, 0.0, 0.0]
    sums, counts = loss_sums(logits, labels, torch.zeros(2, 3).bool(), torch.ones(2), CHAIN, ancestry(CHAIN))
    assert sums.tolist() == counts.tolist() == [0.0, 0.0, 0.0]


def test_masked_weighted_log_loss_is_that_of_scikit_learn() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 1, generator=rng)
    labels = torch.randint(0, 2, (200, 1), generator=rng).float()
    mask, weight = torch.rand(200, 1, generator=rng) < 0.7, torch.rand(200, generator=rng)
    kept = mask[:, 0].numpy()
    expected = log_loss(labels[kept, 0], logits.sigmoid()[kept, 0], sample_weight=weight[kept])
    assert means(logits, labels, mask, weight, (Task(name="click"),)) == pytest.approx([expected], rel=1e-5)


def test_a_given_task_has_the_loss_of_the_product_over_the_entire_space() -> None:
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(100, 2, generator=rng) * 3
    click = torch.randint(0, 2, (100,), generator=rng).float()
    buy = torch.randint(0, 2, (100,), generator=rng).float() * click
    labels, mask = torch.stack([click, buy], 1), torch.stack([torch.ones(100), click], 1).bool()
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    expected = [log_loss(click, p[:, 0]), log_loss(buy, p[:, 0] * p[:, 1])]
    assert means(logits, labels, mask, torch.ones(100), CLICK_BUY) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extreme_logits_keep_losses_and_gradients_finite(sign: float) -> None:
    logits = torch.full((4, 2), sign * 60.0, requires_grad=True)
    labels = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    sums, _ = loss_sums(logits, labels, torch.ones(4, 2).bool(), torch.ones(4), CLICK_BUY, ancestry(CLICK_BUY))
    sums.sum().backward()
    assert logits.grad is not None
    assert sums.isfinite().all()
    assert logits.grad.isfinite().all()


def test_the_entire_space_knows_that_nothing_follows_a_parent_that_did_not_happen() -> None:
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 0], [1, 1], [0, 1]]).bool()
    targets, defined = entire_space(labels, mask, CLICK_BUY)
    assert targets[:, 1].tolist() == [1, 0, 0, 0, 0, 0]
    assert defined[:, 1].tolist() == [True, True, False, True, True, False]


def test_a_label_between_0_and_1_is_a_probability() -> None:
    labels = torch.tensor([[0.5, 0.5, 1.0], [0.5, 0.0, 0.0], [1.0, 0.5, 0.5]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool()
    targets, defined = entire_space(labels, mask, CHAIN)
    assert targets.tolist() == [[0.5, 0.25, 0.25], [0.5, 0.0, 0.0], [1.0, 0.5, 0.25]]
    assert defined.tolist() == [[True, True, True], [True, False, False], [True, True, True]]


def test_what_follows_a_parent_that_is_not_known_is_not_known_down_the_chain() -> None:
    labels = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    mask = torch.tensor([[0, 1, 1], [1, 0, 1], [1, 0, 0], [1, 1, 0]]).bool()
    targets, defined = entire_space(labels, mask, CHAIN)
    assert defined.tolist() == [[False] * 3, [True, False, False], [True] * 3, [True] * 3]
    assert targets[:, 2].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_regression_has_squared_error() -> None:
    task = (Task(name="time", kind="regression"),)
    found = means(
        torch.tensor([[2.0], [5.0]]), torch.tensor([[1.0], [1.0]]), torch.ones(2, 1).bool(), torch.ones(2), task
    )
    assert found == pytest.approx([(1 + 16) / 2])


def test_a_row_of_weight_2_is_the_row_twice_in_loss_and_gradients() -> None:
    tasks = (*CLICK_BUY, Task(name="time", kind="regression"))
    rng = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(5, 3, generator=rng), torch.randint(0, 2, (5, 3), generator=rng).float()
    mask = torch.rand(5, 3, generator=rng) < 0.8
    twice = torch.tensor([0, 1, 2, 2, 3, 4, 4])
    weighted, repeated = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = loss_sums(weighted, labels, mask, torch.tensor([1.0, 1, 2, 1, 2]), tasks, ancestry(tasks))
    expected = loss_sums(repeated[twice], labels[twice], mask[twice], torch.ones(7), tasks, ancestry(tasks))
    for (sums, counts), leaf in ((found, weighted), (expected, repeated)):
        (sums / counts).sum().backward()
        assert leaf.grad is not None
    assert torch.allclose(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert torch.allclose(weighted.grad, repeated.grad)
