"""The benchmark beside other libraries: its arithmetic, and that what it measures trains what it says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from benchmarks import training
from benchmarks.contest import Contestant, in_turns, started
from benchmarks.peers import PEERS
from benchmarks.peers.workload import Rows, Workload
from benchmarks.product import MODELS, batches, encoder, model_config
from recsys_moe.errors import UserError

TINY = Workload(experts=4, rows=64, vocabularies=(50, 200), dim=8, num_dense=2, hidden=(16, 8), towers=(8,), steps=2)
needs_peers = pytest.mark.skipif(
    not training.PEERS_PYTHON.exists(), reason="no .venv-peers; `make bench-peers` makes it"
)


def test_ratios_are_to_the_quicker_bare_step_of_a_peer() -> None:
    ours = {8: 2.0, 16: 1.0, 64: 0.5}
    seconds = {
        experts: {
            **{kind: {"step": taken * (1 + number)} for number, kind in enumerate(training.OURS[experts])},
            "torch-rechub": {"step": 4.0, "loop": 0.1},
            "deepctr-torch": {"step": 3.0, "loop": 0.2},
        }
        for experts, taken in ours.items()
    }
    sizes = Workload(experts=0, steps=3)
    per_row = {
        8: {"dense": 8.0},
        16: {"sparse": 2.0, "sparse_by_task": 3.7},
        64: {"sparse": 2.0, "sparse_by_task": 3.9},
    }
    result = training.result(sizes, seconds, per_row, peak=1e11)
    assert result["dense_vs_best_peer"] == 1.5
    assert result["sparse16_vs_best_peer"] == 3.0
    assert result["sparse64_vs_best_peer"] == 6.0
    assert result["sparse64_by_task_vs_best_peer"] == 3.0
    assert result["samples_per_second"]["torch-rechub step 8"] == 3 * 4096 / 4.0
    multiplications = 8 * (330 * 256 + 256 * 128) + 2 * (330 * 8 + 128 * 64 + 64)
    assert result["fractions_of_peak"]["dense"] == pytest.approx(6 * multiplications * 3 * 4096 / 2.0 / 1e11)
    assert "1.50 times" in training.table(result)


def test_the_workload_is_that_of_the_issue_and_survives_json() -> None:
    workload = Workload(experts=8)
    assert (workload.inputs, sum(workload.vocabularies)) == (330, 1_100_000)
    assert Workload.from_json(workload.to_json()) == workload


@pytest.mark.parametrize("kind", MODELS)
def test_our_model_has_the_sizes_of_the_peers(kind: str) -> None:
    config = model_config(kind, TINY)
    assert encoder(config).vocab_sizes == TINY.vocabularies
    assert config.experts.hidden == TINY.hidden
    assert config.towers == TINY.towers
    always, chosen = config.experts.shared, config.experts.top_k if config.experts.routed else 0
    assert (always, chosen) == ((4, 0) if kind == "dense" else (0, 2))


def test_ours_trains_on_the_same_rows() -> None:
    rows, ours = Rows.draw(TINY), batches(TINY)
    assert len(ours) == TINY.steps
    assert torch.equal(torch.cat([b.values.view(len(TINY.ids), -1).T for b in ours]), rows.ids)
    assert (rows.ids < torch.tensor(TINY.vocabularies)).all()
    assert torch.equal(torch.cat([b.labels for b in ours]), rows.labels)
    assert torch.cat([b.row for b in ours]).tolist() == list(range(TINY.steps * TINY.rows))


def test_what_cannot_be_measured_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--rounds"):
        training.run(rounds=0)
    monkeypatch.setattr(training, "PEERS_PYTHON", training.ROOT / "nowhere")
    with pytest.raises(UserError, match="make bench-peers"):
        training.run()


ECHO = """
import json, sys
print(json.dumps({"name": "echo"}), flush=True)
for number, line in enumerate(sys.stdin):
    print(json.dumps({"seconds": 9.0 if number == 0 else 5.0 - number}), flush=True)
print(json.dumps({"rounds": number}), flush=True)
"""


def test_turns_keep_the_quickest_after_a_first_round() -> None:
    outcome = in_turns({"a": [sys.executable, "-c", ECHO]}, {"a": ["step"]}, rounds=3)
    assert outcome.seconds == {"a": {"step": 2.0}}
    assert outcome.said == {"a": {"name": "echo", "rounds": 3}}


def test_a_contestant_that_fails_says_why() -> None:
    failing = [sys.executable, "-c", "raise SystemExit('no memory')"]
    with pytest.raises(RuntimeError, match="no memory"), started(failing):
        raise AssertionError("it never started")


def _measured(command: Sequence[str], measures: Sequence[str]) -> Contestant:
    with started(command) as contestant:
        assert all(contestant.seconds(measure) > 0 for measure in measures)
        contestant.about |= contestant.finish()
    return contestant


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "least", "most"), [("dense", 4.0, 4.0), ("sparse", 2.0, 2.0), ("sparse_by_task", 2.0, 4.0)]
)
def test_ours_trains_when_it_is_told_to(kind: str, least: float, most: float) -> None:
    command = [sys.executable, "-m", "benchmarks.product", kind, TINY.to_json(), "2"]
    assert least <= _measured(command, ["step", "step"]).about["experts_per_row"] <= most


@needs_peers
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_trains_when_it_is_told_to(peer: str) -> None:
    command = [str(training.PEERS_PYTHON), "-m", "benchmarks.peers", peer, TINY.to_json()]
    assert peer in _measured(command, training.MEASURES).about


@needs_peers
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_in_one_run() -> None:
    result = training.compare(replace(TINY, experts=0), rounds=1)
    assert all(result[f"{name}_vs_best_peer"] > 0 for name in ("dense", "sparse16", "sparse64", "sparse64_by_task"))
    assert set(PEERS) < set(result["versions"])
    assert training.table(result)
