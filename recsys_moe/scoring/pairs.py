"""Logits of pairs of rows of the tables, expert by expert, in chunks that stay in the processor's cache."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_moe.scoring import steps as in_torch
from recsys_moe.scoring.tables import Tables

ROWS = 8000
"""Pairs of a chunk: few enough for the cache, and enough that what is done once a chunk does not count."""
PIECE = 768
"""Pairs of a product on a CPU: what lies between the layers of so many stays in its second cache."""
PADDING = 32
"""Products are of multiples of so many rows: others are slower, and their last rows may round in another way, so that
items that are alike would not have the same score."""


class PairScorer:
    """Logits of pairs, from tables that are filled."""

    def __init__(self, tables: Tables) -> None:
        self.tables, self.network, self.gates = tables, tables.network, tables.model.gates
        layout, like = self.gates.layout, tables.experts
        self.steps = in_torch.on(like.device)
        chosen = min(self.gates.num_choices * self.gates.top_k, layout.routed)
        self._piece = PIECE if like.device.type == "cpu" else ROWS
        most = ROWS * (layout.num_always + layout.per_segment + chosen) + PADDING
        self._outputs = like.new_zeros(most, self.network.towers[0][0].shape[1])
        self._pairs = torch.zeros(most, 2, dtype=torch.int64, device=like.device)

    @torch.inference_mode()
    def logits(self, pairs: Tensor) -> Tensor:
        """[P, T] of pairs [P, 2], rows of the tables: of a user and of an item."""
        padded = torch.cat([pairs, pairs[:1].expand(-len(pairs) % PADDING, 2)])
        out = self.tables.gates.new_empty(len(padded), self.gates.layout.num_tasks)
        of_users = self._routing(self.tables.gates) if self.tables.by_user_alone else None
        for start in range(0, len(padded), ROWS):
            chunk = padded[start : start + ROWS]
            if of_users is None:
                choice = self._routing(in_torch.sums(self.tables.gates, chunk.flatten(), 2))
            else:
                choice = tuple(part.index_select(0, chunk[:, 0]) for part in of_users)
            out[start : start + ROWS] = self._towers(self._mixed(chunk, *choice))
        return out[: len(pairs)]

    def _routing(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Experts and their weights [B, T, K], of gate logits [B, gates · E]."""
        by_gate = logits.view(len(logits), self.gates.num_gates, self.gates.layout.total)
        routing = self.steps.routing(self.gates, by_gate)
        return routing.experts.contiguous(), routing.weights.contiguous()

    def _mixed(self, pairs: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """[B, T, O] weighted sums of what experts say of pairs [B, 2]."""
        counts, place = self.steps.plan(experts, pairs, self.gates.layout.total, self._pairs)
        done = 0
        for expert, count in enumerate(counts):
            end = done + -(-count // PADDING) * PADDING
            for start in range(done, end, self._piece):
                self._run(expert, start, min(self._piece, end - start))
            done += count
        mixed: Tensor = self.steps.mix(self._outputs[:done], place, weights)
        return mixed

    def _run(self, expert: int, start: int, count: int) -> None:
        """Outputs of an expert for some of the chunk's (pair, expert); the next one's overwrite the padding."""
        network, outputs = self.network, self._outputs[start : start + count]
        hidden = self.steps.first_layer(self.tables.experts[expert], self._pairs[start : start + count])
        if not network.weights:
            outputs.copy_(hidden)
        for weight, bias in zip(network.weights, network.biases, strict=True):
            last = weight is network.weights[-1]
            hidden = torch.mm(hidden, weight[expert], out=outputs) if last else hidden @ weight[expert]
            self.steps.finish(hidden, bias[expert])

    def _towers(self, mixed: Tensor) -> Tensor:
        """[B, T] logits of [B, T, O]."""
        *hidden_layers, (last, bias) = self.network.towers
        logits = []
        for task in range(mixed.shape[1]):
            hidden = mixed[:, task]
            for weight, offset in hidden_layers:
                hidden = self.steps.finish(hidden @ weight[task], offset[task])
            logits.append(hidden.to(last.dtype) @ last[task] + bias[task])
        return torch.cat(logits, 1)
