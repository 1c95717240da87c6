"""Two regression tasks, more or less related, and three ways to share experts between them.

The synthetic experiment of Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts" (KDD 2018), sections 3.2 and 4.2, with the product's own model. For a cosine p between the tasks'
weights, and orthonormal u1 and u2:

    x ~ N(0, I_100)    w1 = u1    w2 = p·u1 + sqrt(1 - p²)·u2    z_k = w_k·x
    y_k = z_k + Σ_i sin(α_i·z_k + β_i) + noise of variance 0.01

A *world* is one draw of u1 and u2, of a stream of rows and of the models' first weights. Worlds are trained side by
side, as one stack. A repeat is a world for each p with the same u1, u2, inputs, noise and first weights, the same for
all three models, so that differences between correlations and between models are taken within a repeat.

Shapes: C correlations, R repeats, W = C·R worlds, B rows, D inputs, T tasks, P points of a learning curve.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from benchmarks.intervals import interval
from pipelines.figures import BLUE, GREY, ORANGE
from recsys_moe.config import Feature, ModelConfig, Task
from recsys_moe.errors import UserError
from recsys_moe.model import RankingModel
from recsys_moe.presets import PRESETS

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

CORRELATIONS = (1.0, 0.9, 0.5)
INPUTS, TASKS, TOWER = 100, 2, 8
SINES = ((0.5, 0.0), (1.0, 1.0), (1.5, 2.0), (2.0, 3.0))
"""alpha and beta of each term; the paper leaves their values open."""
NOISE = 0.1

BATCH_SIZE, HELD_OUT, POINTS = 32, 1000, 20
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
SEARCH_REPEATS = 4

MODELS: Mapping[str, tuple[str, int]] = {
    "shared bottom": ("shared_bottom", 126),
    "one gate": ("jacobs", 17),
    "multi-gate": ("mmoe", 16),
}
"""Preset and width of its experts, such that all have about as many parameters."""
COLOURS = (GREY, ORANGE, BLUE)


def model_config(preset: str, width: int) -> ModelConfig:
    """The product's configuration of a preset: experts of one layer, towers of one hidden layer."""
    values = PRESETS[preset]
    return ModelConfig.model_validate(
        {
            "features": [Feature(name=f"x{n}", kind="numeric", side="user") for n in range(INPUTS)],
            "tasks": [Task(name=f"y{n + 1}", kind="regression") for n in range(TASKS)],
            "experts": {**values["experts"], "hidden": (width,)},
            "gates": values.get("gates", {}),
            "towers": (TOWER,),
        }
    )


def count_parameters(config: ModelConfig) -> int:
    """Weights and biases that can learn: no padding, and no gate where there is nothing to choose."""
    experts, (width,) = config.experts.shared, config.experts.hidden
    gates = 0 if experts == 1 else 1 if config.gates.shared_gate else TASKS
    tower = (width + 1) * TOWER + TOWER + 1
    return experts * (INPUTS + 1) * width + gates * (INPUTS + 1) * experts + TASKS * tower


