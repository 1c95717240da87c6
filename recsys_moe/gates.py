"""One gate per task: which experts a row uses for it, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from recsys_moe.config import Gating
from recsys_moe.experts import ExpertLayout

SEGMENT_DIM = 8
FEW = 4
"""Up to so many choices, one maximum after the other is quicker than a sort."""


@dataclass(frozen=True)
class Routing:
    """What the gates decided: a row has K slots for each task, the experts that it runs.

    Attributes:
        experts: [B, T, K] which expert, 0 to E - 1: shared, the task's own, the chosen, the segment's.
        weights: [B, T, K] how much of it; without renormalising they may sum to less than 1.
        chosen: [B, T, k] the choice among the R routed experts, 0 to R - 1.
        penalty: scalar, z-loss (Zoph et al. 2022) and auxiliary loss with their weights; 0 outside of training.
    """

    experts: Tensor
    weights: Tensor
    chosen: Tensor
    penalty: Tensor

    def over_experts(self, total: int) -> Tensor:
        """Weights [B, T, E] over all experts, zero where one does not run."""
        dense = self.weights.new_zeros(*self.weights.shape[:2], total)
        return dense.scatter(-1, self.experts, self.weights)


class Gates(nn.Module):
    """Gates of all tasks, linear in [x; segment embedding], in fp32 or better.

    Routed experts are selected by score + bias and weighted by the logits alone. The bias is moved by `balance` and
    never by a gradient (after DeepSeek-V3 2024). The unknown segment's embedding stays zero, and the others decay
    towards it, so that a segment that says nothing new ends where the unknown one is.
    """

    def __init__(self, layout: ExpertLayout, input_dim: int, num_segments: int, top_k: int, gating: Gating) -> None:
        super().__init__()
        self.layout, self.top_k, self.gating = layout, min(top_k, layout.routed), gating
        self.num_gates = 1 if gating.shared_gate else layout.num_tasks
        self.num_choices = self.num_gates if gating.routing == "task" else 1
        self.all_chosen = False
        """In training, every routed expert runs: the dense warm-up."""
        outputs = self.num_gates * layout.total
        self.weight = nn.Parameter(torch.randn(input_dim, outputs) * 0.5 * input_dim**-0.5)
        self.segment_weight = nn.Parameter(torch.randn(SEGMENT_DIM, outputs) * SEGMENT_DIM**-0.5)
        self.segment_embedding = nn.Parameter(torch.zeros(num_segments, SEGMENT_DIM))
        self.offset = nn.Parameter(torch.zeros(outputs))
        self.bias: Tensor
        biases = self.num_choices if gating.balance == "task" else 1
        self.register_buffer("bias", torch.zeros(biases, layout.routed))
        self.always: Tensor
        self.register_buffer("always", layout.always_run(), persistent=False)

    def forward(self, x: Tensor, segment: Tensor) -> Routing:
        """Route rows: x [B, D], segment [B]."""
        return self.route(self.logits(x, segment))

    def route(self, logits: Tensor, chosen: Tensor | None = None) -> Routing:
        """Weight experts by what `logits` returned, [B, gates, E].

        `chosen` has the best routed experts by `selection`, [B, choices, k], for whom finds them in a quicker way.
        """
        chosen = (self._choose(logits) if chosen is None else chosen).expand(-1, self.layout.num_tasks, -1)
        logits = logits.expand(-1, self.layout.num_tasks, -1)
        experts = self._slots(chosen)
        weights = self._weights(logits, experts)
        return Routing(experts, weights, chosen, self._penalty(logits, chosen))

    def logits(self, x: Tensor, segment: Tensor) -> Tensor:
        """[B, gates, E], before anything is chosen; one gate stands for all tasks with `shared_gate`."""
        known = functional.embedding(segment, self.segment_embedding, padding_idx=0)
        flat = torch.addmm(self.offset, x.to(self.weight.dtype), self.weight) + known @ self.segment_weight
        return flat.view(len(x), self.num_gates, self.layout.total)

    def selection(self, logits: Tensor) -> Tensor:
        """[B, choices, R] by which routed experts are chosen, of logits [B, gates, E]."""
        routed = logits[..., self.layout.routed_slice]
        score = routed.softmax(-1) if self.gating.score == "softmax" else routed.sigmoid()
        return self.bias + (score if self.num_choices == self.num_gates else score.mean(1, keepdim=True))

    @torch.no_grad()
    def _choose(self, logits: Tensor) -> Tensor:
        """[B, choices, k] numbers of the best routed experts of logits [B, gates, E]."""
        if (self.all_chosen and self.training) or self.top_k == self.layout.routed:
            every = torch.arange(self.layout.routed, device=logits.device)
            return every.expand(len(logits), self.num_choices, -1)
        score = self.selection(logits)
        if self.top_k > FEW:
            return score.topk(self.top_k, dim=-1).indices
        best = []
        for _ in range(self.top_k):
            best.append(score.max(-1, keepdim=True).indices)
            score.scatter_(-1, best[-1], -torch.inf)
        return torch.cat(best, -1)

    def _slots(self, chosen: Tensor) -> Tensor:
        """[B, T, K] experts that a row runs for each task."""
        layout, rows = self.layout, len(chosen)
        segments = torch.arange(layout.num_plain, layout.total, device=chosen.device)
        parts = [self.always.expand(rows, -1, -1), chosen + layout.routed_slice.start]
        return torch.cat([*parts, segments.expand(rows, layout.num_tasks, -1)], -1)

    def _weights(self, logits: Tensor, experts: Tensor) -> Tensor:
        own = logits.gather(-1, experts)
        if self.training and self.gating.dropout:
            own = _drop(own, self.gating.dropout)
        if self.gating.score == "sigmoid":
            # A softmax of log-sigmoids is sigmoids over their sum, and safe where all of them are tiny.
            return _softmax(functional.logsigmoid(own)) if self.gating.renormalise else own.sigmoid()
        if self.gating.renormalise:
            return _softmax(own)
        return (own - self._visible(logits).logsumexp(-1, keepdim=True)).exp()

    def _visible(self, logits: Tensor) -> Tensor:
        """Logits [B, T, E] with those of other tasks' experts at minus infinity."""
        if not self.layout.per_task:
            return logits
        hidden = torch.ones(logits.shape[1:], dtype=torch.bool, device=logits.device)
        hidden = hidden.scatter(-1, self.always, False)
        hidden[:, self.layout.routed_slice.start :] = False
        return logits.masked_fill(hidden, -torch.inf)

    def _penalty(self, logits: Tensor, chosen: Tensor) -> Tensor:
        penalty = logits.new_zeros(())
        if self.training and self.gating.z_loss:
            penalty = penalty + self.gating.z_loss * self._visible(logits).logsumexp(-1).square().mean()
        if self.training and self.gating.auxiliary_loss and self.layout.routed:
            routed = logits[..., self.layout.routed_slice]
            penalty = penalty + self.gating.auxiliary_loss * auxiliary_loss(routed, chosen)
        return penalty

    @torch.no_grad()
    def balance(self, chosen: Tensor) -> None:
        """Move the selection bias in proportion to the error of the load of a training step's choices [B, T, k].

        The load of an expert is its share of the pairs: of (row, expert), a pair counting once however many tasks
        chose it, or of a task's choices. The error is the fair share 1 / R less the load. Processes add up.
        """
        if not self.gating.balance_rate or chosen.shape[-1] == self.layout.routed:
            return
        by_gate = chosen[:, : len(self.bias)] if self.gating.balance == "task" else chosen.flatten(1).unsqueeze(1)
        pairs = torch.zeros(*by_gate.shape[:2], self.layout.routed, dtype=torch.bool, device=chosen.device)
        load = pairs.scatter_(-1, by_gate, True).sum(0).float()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(load)
        error = 1.0 / self.layout.routed - load / load.sum(-1, keepdim=True)
        self.bias += self.gating.balance_rate * error

    @torch.no_grad()
    def read_only(self, inputs: Tensor) -> None:
        """Let the gates read these of the inputs alone, bool [D]: other weights become zero and get no gradient."""
        mask = inputs.to(self.weight).unsqueeze(1)
        self.register_buffer("reads", mask, persistent=False)
        self.weight.mul_(mask)
        self.weight.register_hook(self._hidden)  # type: ignore[no-untyped-call]

    def _hidden(self, gradient: Tensor) -> Tensor:
        return gradient * self.get_buffer("reads").to(gradient.dtype)

    @torch.no_grad()
    def decay_segments(self, share: float) -> None:
        """Shrink every segment's part of the logits by `share`, whether it was in the batch or not."""
        self.segment_embedding.mul_(1.0 - share)


def auxiliary_loss(logits: Tensor, chosen: Tensor) -> Tensor:
    """Balance loss of Fedus, Zoph & Shazeer (2021), mean over tasks: 1 where load or probabilities are even.

    Args:
        logits: [B, T, R]. chosen: [B, T, k].
    """
    experts = logits.shape[-1]
    picked = torch.zeros_like(logits).scatter(-1, chosen, 1.0 / chosen.shape[-1])
    return experts * (picked.mean(0) * logits.softmax(-1).mean(0)).sum(-1).mean()


def _softmax(few: Tensor) -> Tensor:
    """Over the last dimension, through the first: over few numbers that lie together torch's is ten times slower."""
    return few.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1)


def _drop(logits: Tensor, share: float) -> Tensor:
    """Leave out a share of the slots [B, T, K]; a row that would lose all of them keeps all."""
    out = torch.rand(logits.shape, device=logits.device) < share
    out &= ~out.all(-1, keepdim=True)
    return logits.masked_fill(out, -torch.inf)
