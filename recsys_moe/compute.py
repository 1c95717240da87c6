"""How much a model computes for a row."""

from __future__ import annotations

from itertools import pairwise

from recsys_moe.config import Experts, ModelConfig


def multiplications(shape: ModelConfig, inputs: int) -> float:
    """Multiplications a row in experts and towers, with as many experts as independent gates would choose.

    Args:
        inputs: width of the model's input, `RankingModel.input_dim`.
    """
    sizes, tasks = shape.experts, len(shape.tasks)
    widths = (inputs, *sizes.hidden)
    one = sum(a * b for a, b in pairwise(widths))
    always = sizes.shared + tasks * sizes.per_task + (sizes.per_segment if shape.segments else 0)
    tower = (sizes.hidden[-1], *shape.towers, 1)
    towers = tasks * sum(a * b for a, b in pairwise(tower))
    choices = tasks if shape.gates.routing == "task" and not shape.gates.shared_gate else 1
    return one * (always + chosen_experts(sizes, choices)) + towers


def chosen_experts(sizes: Experts, tasks: int) -> float:
    """How many of the routed experts a row runs, when gates choose independently."""
    return sizes.routed * (1 - (1 - sizes.top_k / sizes.routed) ** tasks) if sizes.routed else 0.0


def widened(shape: ModelConfig, inputs: int, wanted: float) -> ModelConfig:
    """The shape with its hidden layers widened together, by sixteenths, until a row takes `wanted` multiplications."""
    hidden, parts = shape.experts.hidden, 16
    while True:
        wide = tuple(width * parts // 16 for width in hidden)
        found = shape.model_copy(update={"experts": shape.experts.model_copy(update={"hidden": wide})})
        if multiplications(found, inputs) >= wanted:
            return found
        parts += 1
