"""Items whose vectors are near, as the model reads them.

The first layers of the experts are linear: what they make of an item is Wₑ·v, with v the item's part of the model's
input. Two items are near if these are, over all experts. They have thousands of numbers, but their inner products are
vᵀMv' with M = Σₑ WₑᵀWₑ, so that the same nearness is that of Λ^½Uᵀv, where UΛUᵀ = M: as many numbers as the item has
inputs, of which the greatest `MOST_NUMBERS` are taken, as in a principal component analysis. The mean of all items is
taken off, and nearness is the cosine.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines import sql
from pipelines.config import Similar
from pipelines.scoring.candidates import met, nearest
from pipelines.scoring.candidates.lists import Lists
from pipelines.scoring.candidates.making import Making
from pipelines.scoring.candidates.neighbours import Neighbours
from recsys_moe.checkpoint import Ranker
from recsys_moe.encoding import RawTable
from recsys_moe.model import RankingModel, not_of_items

NAME = "similar"
MOST_NUMBERS = 64
ITEMS_AT_ONCE = 8192


def make(making: Making, wanted: Similar) -> None:
    """Write users' seeds, and the neighbours of each item that anybody met."""
    assert making.ranker is not None, "similar items are those of a model"
    table = sql.name(met.make_seeds(making, wanted))
    asked = making.fetch(f"SELECT DISTINCT item FROM {table} ORDER BY item").column("item").to_numpy()
    shown = making.fetch("SELECT position FROM known_items WHERE allowed ORDER BY position").column(0).to_numpy()
    vectors = item_vectors(making.ranker, making.items)
    rows, scores = nearest.find(vectors, shown, asked, wanted.neighbours)
    near = (rows >= 0) & (scores > 0)
    lists = Lists.of((asked[np.nonzero(near)[0]], rows[near]), len(making.items))
    Neighbours(lists, scores[near]).write(making.staging, NAME)


@torch.no_grad()
def item_vectors(ranker: Ranker, items: RawTable) -> NDArray[np.float32]:
    """[I, at most `MOST_NUMBERS`] of length 1 (or 0, for an item that is like the mean of all)."""
    model = ranker.model
    of_item = ~not_of_items(model.config)
    directions = _directions(model, of_item)
    parts = [torch.zeros(0, directions.shape[1])]
    for start in range(0, items.num_rows, ITEMS_AT_ONCE):
        encoded = ranker.encoder.encode(items.slice(start, ITEMS_AT_ONCE), ("item",))
        inputs = model.inputs(ranker.encoder.to_batch(encoded).to(model.gates.weight.device))
        parts.append(inputs.cpu()[:, of_item] @ directions)
    vectors = torch.cat(parts)
    vectors -= vectors.mean(dim=0)
    lengths = vectors.norm(dim=1, keepdim=True)
    # Rounding alone would give items that are all alike a direction.
    unit: NDArray[np.float32] = torch.where(lengths > 1e-5, vectors / lengths.clamp_min(1e-30), 0.0).numpy()
    return unit


def _directions(model: RankingModel, of_item: Tensor) -> Tensor:
    """[items' inputs, numbers] that takes inputs to where their distances are those of all experts' first layers."""
    bank = model.experts
    weights = [group.weights[0] for group in (bank.always, bank.routed) if len(group.weights)]
    width = len(of_item)
    first = torch.cat([weight.detach().cpu().double()[:, :width][:, of_item] for weight in weights])
    values, axes = torch.linalg.eigh(torch.einsum("eih,ejh->ij", first, first))
    kept = slice(max(0, len(values) - MOST_NUMBERS), None)
    directions: Tensor = axes[:, kept] * values[kept].clamp_min(0.0).sqrt()
    return directions.float()