@dataclass(frozen=True)
class Worlds:
    """Weights [C, R, T, D] of the tasks, for each correlation and repeat."""

    weights: Tensor

    @classmethod
    def draw(cls, correlations: Sequence[float], repeats: int, generator: torch.Generator) -> Worlds:
        """A new basis for each repeat, shared by its correlations."""
        basis = torch.linalg.qr(torch.randn(repeats, INPUTS, 2, generator=generator)).Q
        u1, u2 = basis.unbind(-1)
        seconds = [p * u1 + (1.0 - p * p) ** 0.5 * u2 for p in correlations]
        return cls(torch.stack([torch.stack([u1, w2], dim=1) for w2 in seconds]))

    def rows(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """New rows for each world: inputs [W, B, D] and labels [W, B, T]."""
        correlations, repeats = self.weights.shape[:2]
        x = torch.randn(repeats, count, INPUTS, generator=generator)
        noise = NOISE * torch.randn(repeats, count, TASKS, generator=generator)
        y = response(torch.einsum("rbd,crtd->crbt", x, self.weights)) + noise
        return x.repeat(correlations, 1, 1), y.flatten(0, 1)


def response(z: Tensor) -> Tensor:
    """A task's label without noise, of the projection z = w·x."""
    return z + sum((torch.sin(a * z + b) for a, b in SINES), torch.zeros(()))


class _OfInputs(nn.Module):
    """The product's model from its dense inputs on: [B, D] → [B, T]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ranking = RankingModel(config, (), INPUTS, num_segments=1, embeddings=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        unknown = torch.zeros(len(x), dtype=torch.long)
        return self.ranking.forward_inputs(x, unknown)[0]


class Stack:
    """A model for each world, run as one: [W, B, D] → [W, B, T].

    A repeat's models start alike in all correlations.
    """

    def __init__(self, config: ModelConfig, correlations: int, repeats: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            firsts = [_OfInputs(config) for _ in range(repeats)]
        self.parameters, self.buffers = stack_module_state(firsts * correlations)
        self.model = firsts[0]

    def __call__(self, x: Tensor) -> Tensor:
        return vmap(self._one)(self.parameters, self.buffers, x)

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self.model, (parameters, buffers), (x,))
        return outputs


@dataclass(frozen=True)
class Schedule:
    """How long to train, and on which data: the same for every model."""

    repeats: int
    steps: int
    seed: int
    points: int = POINTS

    @property
    def shown(self) -> list[int]:
        """The steps after which the loss is taken, the last one among them."""
        return [self.steps * (n + 1) // self.points for n in range(self.points)]


def train(config: ModelConfig, schedule: Schedule, learning_rate: float) -> Tensor:
    """Train a model in every world on rows that are seen once, with Adam and a rate that falls linearly to zero.

    Returns: [P, C, R] mean squared error on held-out rows, mean over the tasks.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    worlds = Worlds.draw(CORRELATIONS, schedule.repeats, generator)
    held_out = worlds.rows(HELD_OUT, generator)
    stack = Stack(config, len(CORRELATIONS), schedule.repeats, schedule.seed)
    optimizer = torch.optim.Adam(stack.parameters.values(), lr=learning_rate, fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / schedule.steps)
    points = []
    for step in range(1, schedule.steps + 1):
        optimizer.zero_grad()
        losses(stack, *worlds.rows(BATCH_SIZE, generator)).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
        if step in schedule.shown:
            with torch.no_grad():
                points.append(losses(stack, *held_out))
    return torch.stack(points).view(schedule.points, len(CORRELATIONS), schedule.repeats)


def losses(stack: Stack, x: Tensor, y: Tensor) -> Tensor:
    """[W] mean squared error of each world, mean over its rows and tasks."""
    return (stack(x) - y).square().mean((1, 2))


def best_learning_rate(config: ModelConfig, steps: int, seed: int) -> tuple[float, dict[str, float]]:
    """The rate with the lowest final loss, mean over the correlations, in worlds that the experiment does not use.

    Returns: the rate, and the loss of every rate tried.
    """
    schedule = Schedule(SEARCH_REPEATS, steps, seed, points=1)
    tried = {rate: train(config, schedule, rate)[-1].mean().item() for rate in LEARNING_RATES}
    return min(tried, key=tried.__getitem__), {f"{rate:g}": loss for rate, loss in tried.items()}


def label_pearson(schedule: Schedule) -> Floats:
    """[C, R] correlation of the two tasks' labels, noise included."""
    generator = torch.Generator().manual_seed(schedule.seed)
    worlds = Worlds.draw(CORRELATIONS, schedule.repeats, generator)
    _, labels = worlds.rows(HELD_OUT, generator)
    pearson = [np.corrcoef(label.numpy(), rowvar=False)[0, 1] for label in labels]
    return np.reshape(pearson, (len(CORRELATIONS), schedule.repeats))


def measure(name: str, schedule: Schedule) -> tuple[dict[str, Any], Floats]:
    """Search a learning rate for a model, then train it in every world.

    Returns: what is reported of it, and its losses [P, C, R].
    """
    preset, width = MODELS[name]
    config = model_config(preset, width)
    rate, tried = best_learning_rate(config, schedule.steps, schedule.seed + 1)
    log.info("%s: learning rate %g, of %s", name, rate, tried)
    curves = train(config, schedule, rate).double().numpy()
    final = curves[-1]
    report: dict[str, Any] = {
        "name": name,
        "preset": preset,
        "hidden": width,
        "parameters": count_parameters(config),
        "learning_rate": rate,
        "loss_by_learning_rate": tried,
        "loss": [interval(losses_R) for losses_R in final],
        "rise": interval(final[-1] - final[0]),
        "curve": [[interval(losses_R) for losses_R in losses_PR] for losses_PR in curves.swapaxes(0, 1)],
    }
    log.info("%s: loss %s", name, [f"{loss['mean']:.4f}" for loss in report["loss"]])
    return report, curves


def run(repeats: int = 20, steps: int = 2400, seed: int = 0, out: Path | None = None) -> dict[str, Any]:
    """The experiment.

    Args:
        repeats: worlds for each correlation.
        steps: of training, each with new rows.
        seed: of all that is random; the search for learning rates uses the next one.
        out: where to draw the picture, if anywhere.

    Returns: for each model its losses and learning curves in the order of `correlations`; its `rise`, how much more
    its loss is at the lowest correlation than at the highest; and how much more its losses and its rise are than the
    multi-gate model's. Intervals are of 95 %, over the repeats.

    Raises:
        UserError: too few repeats for an interval, or too few steps for a curve; `out` is in no folder.
    """
    if repeats < 2 or steps < POINTS:
        raise UserError(f"--repeats must be at least 2 and --steps at least {POINTS}, not {repeats} and {steps}")
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}")
    start, schedule = time.perf_counter(), Schedule(repeats, steps, seed)
    measured = [measure(name, schedule) for name in MODELS]
    multi_gate = measured[-1][1][-1]
    for report, curves in measured:
        above = curves[-1] - multi_gate
        report["loss_above_multi_gate"] = [interval(losses_R) for losses_R in above]
        report["rise_above_multi_gate"] = interval(above[-1] - above[0])
    result = {
        "benchmark": "tasks-correlation",
        "repeats": repeats,
        "steps": steps,
        "seed": seed,
        "batch_size": BATCH_SIZE,
        "sines": [list(term) for term in SINES],
        "noise_variance": NOISE**2,
        "correlations": list(CORRELATIONS),
        "label_pearson": [interval(pearson_R) for pearson_R in label_pearson(schedule)],
        "curve_steps": schedule.shown,
        "models": [report for report, _ in measured],
        "seconds": round(time.perf_counter() - start, 1),
    }
    if out is not None:
        plot(result).savefig(out)
    return result


