"""The expert bank: four groups of experts behind one interface.

The bank is told which experts a row runs for each task and with what weight, and returns the weighted sums. How the
products are computed is its own affair: of the routed experts either all run for all rows (dense), or each for the
rows that chose it (sparse).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_moe.config import ModelConfig
from recsys_moe.dispatch import MULTIPLE, Plan, grouped_perceptrons, grouped_product, mix
from recsys_moe.errors import UserError

CLEARLY_QUICKER = 0.7
"""Dense dispatch is taken where it needs less than this share of the time of the sparse one."""


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
    def num_always(self) -> int:
        """Experts that run every row: shared and per task."""
        return self.shared + self.num_tasks * self.per_task

    @property
    def num_plain(self) -> int:
        """Experts with full weights of their own: all but the segment's."""
        return self.num_always + self.routed

    @property
    def total(self) -> int:
        """E, the width of gates."""
        return self.num_plain + self.per_segment

    @property
    def routed_slice(self) -> slice:
        """The routed group within E."""
        return slice(self.num_always, self.num_plain)

    def names(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """A name for each of the E experts."""
        return (
            *(f"shared {n}" for n in range(self.shared)),
            *(f"{task} {n}" for task in tasks for n in range(self.per_task)),
            *(f"routed {n}" for n in range(self.routed)),
            *("segment" for _ in range(self.per_segment)),
        )

    def always_run(self) -> Tensor:
        """[T, A] experts that a task's rows all run: the shared ones, then its own."""
        shared = torch.arange(self.shared).expand(self.num_tasks, -1)
        own = self.shared + torch.arange(self.num_tasks * self.per_task).view(self.num_tasks, self.per_task)
        return torch.cat([shared, own], 1)


class ExpertBank(nn.Module):
    """Experts of all groups: [B, D] inputs to [B, T, O] weighted sums of what each task's experts say."""

    def __init__(self, config: ModelConfig, input_dim: int, num_segments: int) -> None:
        super().__init__()
        sizes = config.experts
        self.layout = layout = ExpertLayout.of(config, num_segments)
        self.output_dim = sizes.hidden[-1]
        widths = (input_dim, *sizes.hidden)
        self.always = Perceptrons(layout.num_always, widths)
        self.routed = Perceptrons(layout.routed, widths)
        self.segments = SegmentChanges(num_segments, widths, sizes.segment_rank) if layout.per_segment else None
        self.dispatch: str = sizes.dispatch

    def forward(self, x: Tensor, segment: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Weighted sums of the experts' outputs.

        Args:
            x: [B, D] inputs. segment: [B].
            weights: [B, T, K] of shared experts, the task's own, the chosen ones and the segment's, in this order.
            chosen: [B, T, k] the choice among the routed experts.

        Returns: [B, T, O].
        """
        layout, x = self.layout, with_one(x)
        sizes = [layout.shared, layout.per_task, chosen.shape[-1], layout.per_segment]
        shared, own, routed, of_segment = torch.split(weights, sizes, -1)
        parts = [self._always(x, shared, own)] if layout.num_always else []
        if layout.routed:
            parts.append(self._routed(x, routed, chosen))
        if self.segments is not None:
            parts.append(of_segment * self.segments(x, segment, self.always).unsqueeze(1))
        mixed = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        return mixed[..., : self.output_dim]

    def _always(self, x: Tensor, shared: Tensor, own: Tensor) -> Tensor:
        outputs = self.always(x)
        mixed = torch.einsum("bte,ebo->bto", shared, outputs[: self.layout.shared])
        if not self.layout.per_task:
            return mixed
        by_task = outputs[self.layout.shared :].unflatten(0, (self.layout.num_tasks, self.layout.per_task))
        return mixed + torch.einsum("bte,tebo->bto", own, by_task)

    def _routed(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        if self.dispatch == "dense" or chosen.shape[-1] == self.layout.routed:
            over_all = weights.new_zeros(*weights.shape[:2], self.layout.routed).scatter(-1, chosen, weights)
            return torch.einsum("bte,ebo->bto", over_all, self.routed(x))
        plan = Plan.of(chosen, self.layout.routed)
        return mix(self.routed.chosen(x, plan), weights, plan)

    @torch.no_grad()
    def decay_segments(self, share: float) -> None:
        """Shrink every segment's difference by `share`, whether it was in the batch or not."""
        for up in self.segments.up if self.segments is not None else ():
            up.mul_(1.0 - share)

    def settle_dispatch(self, rows: int, top_k: int, num_choices: int) -> str:
        """Where `dispatch` is `auto`, time a step of the routed experts both ways on this device and choose.

        Dense must be quicker by a clear margin: else two trainings on one machine might be computed in different
        ways, and round differently.

        Args:
            rows: B of a training step. num_choices: T, or 1 where tasks share a row's choice.

        Returns: `dense` or `sparse`.
        """
        if self.dispatch == "auto":
            all_run = top_k >= self.layout.routed
            self.dispatch = "dense" if all_run or self._is_dense_quicker(rows, top_k, num_choices) else "sparse"
        return self.dispatch

    def _is_dense_quicker(self, rows: int, top_k: int, num_choices: int) -> bool:
        draw = torch.Generator().manual_seed(0)
        scores = torch.rand(rows, num_choices, self.layout.routed, generator=draw)
        chosen = scores.topk(top_k).indices.expand(-1, self.layout.num_tasks, -1)
        sparse, dense = (self._seconds(way, chosen) for way in ("sparse", "dense"))
        return dense < CLEARLY_QUICKER * sparse

    def _seconds(self, way: str, chosen: Tensor, repeats: int = 3) -> float:
        """The quickest of some forward and backward passes over choices [B, T, k]."""
        weight = self.routed.weights[0]
        chosen = chosen.to(weight.device)
        # As in training, where embeddings lie below the inputs and gates below the weights, both have gradients.
        weights = torch.full(chosen.shape, 1.0 / chosen.shape[-1]).to(weight).requires_grad_()
        x = torch.ones(len(chosen), weight.shape[1]).to(weight).requires_grad_()
        before, self.dispatch = self.dispatch, way
        times = []
        for _ in range(1 + repeats):
            _wait_for(weight.device)
            start = time.perf_counter()
            mixed = self._routed(x, weights, chosen)
            torch.autograd.grad(mixed.sum(), (x, weights, *self.routed.parameters()))
            _wait_for(weight.device)
            times.append(time.perf_counter() - start)
        self.dispatch = before
        return min(times[1:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Perceptrons(nn.Module):
    """E perceptrons with stacked weights [E, D, H], a ReLU after each layer.

    The first layer's biases are the row of its weights that meets the 1 of `with_one`, which saves a pass over all
    pairs. Widths are stored padded to what grouped products need: zeros that get no gradient, and stay zero.
    """

    def __init__(self, count: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        sizes = list(pairwise(widths)) if count else []
        self.weights = nn.ParameterList(_he_uniform(count, d, h, layer == 0) for layer, (d, h) in enumerate(sizes))
        self.biases = nn.ParameterList(torch.zeros(count, 1, up_to_multiple(h)) for _, h in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        """[E, B, O], every expert for every row. The first layer is one wide product, as all read the same x."""
        experts, _, width = self.weights[0].shape
        first = self.weights[0].squeeze(0) if experts == 1 else self.weights[0].transpose(0, 1).flatten(1)
        hidden: Tensor = (x @ first).relu().view(len(x), experts, width).transpose(0, 1)
        for weight, bias in zip(self.weights[1:], self.biases, strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu()
        return hidden

    def chosen(self, x: Tensor, plan: Plan) -> Tensor:
        """[N, O], every expert for the rows that chose it."""
        return grouped_perceptrons(x, list(self.weights), list(self.biases), plan)


class SegmentChanges(nn.Module):
    """A segment's expert: shared expert 0, changed on each layer by a product of low rank.

    Segment s runs `W_0 + V_s·U_s`. V starts random and U at zero (with both at zero neither would ever move). Segment
    0, the unknown one, has no change: it is shared expert 0, and its rows of V and U are never used.
    """

    def __init__(self, num_segments: int, widths: tuple[int, ...], rank: int) -> None:
        super().__init__()
        padding, sizes = up_to_multiple(rank) - rank, list(enumerate(pairwise(widths)))
        wide = [up_to_multiple(d + (layer == 0)) for layer, (d, _) in sizes]
        # The padding of the rank is zero in both factors, so that neither gets a gradient, and it stays zero.
        down = (torch.randn(num_segments, wide[n], rank) * d**-0.5 for n, (d, _) in sizes)
        self.down = nn.ParameterList(functional.pad(factor, (0, padding)) for factor in down)
        self.up = nn.ParameterList(torch.zeros(num_segments, rank + padding, up_to_multiple(h)) for _, (_, h) in sizes)

    def forward(self, x: Tensor, segment: Tensor, shared: Perceptrons) -> Tensor:
        """[B, O], each row of x [B, D] through its own segment's expert.

        Rows are sorted by segment, so that all segments are two small grouped products; one product per row is ten
        times slower on a CPU.
        """
        order = segment.argsort(stable=True)
        ends = segment.bincount(minlength=len(self.up[0])).cumsum(0).to(torch.int32)
        hidden, known = x[order], (segment[order] > 0).unsqueeze(1)
        for layer, (weight, down, up) in enumerate(zip(shared.weights, self.down, self.up, strict=True)):
            change = grouped_product(grouped_product(hidden, down, ends) * known, up, ends)
            sums = torch.addmm(shared.biases[layer - 1][0], hidden, weight[0]) if layer else hidden @ weight[0]
            hidden = (sums + change).relu()
        return hidden[order.argsort()]


def up_to_multiple(width: int) -> int:
    """The width with its padding."""
    return -(-width // MULTIPLE) * MULTIPLE


def with_one(x: Tensor) -> Tensor:
    """x [B, D] with a column of ones, then zeros up to the padded width."""
    tail = x.new_zeros(1, up_to_multiple(x.shape[1] + 1) - x.shape[1])
    tail[:, 0] = 1.0
    return torch.cat([x, tail.expand(len(x), -1)], 1)


def _he_uniform(count: int, inputs: int, outputs: int, has_biases: bool) -> Tensor:
    """[count, inputs, outputs], padded, for layers that a ReLU follows (He et al. 2015); biases start at zero."""
    bound = (6.0 / inputs) ** 0.5
    weight = torch.zeros(count, up_to_multiple(inputs + has_biases), up_to_multiple(outputs))
    weight[:, :inputs, :outputs].uniform_(-bound, bound)
    return weight
