"""Our training beside the MMoE of torch-rechub and DeepCTR-Torch: samples a second, on one thread, in fp32.

20 ids (10 of 10 thousand values and 10 of 100 thousand, 16 wide) and 10 numbers are 330 inputs of experts of
256 → 128, with towers of 64 for two binary tasks, in batches of 4096 rows. Ours is the product's whole training step
(benchmarks.product); our sparse models run the best two experts of a row and, measured beside that, the best two of
each task of a row, which are 3.7 in all. Of the peers there are bare steps (forward, loss, backward, Adam, on tensors
in memory) and their own training loops. Each runs in a process and, for peers, an environment of its own
(`make bench-peers`); those with as many experts are measured in turns, and the quickest pass of each counts, in
seconds of the processor.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from benchmarks.contest import ROOT, in_turns
from benchmarks.peers import PEERS
from benchmarks.peers.workload import Workload
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
OURS = {8: ("dense",), 16: ("sparse", "sparse_by_task"), 64: ("sparse", "sparse_by_task")}
"""Which of our models (benchmarks.product) are measured beside peers of as many experts."""
MEASURES = ("step", "loop")
_NAMES = {"dense": "ours, all experts", "sparse": "ours, best 2 a row", "sparse_by_task": "ours, best 2 a task"}
_WHAT = {"step": "bare step", "loop": "own loop"}
PEAK_SIZE = 2048


def add_options(parser: argparse.ArgumentParser) -> None:
    """How often, and how much at once."""
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (5)")
    parser.add_argument("--steps", type=int, default=Workload.steps, help=f"batches of a pass ({Workload.steps})")


def run(rounds: int = 5, steps: int = Workload.steps) -> dict[str, Any]:
    """Measure ours and the peers at each number of experts, and the machine's matrix product.

    Raises:
        UserError: the peers are not installed, or there is nothing to measure.
    """
    if min(rounds, steps) < 1:
        raise UserError(f"--rounds, --steps: must be at least 1, not {rounds} and {steps}")
    check_peers()
    return compare(Workload(experts=0, steps=steps), rounds)


def check_peers() -> None:
    """Raise a `UserError` where the peers are not installed."""
    if not PEERS_PYTHON.exists():
        raise UserError("the peers are not installed: `make bench-peers` makes their environment, .venv-peers")


def peers(workload: Workload) -> dict[str, Sequence[str]]:
    """By name, the command that measures a peer."""
    return {name: [str(PEERS_PYTHON), "-m", "benchmarks.peers", name, workload.to_json()] for name in PEERS}


def compare(sizes: Workload, rounds: int) -> dict[str, Any]:
    """The result, of models of these sizes and of as many experts as `OURS` says."""
    peak = _peak_flops()
    by_experts: dict[int, dict[str, dict[str, float]]] = {}
    versions: dict[str, str] = {}
    per_row: dict[int, dict[str, float]] = {}
    for experts, kinds in OURS.items():
        workload = replace(sizes, experts=experts)
        measures = {**dict.fromkeys(kinds, ("step",)), **dict.fromkeys(PEERS, MEASURES)}
        outcome = in_turns(_commands(kinds, workload, rounds + 1), measures, rounds)
        per_row[experts] = {kind: outcome.said[kind].pop("experts_per_row") for kind in kinds}
        by_experts[experts] = outcome.seconds
        for said in outcome.said.values():
            versions |= said
    return result(sizes, by_experts, per_row, peak) | {"versions": versions}


def _commands(kinds: Sequence[str], workload: Workload, passes: int) -> dict[str, Sequence[str]]:
    product = [sys.executable, "-m", "benchmarks.product"]
    ours = {kind: [*product, kind, workload.to_json(), str(passes)] for kind in kinds}
    return {**ours, **peers(workload)}


def result(
    sizes: Workload,
    by_experts: Mapping[int, Mapping[str, Mapping[str, float]]],
    per_row: Mapping[int, Mapping[str, float]],
    peak: float,
) -> dict[str, Any]:
    """Ratios and rates.

    Args:
        by_experts: seconds of a pass by number of experts, contestant and measure.
        per_row: how many experts a row of each of ours runs.
        peak: floating-point operations a second of a large matrix product.
    """
    samples = {
        f"{name} {measure} {experts}": sizes.steps * sizes.rows / seconds
        for experts, contestants in by_experts.items()
        for name, measures in contestants.items()
        for measure, seconds in measures.items()
    }
    best = {experts: max(samples[f"{peer} step {experts}"] for peer in PEERS) for experts in by_experts}
    contests = [(kind, experts) for experts in by_experts for kind in OURS[experts]]
    return {
        **{f"{_key(*one)}_vs_best_peer": samples[f"{one[0]} step {one[1]}"] / best[one[1]] for one in contests},
        "samples_per_second": samples,
        "experts_per_row": {_key(kind, experts): per_row[experts][kind] for kind, experts in contests},
        "fractions_of_peak": {
            _key(kind, e): samples[f"{kind} step {e}"] * _operations(sizes, per_row[e][kind], e) / peak
            for kind, e in contests
        },
        "peak_gflops": peak / 1e9,
    }


def _key(kind: str, experts: int) -> str:
    """`dense`, `sparse16`, `sparse16_by_task`."""
    return kind if kind == "dense" else kind.replace("sparse", f"sparse{experts}")


def _operations(sizes: Workload, per_row: float, experts: int) -> float:
    """Floating-point operations of a row's training step in matrix products: backward costs twice the forward."""
    widths = (sizes.inputs, *sizes.hidden)
    expert = sum(d * h for d, h in pairwise(widths))
    tower_widths = (sizes.hidden[-1], *sizes.towers, 1)
    tower = sum(d * h for d, h in pairwise(tower_widths))
    return 3 * 2 * (per_row * expert + sizes.tasks * (sizes.inputs * experts + tower))


def _peak_flops(repeats: int = 5) -> float:
    """What one thread reaches in a large product."""
    torch.set_num_threads(1)
    square = torch.ones(PEAK_SIZE, PEAK_SIZE)
    times = []
    for _ in range(repeats):
        start = time.process_time()
        square @ square
        times.append(time.process_time() - start)
    return float(2 * PEAK_SIZE**3 / min(times))


def table(result: Mapping[str, Any]) -> str:
    """Samples a second by number of experts, then how ours compare."""
    samples = result["samples_per_second"]
    names = {f"{kind} step": name for kind, name in _NAMES.items()}
    names |= {f"{peer} {measure}": f"{peer}, {_WHAT[measure]}" for peer in PEERS for measure in MEASURES}
    lines = [_row("samples a second", [f"{experts} experts" for experts in OURS])]
    for key, name in names.items():
        rates = [samples.get(f"{key} {experts}") for experts in OURS]
        lines.append(_row(name, ["" if rate is None else f"{rate:.0f}" for rate in rates]))
    for experts, kinds in OURS.items():
        for key, kind in ((_key(kind, experts), kind) for kind in kinds):
            ratio, share = result[f"{key}_vs_best_peer"], result["fractions_of_peak"][key]
            lines.append(f"{_NAMES[kind]}, {experts} experts: {ratio:.2f} times the best peer, {share:.0%} of the peak")
    return "\n".join(lines)


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:28}" + "".join(f"{cell:>14}" for cell in cells)
