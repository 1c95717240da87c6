"""Beginning with the weights of a model that was trained before: what both know is taken over."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from recsys_moe.checkpoint import Ranker
from recsys_moe.config import ModelConfig
from recsys_moe.encoding import Encoder
from recsys_moe.encoding.growing import check_same_shape
from recsys_moe.errors import UserError
from recsys_moe.model import RankingModel
from recsys_moe.training.sharding import Tables

log = logging.getLogger(__name__)

BY_SEGMENT = ("gates.segment_embedding", "experts.segments.")
"""Weights whose first dimension is the segments."""


@torch.no_grad()
def take_over(start: Ranker, encoder: Encoder, model: RankingModel, tables: Tables) -> None:
    """Copy into `model` and its `tables` what `start` has learned.

    Ids that both encoders know keep their rows, new ones begin as the unknown one. A part (experts, gates, towers) is
    copied where all its shapes agree, and begins anew otherwise; segments go by their names. Where `start` has the
    tables' sums of squared gradients, ids that it has seen much go on in small steps; without them, row-wise Adagrad's
    first steps have the full rate, and undo in a moment what was learned.

    Raises:
        UserError: features, segments, tasks or the embeddings' width differ, or the encoder was not grown from that of
            `start`.
    """
    _check(start, encoder)
    old_sizes = list(start.encoder.vocab_sizes)
    old_sums = None if start.table_sums is None else torch.split(start.table_sums, old_sizes)
    for number, key in enumerate(tables.keys):
        if key in tables.weights and old_sums is not None:
            tables.sums[key][: old_sizes[number]].copy_(old_sums[number])
    move_towards(start, 1.0, encoder, model, tables)


@torch.no_grad()
def move_towards(start: Ranker, share: float, encoder: Encoder, model: RankingModel, tables: Tables) -> None:
    """Move the weights of `model` and its `tables` a share of the way to what `take_over` copies from `start`.

    The mean of the weights of two models that have their beginning in common is often better than both (Izmailov et al.
    2018): what each has learned by heart of its own rows weighs less.
    """
    old_weights = torch.split(start.model.state_dict()["embeddings.weight"], list(start.encoder.vocab_sizes))
    for key, old in zip(tables.keys, old_weights, strict=True):
        if key in tables.weights:
            table = tables.weights[key]
            old = old.to(table.device)
            table[: len(old)].lerp_(old, share)
            table[len(old) :].lerp_(old[0].expand_as(table[len(old) :]), share)
    for name, part in model.named_children():
        if name != "embeddings":
            _move_part(name, part.state_dict(prefix=f"{name}."), start, share, encoder)


def _check(start: Ranker, encoder: Encoder) -> None:
    before, now = start.config, encoder.config
    check_same_shape(before, now)
    _check_equal("tasks", _told(before), _told(now))
    _check_equal("model.embedding_dim", before.embedding_dim, now.embedding_dim)
    for name, known in start.encoder.vocabularies.items():
        if not encoder.vocabularies[name].slice(0, len(known)).equals(known):
            raise UserError(f"features.{name}: its ids are not those of the model to start from, with new ones after")


def _told(config: ModelConfig) -> list[tuple[str, str, str | None]]:
    return [(task.name, task.kind, task.given) for task in config.tasks]


def _check_equal(where: str, before: object, now: object) -> None:
    if before != now:
        raise UserError(
            f"{where}: {now} differs from {before}, that of the model to start from; "
            "take it back, or set training.warm_start: false"
        )


def _move_part(name: str, now: dict[str, Tensor], start: Ranker, share: float, encoder: Encoder) -> None:
    before = {key: tensor for key, tensor in start.model.state_dict().items() if key in now}
    known = [n for n, segment in enumerate(encoder.segment_names) if segment in start.encoder.segment_names]
    theirs = [start.encoder.segment_names.index(encoder.segment_names[n]) for n in known]
    pairs: list[tuple[Tensor, Any, Tensor]] = []
    for key, tensor in now.items():
        if key.startswith(BY_SEGMENT):
            if key in before:  # where there was one segment alone, it had no experts
                pairs.append((tensor, known, before[key][theirs]))
        else:
            pairs.append((tensor, slice(None), before.get(key, tensor.new_empty(0))))
    if _reads(name, start.config) != _reads(name, encoder.config) or any(
        tensor[at].shape != old.shape for tensor, at, old in pairs
    ):
        log.warning("warm start: %s are of another shape than those of the model to start from; they begin anew", name)
        return
    for tensor, at, old in pairs:
        tensor[at] = tensor[at].lerp(old.to(tensor.device), share)


def _reads(name: str, config: ModelConfig) -> object:
    """What of its inputs a part reads, where some of its weights are zero and must stay so."""
    return {"experts": config.experts.embedding_sets, "gates": config.gates.input}.get(name)
