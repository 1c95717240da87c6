"""Our step in the place of fbgemm's own: the same tables and sums after it, to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys_moe.training.row_wise_adagrad import step, use_own_kernel

SIZES, DIM, ROWS, STEPS = (3, 50, 4000), 8, 300, 4


@pytest.fixture
def theirs_and_ours() -> Iterator[Any]:
    """Switches from fbgemm's kernel to ours, and leaves ours as training does."""
    if use_own_kernel.cache_info().currsize:
        use_own_kernel()._destroy()
        use_own_kernel.cache_clear()
    yield use_own_kernel
    use_own_kernel()


def bags(seed: int, several: bool) -> tuple[Tensor, Tensor]:
    """Ids and offsets: one for each row, or none to three, with ids that come again and again."""
    draw = torch.Generator().manual_seed(seed)
    bags = len(SIZES) * ROWS
    lengths = torch.randint(0, 4, (bags,), generator=draw) if several else torch.ones(bags, dtype=torch.long)
    of_table = lengths.view(len(SIZES), ROWS).sum(1)
    values = torch.cat(
        [torch.randint(size, (int(n),), generator=draw) for size, n in zip(SIZES, of_table, strict=True)]
    )
    return values, torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def trained(several: bool) -> list[Tensor]:
    """What tables and their sums are after some steps."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(size, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU) for size in SIZES],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        pooling_mode=PoolingMode.SUM,
        learning_rate=0.1,
        eps=1e-8,
    )
    draw = torch.Generator().manual_seed(0)
    for weights in tables.split_embedding_weights():
        weights.copy_(torch.rand(weights.shape, generator=draw))
    for number in range(STEPS):
        pooled = tables(*bags(number, several))
        pooled.backward(torch.randn(pooled.shape, generator=draw))
    return [*tables.split_embedding_weights(), *(state[0] for state in tables.split_optimizer_states())]


@pytest.mark.parametrize("several", [False, True])
def test_it_is_the_step_of_fbgemm(theirs_and_ours: Any, several: bool) -> None:
    theirs = trained(several)
    theirs_and_ours()
    ours = trained(several)
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not any(torch.equal(one, torch.zeros_like(one)) for one in ours)


@pytest.mark.parametrize("ids", [[1, 1, 0], []])
def test_the_gradient_is_left_as_it_was(ids: list[int]) -> None:
    """Of one table alone no copy would be needed to bring features together. A batch may also have no id at all."""
    gradient, weights, sums = torch.ones(3, 4), torch.zeros(2 * 4), torch.zeros(2)
    offsets = torch.arange(4).clamp(max=len(ids))
    none, starts = torch.empty(0), torch.tensor([0, 2])
    step(
        gradient, weights, none, none, torch.tensor([0, 4]), 4, starts, 1, torch.tensor(ids, dtype=torch.int64),
        offsets, 0, None, False, sums, none, none, torch.tensor(0.1),
    )  # fmt: skip
    assert torch.equal(gradient, torch.ones(3, 4))
    assert sums.tolist() == ([1.0, 4.0] if ids else [0.0, 0.0])
    assert torch.equal(weights, torch.full((8,), -0.1 if ids else 0.0))


def test_threads_do_not_change_a_bit(theirs_and_ours: Any) -> None:
    theirs_and_ours()
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(trained(several=True))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
