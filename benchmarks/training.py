"""Our training beside the MMoE of torch-rechub and DeepCTR-Torch: samples a second, on one thread, in fp32.

20 ids (10 of 10 thousand values and 10 of 100 thousand, 16 wide) and 10 numbers are 330 inputs of experts of
256 → 128, with towers of 64 for two binary tasks, in batches of 4096 rows. Ours is the product's whole training step
(benchmarks.product). Of the peers there are bare steps (forward, loss, backward, Adam, on tensors in memory) and
their own training loops. Each runs in a process and, for peers, an environment of its own (`make bench-peers`); those
with as many experts are measured in turns, and the quickest pass of each counts, in seconds of the processor.
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
OURS = {8: "dense", 16: "sparse", 64: "sparse"}
"""Which of our models is measured beside peers of as many experts; sparse ones run the best two of them."""
MEASURES = ("step", "loop")
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
    if not PEERS_PYTHON.exists():
        raise UserError("the peers are not installed: `make bench-peers` makes their environment, .venv-peers")
    return compare(Workload(experts=0, steps=steps), rounds)


def compare(sizes: Workload, rounds: int) -> dict[str, Any]:
    """The result, of models of these sizes and of as many experts as `OURS` says."""
    peak = _peak_flops()
    by_experts: dict[int, dict[str, dict[str, float]]] = {}
    versions: dict[str, str] = {}
    per_row: dict[int, float] = {}
    for experts, kind in OURS.items():
        workload = replace(sizes, experts=experts)
        outcome = in_turns(
            _commands(kind, workload, rounds + 1), {"ours": ["step"], **dict.fromkeys(PEERS, MEASURES)}, rounds
        )
        per_row[experts] = outcome.said["ours"].pop("experts_per_row")
        by_experts[experts] = outcome.seconds
        for said in outcome.said.values():
            versions |= said
    return result(sizes, by_experts, per_row, peak) | {"versions": versions}


def _commands(kind: str, workload: Workload, passes: int) -> dict[str, Sequence[str]]:
    ours = [sys.executable, "-m", "benchmarks.product", kind, workload.to_json(), str(passes)]
    peers = {name: [str(PEERS_PYTHON), "-m", "benchmarks.peers", name, workload.to_json()] for name in PEERS}
    return {"ours": ours, **peers}


def result(
    sizes: Workload,
    by_experts: Mapping[int, Mapping[str, Mapping[str, float]]],
    per_row: Mapping[int, float],
    peak: float,
) -> dict[str, Any]:
    """Ratios and rates.

    Args:
        by_experts: seconds of a pass by number of experts, contestant and measure.
        per_row: how many of ours run a row. peak: floating-point operations a second of a large matrix product.
    """
    samples = {
        f"{name} {measure} {experts}": sizes.steps * sizes.rows / seconds
        for experts, contestants in by_experts.items()
        for name, measures in contestants.items()
        for measure, seconds in measures.items()
    }
    best = {experts: max(samples[f"{peer} step {experts}"] for peer in PEERS) for experts in by_experts}
    ours = {experts: samples[f"ours step {experts}"] for experts in by_experts}
    return {
        "dense_vs_best_peer": ours[8] / best[8],
        "sparse16_vs_best_peer": ours[16] / best[16],
        "sparse64_vs_best_peer": ours[64] / best[64],
        "samples_per_second": samples,
        "experts_per_row": {str(experts): value for experts, value in per_row.items()},
        "fractions_of_peak": {str(e): ours[e] * _operations(sizes, per_row[e], e) / peak for e in by_experts},
        "peak_gflops": peak / 1e9,
    }


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
    """Samples a second by number of experts, then the ratios."""
    samples = result["samples_per_second"]
    lines = ["samples a second              " + "".join(f"{f'{e} experts':>14}" for e in OURS)]
    for name, measure in (("ours", "step"), *((peer, measure) for peer in PEERS for measure in MEASURES)):
        rates = "".join(f"{samples[f'{name} {measure} {e}']:14.0f}" for e in OURS)
        what = "training step" if name == "ours" else {"step": "bare step", "loop": "own loop"}[measure]
        lines.append(f"{name + ', ' + what:30}{rates}")
    lines.append(
        f"{'ours, share of the peak':30}" + "".join(f"{result['fractions_of_peak'][str(e)]:14.0%}" for e in OURS)
    )
    return "\n".join(
        [
            *lines,
            "",
            f"all of 8 experts: {result['dense_vs_best_peer']:.2f} times the quickest bare step of a peer",
            f"2 of 16 experts: {result['sparse16_vs_best_peer']:.2f} times that of a peer's 16",
            f"2 of 64 experts: {result['sparse64_vs_best_peer']:.2f} times that of a peer's 64",
        ]
    )
