"""The benchmark of the mixture's step: what it prints, and that both ways to compute all experts say the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import experts
from benchmarks.experts import Mixture, OneProductEach
from recsys_moe.errors import UserError


@pytest.mark.slow
def test_it_prints_one_line_with_the_ratios() -> None:
    command = [sys.executable, "-m", "benchmarks", "experts", "--json", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    for key in (
        "speedup_e16",
        "forward_backward_growth_8_to_64",
        "step_growth_8_to_64",
        "forward_growth_8_to_256",
        "fraction_of_peak",
    ):
        assert result[key] > 0
    assert result["experts_per_row"]["16"] == pytest.approx(3.75, abs=0.1)  # 16 (1 - (14 / 16)²)
    assert experts.table(result)


def test_no_rounds_is_a_users_error() -> None:
    with pytest.raises(UserError, match="--rounds"):
        experts.run(rounds=0)


def test_all_three_ways_to_compute_a_mixture_agree() -> None:
    torch.manual_seed(0)
    mixture, x = Mixture.of(16), torch.randn(64, experts.INPUTS)
    sparse = mixture._mixed(x)[0]
    mixture.bank.dispatch = "dense"
    assert torch.allclose(mixture._mixed(x)[0], sparse, atol=1e-5)
    mixture.bank.routed.__class__ = OneProductEach
    assert torch.allclose(mixture._mixed(x)[0], sparse, atol=1e-5)
