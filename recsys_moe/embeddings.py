"""Embedding tables: one interface, two bodies with the same output.

A body takes a batch and returns [B, F * dim], each feature's vectors averaged (a bag of one for a categorical
feature; averaging keeps the scale of a multivalued one apart from its length). An empty bag gives zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_moe.batch import Batch

if TYPE_CHECKING:
    from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

INIT_RANGE = 0.05
"""Tables start uniform in ±INIT_RANGE: small beside the scaled dense features, so that an id says little at first."""


class PlainEmbeddings(nn.Module):
    """All tables stacked into one, for serving: needs nothing but torch."""

    def __init__(self, vocab_sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.vocab_sizes, self.dim = tuple(vocab_sizes), dim
        self.weight = nn.Parameter(torch.empty(sum(vocab_sizes), dim).uniform_(-INIT_RANGE, INIT_RANGE))
        starts = torch.tensor([0, *vocab_sizes]).cumsum(0)[:-1]
        self.register_buffer("first_row", starts, persistent=False)
        self.first_row: Tensor

    def forward(self, batch: Batch) -> Tensor:
        """Pooled vectors [B, F * dim] of a batch."""
        num_features, rows = len(self.vocab_sizes), len(batch)
        per_feature = batch.lengths.view(num_features, rows).sum(1)
        values = batch.values + self.first_row.repeat_interleave(per_feature)
        offsets = functional.pad(batch.lengths.long().cumsum(0), (1, 0))
        pooled = functional.embedding_bag(values, self.weight, offsets, mode="mean", include_last_offset=True)
        return pooled.view(num_features, rows, self.dim).transpose(0, 1).reshape(rows, num_features * self.dim)


class TorchrecEmbeddings(nn.Module):
    """The same tables as a torchrec collection on the meta device, for training under DistributedModelParallel.

    The collection adds bags up, which takes fbgemm a fifth of the time of averaging them; bags of more than one are
    divided afterwards.

    Args:
        vocab_sizes: rows of each feature's table.
        dim: width of all tables.
        multivalued: positions of the features whose bags may hold more than one value.
    """

    def __init__(self, vocab_sizes: Sequence[int], dim: int, multivalued: Sequence[int] = ()) -> None:
        super().__init__()
        from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType

        self.keys, self.dim = [f"f{position}" for position in range(len(vocab_sizes))], dim
        self._multivalued = tuple(multivalued)
        self.collection: EmbeddingBagCollection = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(
                    name=key,
                    num_embeddings=size,
                    embedding_dim=dim,
                    feature_names=[key],
                    pooling=PoolingType.SUM,
                    weight_init_min=-INIT_RANGE,
                    weight_init_max=INIT_RANGE,
                )
                for key, size in zip(self.keys, vocab_sizes, strict=True)
            ],
        )

    def jagged(self, batch: Batch) -> JaggedBatch:
        """The batch as the collection reads it."""
        from torchrec import KeyedJaggedTensor

        features = KeyedJaggedTensor(self.keys, batch.values, lengths=batch.lengths)
        return JaggedBatch(**{f.name: getattr(batch, f.name) for f in fields(batch)}, features=features)

    def forward(self, batch: JaggedBatch) -> Tensor:
        """Pooled vectors [B, F * dim] of a batch."""
        if not self.keys:  # torchrec cannot join the vectors of no table at all
            return batch.dense.new_zeros(len(batch), 0)
        keyed = self.collection(batch.features)
        if not self._multivalued and keyed.keys() == self.keys:
            values: Tensor = keyed.values()
            return values
        pooled = keyed.to_dict()
        lengths = batch.lengths.view(len(self.keys), -1)
        vectors = []
        for position, key in enumerate(self.keys):
            is_bag = position in self._multivalued
            vectors.append(pooled[key] / lengths[position].clamp(min=1).unsqueeze(1) if is_bag else pooled[key])
        return torch.cat(vectors, dim=1)


@dataclass(frozen=True)
class JaggedBatch(Batch):
    """A batch with its sparse features as torchrec's own type, which its pipelines look for.

    Attributes:
        features: `values` and `lengths`, by feature.
    """

    features: KeyedJaggedTensor

    def to(self, device: torch.device, non_blocking: bool = True) -> Self:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        return replace(self, **moved)

    def record_stream(self, stream: Any) -> None:
        """Keep the memory until a CUDA stream is done with it."""
        for field in fields(self):
            getattr(self, field.name).record_stream(stream)