def table(result: Mapping[str, Any]) -> str:
    """Loss by model and correlation, with the half width of its interval."""
    heads = [f"p = {p:g}" for p in result["correlations"]]
    rows = [["held-out loss", "parameters", "rate", *heads, "rise"]]
    for model in result["models"]:
        numbers = [f"{v['mean']:.4f} ± {v['high'] - v['mean']:.4f}" for v in (*model["loss"], model["rise"])]
        rows.append([model["name"], f"{model['parameters']:,}", f"{model['learning_rate']:g}", *numbers])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options are the arguments of `run`."""
    parser.add_argument("--repeats", type=int, default=20, help="worlds for each correlation (%(default)s)")
    parser.add_argument("--steps", type=int, default=2400, help="of training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="draw the picture there")


def plot(result: Mapping[str, Any]) -> Figure:
    """Loss by correlation after training, and over the steps at the lowest correlation; bands are the intervals."""
    figure = Figure(figsize=(9, 4.4), dpi=160, layout="constrained")
    final, learning = figure.subplots(1, 2, width_ratios=[6, 5])
    correlations, floor = result["correlations"], result["noise_variance"]
    for model, colour in zip(result["models"], COLOURS, strict=True):
        _line(final, correlations, model["loss"], colour, "o-")
        _line(learning, result["curve_steps"], model["curve"][-1], colour, "-")
        end = (correlations[-1], model["loss"][-1]["mean"])
        final.annotate(
            model["name"], end, (9, 0), textcoords="offset points", color=colour, va="center", weight="bold", size=11
        )
    final.axhline(floor, color=GREY, linewidth=0.8, linestyle=":")
    final.annotate("noise, the least possible", (1.0, floor), (0, 4), textcoords="offset points", color=GREY, size=9)
    final.set_xticks(correlations, [f"{p:g}" for p in correlations])
    final.set(xlabel="correlation of the tasks  (→ less related)", ylabel="held-out loss", title="After training")
    final.set_xlim(1.03, 0.22)
    final.set_ylim(bottom=0)
    learning.set(xlabel="training step", title=f"While training, at correlation {correlations[-1]:g}", yscale="log")
    learning.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    learning.yaxis.set_major_formatter("{x:g}")
    learning.yaxis.set_minor_formatter(NullFormatter())
    for axes in (final, learning):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    figure.suptitle("What is lost as two tasks become less related? Three models of equal size", weight="bold")
    return figure


def _line(axes: Axes, x: Sequence[float], points: Sequence[Mapping[str, float]], colour: str, style: str) -> None:
    mean, low, high = ([point[which] for point in points] for which in ("mean", "low", "high"))
    axes.plot(x, mean, style, color=colour)
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
