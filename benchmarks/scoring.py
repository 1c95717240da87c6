"""Scoring pairs beside a forward pass for each, and beside the MMoE of torch-rechub and DeepCTR-Torch, on one thread.

The model has 330 inputs, 16 experts of 256 → 128 of which each of two tasks chooses two, and towers of 64. 2,000 users
have 500 candidates each, drawn from 5,000 items. Of scoring the whole is timed: encoding, the tables of users' and
items' parts, the pairs and the best 20 (benchmarks.scorer). Of forward passes there are ours on encoded pairs, with
the chosen experts and with all 16, and bare predictions of peers with 8 experts on tensors in memory. Each runs in a
process of its own; they are measured in turns, in passes of some seconds, and the quickest of each counts, in seconds
of the processor.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.contest import in_turns
from benchmarks.peers import PEERS
from benchmarks.peers.workload import Workload
from benchmarks.scorer import Sizes
from benchmarks.training import check_peers, peers
from recsys_moe.errors import UserError

EXPERTS, PEERS_EXPERTS = 16, 8
STEPS = 24
"""Batches of a peer's pass."""
SCORED = ("factorised", "factorised bf16")
PASSES = ("forward", "dense")


def add_options(parser: argparse.ArgumentParser) -> None:
    """How often, and for how many."""
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument("--users", type=int, default=Sizes.users, help=f"users ({Sizes.users})")


def run(rounds: int = 3, users: int = Sizes.users) -> dict[str, Any]:
    """Measure ours and the peers in turns.

    Raises:
        UserError: the peers are not installed, or there is nothing to measure.
    """
    if min(rounds, users) < 1:
        raise UserError(f"--rounds, --users: must be at least 1, not {rounds} and {users}")
    check_peers()
    theirs = Workload(experts=PEERS_EXPERTS, steps=STEPS)
    return compare(Workload(experts=EXPERTS), theirs, Sizes(users=users), rounds)


def compare(ours: Workload, theirs: Workload, sizes: Sizes, rounds: int) -> dict[str, Any]:
    """The result, of models of these sizes."""
    commands: dict[str, Sequence[str]] = {
        "ours": [sys.executable, "-m", "benchmarks.scorer", ours.to_json(), sizes.to_json()]
    }
    commands |= peers(theirs)
    measures = {"ours": (*SCORED, *PASSES, "peak"), **dict.fromkeys(PEERS, ("predict",))}
    outcome = in_turns(commands, measures, rounds)
    about = outcome.said["ours"]
    versions = {"torch": about.pop("torch"), **{name: outcome.said[name][name] for name in PEERS}}
    return result(ours, theirs, sizes, outcome.seconds, about) | {"versions": versions}


def result(
    ours: Workload,
    theirs: Workload,
    sizes: Sizes,
    seconds: Mapping[str, Mapping[str, float]],
    about: Mapping[str, float],
) -> dict[str, Any]:
    """Ratios and rates.

    Args:
        seconds: of a pass, by contestant and measure. about: what ours said last, `experts_per_row` among it.
    """
    pairs = sizes.users * sizes.candidates
    rates = {name: pairs / seconds["ours"][name] for name in SCORED}
    rates |= {"forward": 2 * sizes.repeats * sizes.rows / seconds["ours"]["forward"]}
    rates |= {"dense": sizes.repeats * sizes.rows / seconds["ours"]["dense"]}
    rates |= {name: theirs.steps * theirs.rows / seconds[name]["predict"] for name in PEERS}
    best = max(rates[name] for name in PEERS)
    peak = 2 * sizes.peak**3 * sizes.products / seconds["ours"]["peak"]
    needed = operations(ours, sizes, about["experts_per_row"])
    return {
        "speedup_vs_dense": rates["factorised"] / rates["dense"],
        "speedup_vs_forward": rates["factorised"] / rates["forward"],
        "speedup_vs_best_peer": rates["factorised"] / best,
        "speedup_vs_best_peer_bf16": rates["factorised bf16"] / best,
        "pairs_per_second": rates["factorised"],
        "fraction_of_peak": needed / seconds["ours"]["factorised"] / peak,
        "rates": rates,
        "peak_gflops": peak / 1e9,
        **about,
    }


def operations(workload: Workload, sizes: Sizes, experts_per_row: float) -> float:
    """Floating-point operations in the matrix products that scoring all lists needs.

    Those of the tables, for each user and item: what first layers of all experts and gates make of the inputs of its
    side, of which every other feature is. Those of each pair: the later layers of the experts that it runs, and towers.
    """
    widths = [workload.dim] * len(workload.vocabularies) + [1] * workload.num_dense
    inputs = sizes.users * sum(widths[::2]) + sizes.items * sum(widths[1::2])
    tables = inputs * workload.experts * (workload.hidden[0] + workload.tasks)
    tower = sum(a * b for a, b in pairwise((workload.hidden[-1], *workload.towers, 1)))
    pair = experts_per_row * sum(a * b for a, b in pairwise(workload.hidden)) + workload.tasks * tower
    return 2.0 * (tables + sizes.users * sizes.candidates * pair)


def table(result: Mapping[str, Any]) -> str:
    """Pairs a second of each, then the ratios."""
    titles = {
        "factorised": "scoring, fp32",
        "factorised bf16": "scoring, bf16",
        "forward": f"forward pass, chosen of {EXPERTS} experts",
        "dense": f"forward pass, all {EXPERTS} experts",
        **{name: f"{name}, {PEERS_EXPERTS} experts" for name in PEERS},
    }
    lines = [f"{title:40}{result['rates'][name]:12,.0f}" for name, title in titles.items()]
    ratios = {
        "speedup_vs_dense": "times the forward pass with all experts",
        "speedup_vs_forward": "times the forward pass with the chosen ones",
        "speedup_vs_best_peer": "times the quickest peer",
        "speedup_vs_best_peer_bf16": "times the quickest peer, in bf16",
    }
    return "\n".join(
        [
            f"{'pairs a second':52}",
            *lines,
            "",
            *(f"{result[name]:.1f} {words}" for name, words in ratios.items()),
            f"{result['fraction_of_peak']:.0%} of the peak of {result['peak_gflops']:.0f} GFLOP/s",
            f"bf16: logits differ by up to {result['largest_error_bf16']:.3f} (their spread is "
            f"{result['spread_of_logits']:.2f}), {result['kept_of_top_10_in_bf16']:.0%} of the top 10 stay",
        ]
    )
