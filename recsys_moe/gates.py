"""One gate per task: which experts a row uses for it, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from recsys_moe.experts import ExpertLayout

SEGMENT_DIM = 8


@dataclass(frozen=True)
class Routing:
    """What the gates decided.

    Attributes:
        weights: [B, T, E], rows sum to 1 over E, zero where an expert was not chosen or is not visible.
        chosen: [B, T, R] bool, over the R routed experts, `top_k` each.
        z_loss: scalar, mean of squared log-partition functions (Zoph et al. 2022), keeps logits small.
    """

    weights: Tensor
    chosen: Tensor
    z_loss: Tensor


class Gates(nn.Module):
    """Gates of all tasks, linear in [x; segment embedding], in fp32.

    Routed experts are selected by probability + bias and weighted by the logits alone. The bias is moved by `balance`
    and never by a gradient (after DeepSeek-V3 2024). The unknown segment's embedding stays zero, and the others decay
    towards it, so that a segment that says nothing new ends where the unknown one is.
    """

    def __init__(self, layout: ExpertLayout, input_dim: int, num_segments: int, top_k: int) -> None:
        super().__init__()
        self.layout, self.top_k = layout, top_k
        outputs = layout.num_tasks * layout.total
        self.weight = nn.Parameter(torch.randn(input_dim, outputs) * 0.5 * input_dim**-0.5)
        self.segment_weight = nn.Parameter(torch.randn(SEGMENT_DIM, outputs) * SEGMENT_DIM**-0.5)
        self.segment_embedding = nn.Parameter(torch.zeros(num_segments, SEGMENT_DIM))
        self.offset = nn.Parameter(torch.zeros(outputs))
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(layout.routed))
        self.visible: Tensor
        self.register_buffer("visible", layout.always_visible(), persistent=False)

    def forward(self, x: Tensor, segment: Tensor) -> Routing:
        """Route rows: x [B, D], segment [B]."""
        logits = self.logits(x, segment)
        chosen = self._choose(logits[..., self.layout.routed_slice])
        allowed = self.visible.expand_as(logits).clone()
        allowed[..., self.layout.routed_slice] = chosen
        weights = torch.softmax(logits.masked_fill(~allowed, -torch.inf), dim=-1)
        own = self.visible.clone()
        own[:, self.layout.routed_slice] = True
        z_loss = logits.masked_fill(~own, -torch.inf).logsumexp(-1).square().mean()
        return Routing(weights, chosen, z_loss)

    def logits(self, x: Tensor, segment: Tensor) -> Tensor:
        """[B, T, E] in fp32, before anything is masked."""
        known = functional.embedding(segment, self.segment_embedding, padding_idx=0)
        flat = torch.addmm(self.offset, x.float(), self.weight) + known @ self.segment_weight
        return flat.view(len(x), self.layout.num_tasks, self.layout.total)

    @torch.no_grad()
    def _choose(self, routed: Tensor) -> Tensor:
        chosen = torch.zeros_like(routed, dtype=torch.bool)
        if self.layout.routed:
            best = (routed.softmax(-1) + self.bias).topk(self.top_k, dim=-1).indices
            chosen.scatter_(-1, best, True)
        return chosen

    @torch.no_grad()
    def balance(self, chosen: Tensor, rate: float) -> None:
        """Move the selection bias in proportion to the error of the union load of a training step.

        The load of an expert is the share of (row, expert) pairs that it runs, a pair counting once however many
        tasks chose it; the error is the fair share 1 / R less the load. Processes add up their loads.
        """
        if not self.layout.routed:
            return
        load = chosen.any(1).sum(0).float()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(load)
        self.bias += rate * (1.0 / self.layout.routed - load / load.sum())

    @torch.no_grad()
    def decay_segments(self, share: float) -> None:
        """Shrink every segment's part of the logits by `share`, whether it was in the batch or not."""
        self.segment_embedding.mul_(1.0 - share)
