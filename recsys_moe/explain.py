"""Why a row's gates weighted experts as they did: what each feature added to each expert's logit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_moe.batch import Batch
from recsys_moe.config import ModelConfig
from recsys_moe.model import RankingModel

SEGMENT_FEATURE = "the segment"
"""Name of what a row's segment itself adds, beside the features that it is made of."""


@dataclass(frozen=True)
class Reference:
    """The average row: x [D] and share of each segment [S], means over some rows."""

    x: Tensor
    segments: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: RankingModel, batches: Iterable[Batch]) -> Reference:
        """The mean of rows that are typical of what the model sees."""
        num_segments = len(model.gates.segment_embedding)
        x, segments = torch.zeros(model.input_dim, dtype=torch.float64), torch.zeros(num_segments, dtype=torch.float64)
        for batch in batches:
            x += model.inputs(batch).double().sum(0)
            segments += batch.segment.bincount(minlength=num_segments)
        return cls(x / segments.sum(), segments / segments.sum())


@dataclass(frozen=True)
class Explanation:
    """What gates said of some rows, on average, and which feature made them say it.

    Gates are linear, so a logit is that of the average row and what every feature adds to it, exactly. All logits
    here are an expert's less the mean of the other experts' that the task's gate sees, since a shift of all changes
    no weight. The balance bias, which only helps to choose among routed experts, is not part of them.

    Attributes:
        expert_names: E names. feature_names: F names of the features, then `the segment`.
        weights: [T, E] mean weight.
        predictions: [T] mean of what is served.
        at_average: [T, E] logit of the average row; NaN for experts that the task's gate does not see.
        added: [T, F + 1, E] what each feature adds to that, NaN likewise, and where a gate sees one expert only.
    """

    expert_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    weights: Tensor
    predictions: Tensor
    at_average: Tensor
    added: Tensor

    def most_moved(self, task: int, experts: int = 5) -> list[tuple[str, str, float]]:
        """Feature, expert and what was added, once for each feature: for the expert that it moved most.

        Of a task's gate (by position), the feature that moved most first; among the `experts` of most weight only,
        since it matters little what moves one that is not heard. Empty where the gate sees one expert only.
        """
        heaviest = self.weights[task].topk(min(experts, len(self.expert_names)))
        heard = heaviest.indices[heaviest.values > 0]
        added = self.added[task][:, heard]
        if added.isnan().any():
            return []
        size, expert = added.abs().max(1)
        order = size.argsort(descending=True, stable=True).tolist()
        return [
            (self.feature_names[f], self.expert_names[int(heard[expert[f]])], float(added[f, expert[f]])) for f in order
        ]


@torch.no_grad()
def explain(model: RankingModel, x: Tensor, segment: Tensor, reference: Reference) -> Explanation:
    """Explain the rows x [B, D] of segments [B], against the reference."""
    logits, routing = model.forward_inputs(x, segment)
    layout, gates = model.experts.layout, model.gates
    tasks = tuple(task.name for task in model.config.tasks)
    own = segment.bincount(minlength=len(reference.segments)).double() / len(segment)
    pull = _by_expert(gates.segment_embedding[1:].double() @ gates.segment_weight.double(), model)
    added = torch.cat(
        [
            _summed_by_feature(model, x.double().mean(0) - reference.x),
            torch.einsum("s,ste->te", (own - reference.segments)[1:], pull).unsqueeze(0),
        ]
    )
    start = gates.offset.double() + reference.x @ gates.weight.double()
    at_average = _by_expert(start, model) + torch.einsum("s,ste->te", reference.segments[1:], pull)
    seen = _seen(model)
    return Explanation(
        expert_names=layout.names(tasks),
        feature_names=(*(name for name, _ in input_widths(model.config)), SEGMENT_FEATURE),
        weights=routing.over_experts(layout.total).double().mean(0),
        predictions=model.probabilities(logits).double().mean(0),
        at_average=_against_others(at_average, seen),
        added=_against_others(added, seen).transpose(0, 1),
    )


@torch.no_grad()
def gate_strengths(model: RankingModel, x: Tensor, segment: Tensor) -> Tensor:
    """How much each feature moves a task's gate, over rows x [B, D] of segments [B].

    It is the typical size (root mean square over the rows) of what the feature adds to an expert's logit, compared
    with an average row's and with the other experts'; the mean over experts by their weight.

    Returns: [T, F + 1] for the features and then the segment; 0 where a gate sees one expert only.
    """
    seen, widths = _seen(model), [width for _, width in input_widths(model.config)]
    pull = _against_others(_by_expert(model.gates.weight.double(), model), seen)
    centred = x.double() - x.double().mean(0)
    blocks = zip(torch.split(centred, widths, 1), torch.split(pull, widths), strict=True)
    added = [torch.einsum("dte,df,fte->te", own, part.T @ part / len(x), own) for part, own in blocks]
    known = model.gates.segment_embedding.double().index_fill(0, torch.tensor([0]), 0.0)
    of_segment = _against_others(_by_expert(known @ model.gates.segment_weight.double(), model), seen)[segment]
    squares = torch.stack([*added, (of_segment - of_segment.mean(0)).square().mean(0)], 1)
    weights = model.gates(x, segment).over_experts(model.experts.layout.total).double().mean(0)
    sizes = squares.clamp(min=0.0).sqrt().nan_to_num()
    strengths: Tensor = (sizes * weights.unsqueeze(1)).sum(-1) / weights.sum(-1, keepdim=True)
    return strengths


def input_widths(config: ModelConfig) -> list[tuple[str, int]]:
    """Each feature and how many of the columns of x are its, in x's order: sparse ones, then numbers."""
    sparse = [(feature.name, config.embedding_dim) for feature in config.features if feature.kind != "numeric"]
    return sparse + [(feature.name, 1) for feature in config.features if feature.kind == "numeric"]


def _summed_by_feature(model: RankingModel, x: Tensor) -> Tensor:
    """[F, T, E] each feature's part of the product of x [D] with the gates' weights."""
    widths = torch.tensor([width for _, width in input_widths(model.config)])
    feature = torch.arange(len(widths)).repeat_interleave(widths)
    parts = x.unsqueeze(1) * model.gates.weight.double()
    return _by_expert(parts.new_zeros(len(widths), parts.shape[1]).index_add_(0, feature, parts), model)


def _by_expert(flat: Tensor, model: RankingModel) -> Tensor:
    """[..., gates·E] as [..., T, E]; one gate stands for all tasks with `shared_gate`."""
    layout = model.experts.layout
    by_gate = flat.view(*flat.shape[:-1], model.gates.num_gates, layout.total)
    return by_gate.expand(*flat.shape[:-1], layout.num_tasks, layout.total)


def _seen(model: RankingModel) -> Tensor:
    """[T, E] whether a task's gate sees an expert: all but the other tasks' own."""
    layout = model.experts.layout
    seen = torch.ones(layout.num_tasks, layout.total, dtype=torch.bool)
    seen[:, : layout.num_always] = False
    return seen.scatter(1, layout.always_run(), True)


def _against_others(logits: Tensor, seen: Tensor) -> Tensor:
    """Logits [..., T, E] less the mean of the others that the task's gate sees; NaN where there is nothing to see."""
    visible = logits.masked_fill(~seen, 0.0)
    others = seen.sum(-1, keepdim=True) - 1
    return (logits - (visible.sum(-1, keepdim=True) - logits) / others).masked_fill(~seen | (others == 0), torch.nan)
