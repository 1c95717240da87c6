"""The expert bank: four groups of experts behind one interface.

The bank is told the weight of every expert for every row and task, and returns the weighted sums. How the products
are computed is its own affair: here all experts for all rows, in batched products.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from recsys_moe.config import ModelConfig
from recsys_moe.errors import UserError


@dataclass(frozen=True)
class ExpertLayout:
    """Where each group stands in the E experts: shared, per task (task by task), routed, the row's segment's."""

    shared: int
    per_task: int
    routed: int
    per_segment: int
    num_tasks: int

    @classmethod
    def of(cls, config: ModelConfig, num_segments: int) -> ExpertLayout:
        """Layout of a config; without segments there is no expert for them.

        Raises:
            UserError: the sizes do not go together.
        """
        sizes = config.experts
        per_segment = sizes.per_segment if num_segments > 1 else 0
        if per_segment and not sizes.shared:
            raise UserError(
                "experts: per_segment needs shared >= 1, since a segment's expert is a change of a shared one"
            )
        if sizes.routed and sizes.top_k > sizes.routed:
            raise UserError(f"experts.top_k: {sizes.top_k} of {sizes.routed} routed experts cannot be chosen")
        if not sizes.shared + sizes.per_task + sizes.routed:
            raise UserError("experts: at least one of shared, per_task and routed must be above 0")
        return cls(sizes.shared, sizes.per_task, sizes.routed, per_segment, len(config.tasks))

    @property
    def num_plain(self) -> int:
        """Experts with full weights of their own: all but the segment's."""
        return self.shared + self.num_tasks * self.per_task + self.routed

    @property
    def total(self) -> int:
        """E, the width of gates and weights."""
        return self.num_plain + self.per_segment

    @property
    def routed_slice(self) -> slice:
        """The routed group within E."""
        return slice(self.num_plain - self.routed, self.num_plain)

    def names(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """A name for each of the E experts."""
        return (
            *(f"shared {n}" for n in range(self.shared)),
            *(f"{task} {n}" for task in tasks for n in range(self.per_task)),
            *(f"routed {n}" for n in range(self.routed)),
            *("segment" for _ in range(self.per_segment)),
        )

    def always_visible(self) -> Tensor:
        """[T, E] bool: experts that a task's gate sees in every row. The routed ones are not among them."""
        visible = torch.zeros(self.num_tasks, self.total, dtype=torch.bool)
        visible[:, : self.shared] = True
        visible[:, self.num_plain :] = True
        for task in range(self.num_tasks):
            start = self.shared + task * self.per_task
            visible[task, start : start + self.per_task] = True
        return visible


class ExpertBank(nn.Module):
    """Experts as perceptrons with stacked weights [E, D, H], and low-rank segment differences beside shared expert 0.

    Segment s runs `W_0 + V_s·U_s` on each layer. V starts random and U at zero (with both at zero neither would ever
    move); segment 0, the unknown one, has no difference: it is shared expert 0.
    """

    def __init__(self, layout: ExpertLayout, widths: tuple[int, ...], num_segments: int, rank: int) -> None:
        super().__init__()
        self.layout = layout
        sizes = list(pairwise(widths))
        self.weights = nn.ParameterList(_he_uniform(layout.num_plain, d, h) for d, h in sizes)
        self.biases = nn.ParameterList(torch.zeros(layout.num_plain, 1, h) for _, h in sizes)
        changed, known = (sizes if layout.per_segment else []), num_segments - 1
        self.segment_down = nn.ParameterList(torch.randn(known, d, rank) * d**-0.5 for d, _ in changed)
        self.segment_up = nn.ParameterList(torch.zeros(known, rank, h) for _, h in changed)

    def forward(self, x: Tensor, segment: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of the experts' outputs.

        Args:
            x: [B, D] inputs. segment: [B]. weights: [B, T, E], zero where an expert is not chosen.

        Returns: [B, T, O].
        """
        plain = self.layout.num_plain
        mixed = torch.einsum("bte,ebo->bto", weights[..., :plain], self._plain(x))
        if self.layout.per_segment:
            mixed = mixed + weights[..., plain:] * self.segment_expert(x, segment).unsqueeze(1)
        return mixed

    def _plain(self, x: Tensor) -> Tensor:
        """[E, B, O], every expert for every row. The first layer is one wide product, as all read the same x."""
        experts, inputs, width = self.weights[0].shape
        wide = x @ self.weights[0].transpose(0, 1).reshape(inputs, experts * width)
        hidden: Tensor = (wide.view(len(x), experts, width).transpose(0, 1) + self.biases[0]).relu()
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu()
        return hidden

    def segment_expert(self, x: Tensor, segment: Tensor) -> Tensor:
        """[B, O], each row through its own segment's expert.

        Rows are sorted by segment, so that each segment is two small products; one product per row is ten times
        slower on a CPU.
        """
        order = segment.argsort(stable=True)
        counts = segment.bincount(minlength=len(self.segment_up[0]) + 1).tolist()
        hidden = x[order]
        layers = zip(self.weights, self.biases, self.segment_down, self.segment_up, strict=True)
        for weight, bias, down, up in layers:
            unknown, *known = torch.split(hidden, counts)
            changes = [rows @ v @ u for rows, v, u in zip(known, down.unbind(), up.unbind(), strict=True)]
            change = torch.cat([unknown.new_zeros(len(unknown), up.shape[-1]), *changes])
            hidden = (torch.addmm(bias[0], hidden, weight[0]) + change).relu()
        return hidden[order.argsort()]

    @torch.no_grad()
    def decay_segments(self, share: float) -> None:
        """Shrink every segment's difference by `share`, whether it was in the batch or not."""
        for up in self.segment_up:
            up.mul_(1.0 - share)


def _he_uniform(count: int, inputs: int, outputs: int) -> Tensor:
    """[count, inputs, outputs] for layers that a ReLU follows (He et al. 2015)."""
    bound = (6.0 / inputs) ** 0.5
    return torch.empty(count, inputs, outputs).uniform_(-bound, bound)
