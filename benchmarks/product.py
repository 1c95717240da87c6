"""`python -m benchmarks.product MODEL WORKLOAD PASSES`: our training, measured on request (benchmarks.peers.worker).

It is `recsys_moe.training.fit` as the product calls it: sharded tables that learn in the backward pass, hidden ids,
clipping, balancing, checks of the loss, records for each step. Only its rows come from memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import cast

import torch

from benchmarks.peers.worker import Channel
from benchmarks.peers.workload import Rows, Workload
from recsys_moe.batch import Batch
from recsys_moe.config import ModelConfig, TrainingConfig
from recsys_moe.encoding import Encoder
from recsys_moe.encoding.loading import Loader
from recsys_moe.encoding.moments import Scaler
from recsys_moe.memory import keep_freed_memory
from recsys_moe.model import RankingModel
from recsys_moe.presets import with_preset
from recsys_moe.training import fit

MODELS = ("dense", "sparse", "sparse_by_task")
"""All experts for every row, as the peers have it (Ma et al. 2018), or the best two of them for a row, which each
task's gate weighs, or for each task of a row, which then runs up to four."""


def model_config(kind: str, workload: Workload) -> ModelConfig:
    """One of `MODELS`, of the workload's sizes."""
    dense = {"preset": "mmoe", "experts": {"shared": workload.experts}}
    by_task = {"preset": "mixtral", "experts": {"routed": workload.experts, "dispatch": "sparse"}}
    sparse = {**by_task, "gates": {"routing": "example"}}
    model = with_preset({"dense": dense, "sparse": sparse, "sparse_by_task": by_task}[kind])
    ids = [
        {"name": name, "kind": "categorical", "side": "user", "hash_buckets": size - 1}
        for name, size in zip(workload.ids, workload.vocabularies, strict=True)
    ]
    return ModelConfig.model_validate(
        {
            "features": [*ids, *({"name": name, "kind": "numeric", "side": "user"} for name in workload.numbers)],
            "tasks": [{"name": f"task{n}"} for n in range(workload.tasks)],
            "embedding_dim": workload.dim,
            "experts": {**model["experts"], "hidden": workload.hidden},
            "gates": model.get("gates", {}),
            "towers": workload.towers,
        }
    )


def encoder(config: ModelConfig) -> Encoder:
    """Hashed ids need no vocabulary, and made numbers no scaling."""
    return Encoder(config, {}, {f.name: Scaler() for f in config.features if f.kind == "numeric"})


def batches(workload: Workload) -> list[Batch]:
    """The rows that peers train on, too, as the encoder would give them."""
    return [_batch(rows, number * workload.rows) for number, rows in enumerate(Rows.batches(workload))]


def _batch(rows: Rows, first: int) -> Batch:
    count, num_ids = rows.ids.shape
    return Batch(
        values=rows.ids.T.flatten(),
        lengths=torch.ones(count * num_ids, dtype=torch.int32),
        dense=rows.numbers,
        segment=torch.zeros(count, dtype=torch.int64),
        labels=rows.labels,
        label_mask=torch.ones(rows.labels.shape, dtype=torch.bool),
        weight=torch.ones(count),
        row=torch.arange(first, first + count),
    )


class InMemory:
    """What `fit` takes for a loader: a pass over the batches for each request, which it answers."""

    world = 1

    def __init__(self, channel: Channel, passed: list[Batch], passes: int) -> None:
        self.channel, self.passed = channel, passed
        self.steps = passes * len(passed) + 1

    def batches(self, epoch: int = 0, first_step: int = 0) -> Iterator[Batch]:
        """A step is over when the next batch is asked for: the time of a pass is that of all its steps.

        One batch more comes when requests end, so that the last pass is answered before `fit` is done.
        """
        for _ in self.channel.requests():
            with self.channel.timed():
                yield from self.passed
        yield self.passed[0]


@torch.no_grad()
def experts_per_row(model: RankingModel, batch: Batch) -> float:
    """How many experts with weights of their own a row runs, for all its tasks together."""
    _, routing = model(batch)
    layout = model.experts.layout
    runs = torch.zeros(len(batch), layout.total).scatter_(1, routing.experts.flatten(1), 1.0)
    return float(runs.sum() / len(batch))


def main(kind: str, workload_json: str, passes: str) -> None:
    """Train for as many passes as are asked for; last comes how many experts a row runs."""
    channel, workload = Channel(), Workload.from_json(workload_json)
    keep_freed_memory()
    config = model_config(kind, workload)
    passed = batches(workload)
    training = TrainingConfig(batch_size=workload.rows, precision="fp32", threads=1, device="cpu")
    channel.say(torch=torch.__version__)
    loader = cast(Loader, InMemory(channel, passed, int(passes)))
    fitted = fit(config, training, encoder(config), loader)
    channel.say(experts_per_row=experts_per_row(fitted.model, passed[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
