from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from recsys_moe.config import Task
from recsys_moe.losses import entire_space, log1mexp, loss_sums
from recsys_moe.model import ancestry

CLICK_BUY = (Task(name="click"), Task(name="buy", given="click"))


def means(logits, labels, mask, weight, tasks):
    sums, counts = loss_sums(logits, labels, mask, weight, tasks, ancestry(tasks))
    return (sums / counts).tolist()


def test_log1mexp_is_exact_at_both_ends_and_has_finite_gradients() -> None:
    x = torch.tensor([-1e-6, -1e-3, -0.5, -0.7, -5.0, -40.0], dtype=torch.float64, requires_grad=True)
    value = log1mexp(x)
    # log(1 - exp(x)) in extended precision
    exact = np.log(-np.expm1(x.detach().numpy().astype(np.longdouble))).astype(np.float64)
    assert value.detach().numpy() == pytest.approx(exact, rel=1e-9)
    edge = torch.tensor([0.0, -200.0], requires_grad=True)
    log1mexp(edge).sum().backward()
    assert edge.grad is not None
    assert edge.grad.isfinite().all()


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
