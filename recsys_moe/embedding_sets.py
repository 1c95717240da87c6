"""Experts that see ids in their own way: each reads one part of every embedding, and all numbers.

With parts of their own they can differ more than experts that share an embedding (multi-embedding: Guo et al., "On the
Embedding Collapse when Scaling up Recommendation Models", ICML 2024). It is a matter of training alone: weights of the
first layer that meet a part of other experts are zero and stay zero, so a model is served and scored as any other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_moe.errors import UserError
from recsys_moe.experts import ExpertBank, Perceptrons


def read_own_sets(bank: ExpertBank, num_features: int, dim: int, sets: int) -> None:
    """Let each expert of `bank` read one of `sets` parts of each of the first `num_features` × `dim` inputs.

    Expert e reads part e modulo `sets`. Its other weights become zero and get no gradient from here on. A segment's
    expert, a change of low rank, may read everything.

    Raises:
        UserError: `dim` cannot be cut into so many parts, or there are fewer experts than parts.
    """
    if dim % sets:
        raise UserError(f"model.experts.embedding_sets: {sets} sets do not divide model.embedding_dim {dim}")
    readers = bank.layout.num_always + bank.layout.routed
    if sets > readers:
        raise UserError(f"model.experts.embedding_sets: {sets} sets are more than the {readers} experts that read them")
    part = torch.arange(num_features * dim) % dim // (dim // sets)
    first = 0
    for group in (bank.always, bank.routed):
        if len(group.weights):
            number = torch.arange(first, first + len(group.weights[0]))
            _mask(group, (number[:, None] % sets == part).float(), scale=sets**0.5)
            first += len(number)


def _mask(group: Perceptrons, reads: Tensor, scale: float) -> None:
    """Keep the first layer to what it reads: [E, inputs], 1 or 0. Fewer inputs start with larger weights."""
    weight, inputs = group.weights[0], reads.shape[1]
    mask = torch.ones(*weight.shape[:2], 1)
    mask[:, :inputs, 0] = reads
    group.register_buffer("reads", mask, persistent=False)
    with torch.no_grad():
        weight[:, :inputs].mul_(scale)
        weight.mul_(mask)
    weight.register_hook(lambda gradient: gradient * group.get_buffer("reads").to(gradient.dtype))
