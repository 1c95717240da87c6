"""The benchmark of scoring: its arithmetic, and that it scores what it says."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import scoring, training
from benchmarks.peers.workload import Workload
from benchmarks.scorer import Scoring, Sizes
from recsys_moe.errors import UserError

TINY = Workload(experts=4, rows=64, vocabularies=(50, 200), dim=8, num_dense=2, hidden=(16, 8), towers=(8,), steps=2)
SMALL = Sizes(users=6, items=40, candidates=20, top_n=3, rows=60, repeats=1, peak=8, products=1)


def test_ratios_are_of_rates() -> None:
    sizes, theirs = Sizes(), Workload(experts=8, steps=24)
    seconds = {
        "ours": {"factorised": 5.0, "factorised bf16": 2.5, "forward": 2.0, "dense": 3.0, "peak": 2.0},
        "torch-rechub": {"predict": 4.0},
        "deepctr-torch": {"predict": 2.4},
    }
    about = {
        "experts_per_row": 3.75,
        "largest_error_bf16": 0.01,
        "spread_of_logits": 0.4,
        "kept_of_top_10_in_bf16": 1.0,
    }
    result = scoring.result(Workload(experts=16), theirs, sizes, seconds, about)
    assert result["pairs_per_second"] == 200_000
    assert result["speedup_vs_dense"] == pytest.approx(200_000 / (6 * 12_288 / 3))
    assert result["speedup_vs_forward"] == pytest.approx(200_000 / (12 * 12_288 / 2))
    assert result["speedup_vs_best_peer"] == pytest.approx(200_000 / (24 * 4096 / 2.4))
    assert result["speedup_vs_best_peer_bf16"] == pytest.approx(2 * result["speedup_vs_best_peer"])
    tables = 7_000 * 16 * (165 * 256 + 165 * 2)  # of a row the inputs of its own side
    pairs = 1_000_000 * (3.75 * 256 * 128 + 2 * (128 * 64 + 64))
    peak = 20 * 2 * 2048**3 / 2.0
    assert result["fraction_of_peak"] == pytest.approx(2 * (tables + pairs) / 5.0 / peak)
    assert "times the quickest peer" in scoring.table(result)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_measures_run_and_scores_are_those_of_the_forward_pass() -> None:
    scored = Scoring(TINY, SMALL)
    for make in scored.measures().values():
        make()()
    said = scored.errors()
    assert said["largest_error_fp32"] < 1e-4 < said["largest_error_bf16"] < 0.1
    assert said["kept_of_top_10_in_bf16"] > 0.8
    assert 2 <= scored.experts_per_row() <= 4


def test_candidates_are_distinct_and_each_users_own() -> None:
    candidates = Scoring(TINY, SMALL).candidates
    assert candidates.shape == (6, 20)
    assert all(len(np.unique(row)) == 20 for row in candidates)
    assert len(np.unique(np.sort(candidates), axis=0)) == 6


def test_what_cannot_be_measured_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--rounds"):
        scoring.run(rounds=0)
    monkeypatch.setattr(training, "PEERS_PYTHON", training.ROOT / "nowhere")
    with pytest.raises(UserError, match="make bench-peers"):
        scoring.run()
