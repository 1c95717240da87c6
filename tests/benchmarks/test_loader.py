"""The benchmark of the loader: what it prints, and that both trainings are of the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import loader
from pipelines.tables import Tables
from recsys_moe.encoding import EncodedRows
from recsys_moe.errors import UserError


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_small_log_is_measured(tmp_path: Path) -> None:
    result = loader.run(rows=5_000, few=5_000, many=6_000, rounds=1, folder=tmp_path)
    assert result["loader_efficiency"] > 0
    assert 0.5 < result["peak_growth"] < 1.5
    assert result["peak_mb_5000"] > 0
    assert loader.table(result)
    assert not list(tmp_path.iterdir())


def test_the_batches_in_memory_are_those_of_the_loader(tmp_path: Path) -> None:
    loader._fill(Tables(tmp_path), 5_001)
    tables = loader.FromTables(str(tmp_path), loader.TINY)
    encoder, made = tables.prepared()
    assert made.num_rows == 5_001
    memory = loader.FromMemory(encoder, EncodedRows.open(tables.scratch))
    assert memory.steps == made.steps == 2
    for left, right in zip(memory.batches(), made.batches(), strict=True):
        assert torch.equal(left.values, right.values)
        assert torch.equal(left.row, right.row)


@pytest.mark.parametrize("options", [{"rows": 5}, {"few": 0}, {"many": 9}, {"rounds": 0}])
def test_too_little_to_measure_is_a_users_error(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="--rounds"):
        loader.run(**options)
