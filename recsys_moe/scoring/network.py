"""The experts' layers as scoring reads them: all groups in one stack, and a segment's expert as one among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from recsys_moe.experts import ExpertBank, Perceptrons, SegmentChanges
from recsys_moe.model import RankingModel, Towers


@dataclass(frozen=True)
class Network:
    """What is behind the inputs, as stacked weights; E experts, that of the segment last where there is one.

    Attributes:
        first: [E, D, H] of the first layer, whose last rows have the bias (`with_one`).
        weights, biases: of each later layer, [E, H, H'] and [E, H'].
        towers: of each tower layer, [T, H', H''] and [T, H''].
    """

    first: Tensor
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    towers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: RankingModel, dtype: torch.dtype) -> Self:
        """The model's weights; all but the first layer's and the towers' last in `dtype`."""
        bank = model.experts
        layers = [_stacked(bank, layer) for layer in range(len(model.config.experts.hidden))]
        biases = [_stacked_biases(bank, layer) for layer in range(len(layers) - 1)]
        return cls(
            first=layers[0],
            weights=tuple(weight.to(dtype) for weight in layers[1:]),
            biases=tuple(bias.to(dtype) for bias in biases),
            towers=_towers(model.towers, layers[-1].shape[-1], dtype),
        )

    @torch.no_grad()
    def become_segment(self, bank: ExpertBank, segment: int) -> None:
        """Let the last expert be that of a segment: shared expert 0 with the segment's change of every layer."""
        assert bank.segments is not None
        for layer, weight in enumerate((self.first, *self.weights)):
            weight[-1] = bank.always.weights[layer][0] + _change(bank.segments, layer, segment)


def _stacked(bank: ExpertBank, layer: int) -> Tensor:
    groups = [group.weights[layer] for group in _groups(bank)]
    own = [bank.always.weights[layer][:1]] if bank.segments is not None else []
    return torch.cat([*groups, *own])


def _stacked_biases(bank: ExpertBank, layer: int) -> Tensor:
    groups = [group.biases[layer] for group in _groups(bank)]
    own = [bank.always.biases[layer][:1]] if bank.segments is not None else []
    return torch.cat([*groups, *own]).squeeze(1)


def _groups(bank: ExpertBank) -> list[Perceptrons]:
    return [group for group in (bank.always, bank.routed) if len(group.weights)]


def _change(segments: SegmentChanges, layer: int, segment: int) -> Tensor | float:
    """[D, H] of a layer; the unknown segment has none."""
    return segments.down[layer][segment] @ segments.up[layer][segment] if segment else 0.0


def _towers(towers: Towers, width: int, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], ...]:
    """Weights and biases, the first padded to the `width` of what experts give, the last as precise as they are."""
    weights, last = [weight.detach() for weight in towers.weights], len(towers.weights) - 1
    weights[0] = torch.nn.functional.pad(weights[0], (0, 0, 0, width - weights[0].shape[1]))
    pairs = zip(weights, (bias.squeeze(1) for bias in towers.biases), strict=True)
    return tuple((w, b) if n == last else (w.to(dtype), b.to(dtype)) for n, (w, b) in enumerate(pairs))
