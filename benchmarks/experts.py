"""What a step of the mixture costs, by the number of experts: chosen ones alone against all of them.

Gates and expert bank of the product, one thread, T = 2 tasks with fresh, independent gates, B = 4096 rows, experts of
330 → 256 → 128, top-2. A step is forward, backward (to the inputs too, as embeddings lie below) and AdamW. All is
measured in one run, in turns, and the quickest of each is taken, in seconds of the processor, since the machine may
be shared.

What bounds it is the matrix products: 3.75 of 16 experts a row, so 4.27 is the ceiling of the speed-up.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recsys_moe.config import Experts, Feature, Gating, ModelConfig, Task
from recsys_moe.errors import UserError
from recsys_moe.experts import ExpertBank, Perceptrons
from recsys_moe.gates import Gates
from recsys_moe.memory import keep_freed_memory

log = logging.getLogger(__name__)

ROWS, INPUTS, HIDDEN, TASKS, TOP_K = 4096, 330, (256, 128), 2, 2
SIZES = (8, 16, 64, 256)
COMPARED = 16
PEAK_SIZE = 2048


_clock = time.process_time


def add_options(parser: argparse.ArgumentParser) -> None:
    """How often."""
    parser.add_argument("--rounds", type=int, default=15, help="how often each is measured (15)")


def run(rounds: int = 15) -> dict[str, Any]:
    """Measure all sizes sparse, one size dense, and a plain matrix product.

    Raises:
        UserError: there is nothing to measure.
    """
    if rounds < 1:
        raise UserError(f"--rounds: must be at least 1, not {rounds}")
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    x = torch.randn(ROWS, INPUTS, requires_grad=True)
    mixtures = {experts: Mixture.of(experts) for experts in SIZES}
    timers: dict[str, Callable[[], float]] = {"peak": _peak}
    for experts, mixture in mixtures.items():
        timers |= {f"{kind}_{experts}": timer for kind, timer in mixture.timers(x).items()}
    timers |= {f"dense_step_{COMPARED}_{way}": t for way, t in _dense_timers(mixtures[COMPARED], x).items()}
    seconds = dict.fromkeys(timers, float("inf"))
    for turn in range(rounds + 1):
        for name, timer in timers.items():
            taken = timer()
            seconds[name] = min(seconds[name], taken) if turn else seconds[name]
        log.info("round %d of %d", turn, rounds)
    return _result(seconds, {experts: mixture.experts_per_row(x) for experts, mixture in mixtures.items()})


def _result(seconds: Mapping[str, float], per_row: Mapping[int, float]) -> dict[str, Any]:
    both = {experts: seconds[f"forward_backward_{experts}"] for experts in SIZES}
    peak = 2 * PEAK_SIZE**3 / seconds["peak"]
    fractions = {experts: 3 * _operations(experts, per_row[experts]) / both[experts] / peak for experts in SIZES}
    dense = min(seconds[name] for name in seconds if name.startswith("dense_step"))
    return {
        "speedup_e16": dense / seconds[f"step_{COMPARED}"],
        "forward_backward_growth_8_to_64": both[64] / both[8],
        "step_growth_8_to_64": seconds["step_64"] / seconds["step_8"],
        "forward_growth_8_to_256": seconds["forward_256"] / seconds["forward_8"],
        "fraction_of_peak": fractions[COMPARED],
        "fractions_of_peak": {str(experts): value for experts, value in fractions.items()},
        "experts_per_row": {str(experts): value for experts, value in per_row.items()},
        "milliseconds": {name: 1000 * value for name, value in seconds.items()},
        "samples_per_second": {str(experts): ROWS / seconds[f"step_{experts}"] for experts in SIZES},
        "peak_gflops": peak / 1e9,
        "torch": torch.__version__,
    }


def _operations(experts: int, per_row: float) -> float:
    """Floating-point operations of a forward pass: the chosen experts' products and the gates'."""
    chosen = per_row * (INPUTS * HIDDEN[0] + HIDDEN[0] * HIDDEN[1])
    return 2 * ROWS * (chosen + INPUTS * TASKS * experts)


def _peak() -> float:
    square = torch.ones(PEAK_SIZE, PEAK_SIZE)
    start = _clock()
    square @ square
    return _clock() - start


@dataclass(frozen=True)
class Mixture:
    """Gates and experts of one size, and their optimizer."""

    gates: Gates
    bank: ExpertBank
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, experts: int) -> Mixture:
        """Only routed experts, no segments."""
        config = ModelConfig(
            features=(Feature(name="x", kind="numeric", side="user"),),
            tasks=tuple(Task(name=f"task {n}") for n in range(TASKS)),
            experts=Experts(shared=0, per_segment=0, routed=experts, top_k=TOP_K, hidden=HIDDEN, dispatch="sparse"),
        )
        bank = ExpertBank(config, INPUTS, num_segments=1)
        gates = Gates(bank.layout, INPUTS, 1, TOP_K, Gating())
        optimizer = torch.optim.AdamW([*gates.parameters(), *bank.parameters()], lr=1e-6, fused=True)
        return cls(gates, bank, optimizer)

    def timers(self, x: Tensor) -> dict[str, Callable[[], float]]:
        """What to measure: a forward pass as in serving, forward and backward, a whole step."""

        def forward() -> float:
            self.gates.eval()
            with torch.no_grad():
                start = _clock()
                self._mixed(x)
                return _clock() - start

        def forward_backward() -> float:
            self.gates.train()
            start = _clock()
            self._learn(x)
            taken = _clock() - start
            self._forget(x)
            return taken

        def step() -> float:
            self.gates.train()
            start = _clock()
            chosen = self._learn(x)
            self.optimizer.step()
            self._forget(x)
            self.gates.balance(chosen)
            return _clock() - start

        return {"forward": forward, "forward_backward": forward_backward, "step": step}

    def experts_per_row(self, x: Tensor) -> float:
        """How many experts a row runs for all its tasks together."""
        chosen = self.gates(x, torch.zeros(len(x), dtype=torch.int64)).chosen
        union = torch.zeros(len(x), self.bank.layout.routed).scatter_(1, chosen.flatten(1), 1.0)
        return float(union.sum() / len(x))

    def _mixed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        segment = torch.zeros(len(x), dtype=torch.int64)
        routing = self.gates(x, segment)
        return self.bank(x, segment, routing.weights, routing.chosen), routing.penalty, routing.chosen

    def _learn(self, x: Tensor) -> Tensor:
        mixed, penalty, chosen = self._mixed(x)
        torch.autograd.backward([mixed, penalty], [torch.ones_like(mixed), None])
        return chosen

    def _forget(self, x: Tensor) -> None:
        self.optimizer.zero_grad()
        x.grad = None


class OneProductEach(Perceptrons):
    """All experts for all rows with a product for each expert in the first layer too, instead of one wide product."""

    def forward(self, x: Tensor) -> Tensor:
        """[E, B, O]."""
        hidden = torch.bmm(x.expand(len(self.weights[0]), -1, -1), self.weights[0]).relu_()
        for weight, bias in zip(self.weights[1:], self.biases, strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu_()
        return hidden


def _dense_timers(sparse: Mixture, x: Tensor) -> dict[str, Callable[[], float]]:
    """All experts for all rows, in the two ways that are known to be quick."""
    timers = {}
    for way in ("wide", "batched"):
        mixture = Mixture.of(COMPARED)
        if way == "batched":
            mixture.bank.routed.__class__ = OneProductEach
        mixture.gates.load_state_dict(sparse.gates.state_dict())
        mixture.bank.load_state_dict(sparse.bank.state_dict())
        mixture.bank.dispatch = "dense"
        timers[way] = mixture.timers(x)["step"]
    return timers


def table(result: Mapping[str, Any]) -> str:
    """Times by number of experts, then the ratios."""
    lines = ["experts  a row  forward  + backward    step  samples/s  of peak"]
    for experts in SIZES:
        times = [result["milliseconds"][f"{kind}_{experts}"] for kind in ("forward", "forward_backward", "step")]
        forward, both, step = (f"{value:.0f} ms" for value in times)
        per_row, samples = result["experts_per_row"][str(experts)], result["samples_per_second"][str(experts)]
        share = f"{result['fractions_of_peak'][str(experts)]:.0%}"
        lines.append(f"{experts:7}  {per_row:5.2f}  {forward:>7}  {both:>10}  {step:>6}  {samples:9.0f}  {share:>7}")
    return "\n".join(
        [
            *lines,
            "",
            f"{COMPARED} experts, the chosen ones alone: {result['speedup_e16']:.2f} times as fast a step as all",
            f"8 to 64 experts: forward and backward {result['forward_backward_growth_8_to_64']:.2f} times as long, "
            f"a step {result['step_growth_8_to_64']:.2f}",
            f"8 to 256 experts: forward {result['forward_growth_8_to_256']:.2f} times as long",
        ]
    )
