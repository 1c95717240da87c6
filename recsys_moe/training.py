"""Fitting a model: one code path for one process and for many, on torchrec. Reports through callbacks."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from recsys_moe.batch import Batch, Hiding
from recsys_moe.config import ModelConfig, TrainingConfig
from recsys_moe.embeddings import PlainEmbeddings, TorchrecEmbeddings
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError
from recsys_moe.losses import loss_sums, sampling_weights
from recsys_moe.model import RankingModel
from recsys_moe.routing import RoutingTally

log = logging.getLogger(__name__)

WARM_UP_STEPS = 10
"""Steps over which learning rates rise to their full value."""

Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Fitted:
    """A fitted model.

    Attributes:
        model: plain weights on the CPU, in evaluation mode; the same in every process.
        history: one record per epoch: `epoch`, `step`, `loss`, `loss/<task>` and, where there is a validation set,
            `validation/loss` and `validation/loss/<task>`, all in nats per row, and the numbers of
            `RoutingReport.summary` on it as `validation/experts/…`. With `config.sampled`, `loss` is of the sample
            that is trained on and `validation/loss` of all rows, as the model will be served.
    """

    model: RankingModel
    history: tuple[dict[str, float], ...] = ()

    @property
    def best_epoch(self) -> int:
        """Number of epochs, from 1, after which the validation loss was lowest (training loss where there is none)."""
        key = "validation/loss" if "validation/loss" in self.history[0] else "loss"
        return 1 + min(range(len(self.history)), key=lambda epoch: self.history[epoch][key])


def fit(
    config: ModelConfig,
    training: TrainingConfig,
    encoder: Encoder,
    batches: Callable[[int], Iterator[Batch]],
    *,
    steps_per_epoch: int,
    validation: Callable[[], Iterator[Batch]] | None = None,
    on_step: Report | None = None,
    on_epoch: Report | None = None,
) -> Fitted:
    """Fit a model to `batches(epoch)`, which are this process's share of every step's rows.

    Under torchrun (RANK and WORLD_SIZE in the environment) all processes call this with as many batches each. The
    same seed and input give the same weights, to the bit in one process on a CPU (with `experts.dispatch` set: `auto`
    times two ways, which round differently). `on_step` gets `step`, `epoch`, `loss`,
    `loss/<task>`, `grad_norm` and `rows`; `on_epoch` the records of `Fitted.history`. `steps_per_epoch` is what
    `learning_rate_decay` and `gates.dense_warm_up` are shares of, times the epochs. With `config.sampled`, `batches`
    are of the rows that were kept, and `validation` of all.

    Raises:
        UserError: a loss is not finite (before it reaches the weights); there are no batches, or one without rows.
    """
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    device = _device(training)
    with _process_group(device):
        torch.manual_seed(training.seed)
        with _quiet():
            trainer = _Trainer(config, training, encoder, device, training.epochs * steps_per_epoch)
        history = []
        for epoch in range(training.epochs):
            record = trainer.epoch(epoch, batches(epoch), on_step)
            if validation is not None:
                record |= {f"validation/{k}": v for k, v in trainer.evaluate(validation()).items()}
            history.append(record)
            if on_epoch is not None:
                on_epoch(record)
        with _quiet():
            return Fitted(trainer.plain_model(), tuple(history))


def _device(training: TrainingConfig) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if training.device == "cuda" and not has_cuda:
        raise UserError("training.device: this machine has no CUDA device that torch can use; set cpu or auto")
    if training.device == "cpu" or not has_cuda:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def _process_group(device: torch.device) -> Iterator[None]:
    """The caller's process group, torchrun's, or one of this process alone, met through a file: no port is taken."""
    if dist.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, init_method=(Path(folder) / "store").as_uri(), rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch, torchrec and fbgemm say about their own use of each other."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # one line at the first forward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def rate_share(step: int, steps: int, decay: float) -> float:
    """The share of the full learning rate at a step: a short rise, then all, then a line to 0 over the last `decay`.

    `steps` are all there will be; steps beyond them, of a run that was told too few, keep the last one's rate.
    """
    rise = min(1.0, (step + 1) / WARM_UP_STEPS)
    fall = min(1.0, max(steps - step, 1) / (decay * steps)) if decay else 1.0
    return min(rise, fall)


@dataclass
class _Means:
    """Running means of the tasks' losses over an epoch."""

    names: tuple[str, ...]
    weights: Tensor
    sums: Tensor = field(init=False)
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sums, self.counts = torch.zeros(2, len(self.names), dtype=torch.float64).unbind(0)

    def add(self, sums: Tensor, counts: Tensor) -> None:
        self.sums, self.counts = self.sums + sums.detach().cpu(), self.counts + counts.detach().cpu()

    def record(self) -> dict[str, float]:
        means = self.sums / self.counts.clamp(min=1e-12)
        losses = {f"loss/{name}": value for name, value in zip(self.names, means.tolist(), strict=True)}
        return {"loss": float((means * self.weights).sum()), **losses}


class _Trainer:
    """The sharded model, its two optimizers and where training stands."""

    def __init__(
        self, config: ModelConfig, training: TrainingConfig, encoder: Encoder, device: torch.device, steps: int
    ) -> None:
        self.config, self.training, self.encoder, self.device = config, training, encoder, device
        self.steps = steps
        self.hiding = Hiding.of(config, training.hide_ids, training.hide_segments)
        self.task_weights = torch.tensor([task.weight for task in config.tasks], device=device)
        self.step = 0
        embeddings = TorchrecEmbeddings(encoder.vocab_sizes, config.embedding_dim)
        self.model = self._build(embeddings)
        self.model.towers.start_at(config.tasks, encoder.label_means)
        self.sharded, self.fused = _shard(self.model, embeddings, training, device)
        self.dense = [p for name, p in self.model.named_parameters() if not name.startswith("embeddings.")]
        self.optimizer = torch.optim.AdamW(
            self.dense, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        rows = -(-training.batch_size // dist.get_world_size())
        gates = self.model.gates
        dispatch = self.model.experts.settle_dispatch(rows, gates.top_k, gates.num_gates)
        log.info("routed experts are computed in the %s way", dispatch)

    def epoch(self, epoch: int, batches: Iterator[Batch], on_step: Report | None) -> dict[str, float]:
        """Train on the epoch's batches."""
        self.sharded.train()
        means, first = self._means(), self.step
        for batch in batches:
            record = self._train(batch, epoch, means)
            if on_step is not None:
                on_step({"step": self.step, "epoch": epoch, "rows": len(batch), **record})
        if self.step == first:
            raise UserError("there is nothing to train on: no batch came for this epoch")
        return {"epoch": epoch, "step": self.step, **means.record()}

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Mean losses and the use of experts on batches, nothing hidden and nothing learned."""
        self.sharded.eval()
        means, tally = self._means(), RoutingTally(self.model)
        for batch in batches:
            batch = batch.to(self.device)
            logits, routing = self.sharded(batch)
            means.add(*self._global(*self._loss_sums(self.model.corrected(logits), batch, batch.weight)))
            tally.add(routing, batch.segment)
        tally.add_up_processes()
        return means.record() | {f"experts/{name}": value for name, value in tally.report().summary().items()}

    def plain_model(self) -> RankingModel:
        """The weights in the serving body, on the CPU."""
        plain = self._build(PlainEmbeddings(self.encoder.vocab_sizes, self.config.embedding_dim))
        state = {k: v for k, v in self.model.state_dict().items() if not k.startswith("embeddings.")}
        state["embeddings.weight"] = torch.cat(_full_tables(self.model.embeddings, self.device))
        plain.load_state_dict(state)
        return plain.cpu().eval().requires_grad_(False)

    def _build(self, embeddings: nn.Module) -> RankingModel:
        encoder = self.encoder
        model = RankingModel(self.config, encoder.vocab_sizes, encoder.num_dense, encoder.num_segments, embeddings)
        for name, module in model.named_children():
            if name != "embeddings":
                module.to(self.device)
        return model

    def _train(self, batch: Batch, epoch: int, means: _Means) -> dict[str, float]:
        training, rank = self.training, dist.get_rank()
        if not len(batch):
            raise UserError(f"training: the batch of step {self.step} has no rows")
        self._set_learning_rates()
        self.model.gates.all_chosen = self.step < round(self.config.gates.dense_warm_up * self.steps)
        batch = self.hiding(batch, training.seed, epoch, self.step, rank).to(self.device)
        logits, routing = self.sharded(batch)
        sums, counts = self._loss_sums(logits, batch, self._weights(batch))
        all_sums, all_counts = self._global(sums, counts)
        step = self._means()
        step.add(all_sums, all_counts)
        record = step.record()
        self._check(record)
        means.add(all_sums, all_counts)
        # Gradients are averaged over processes, hence world size times this process's part of the global mean.
        per_task = sums / all_counts.clamp(min=1e-12) * dist.get_world_size()
        (per_task @ self.task_weights + routing.penalty).backward()
        grad_norm = nn.utils.clip_grad_norm_(self.dense, training.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.gates.balance(routing.chosen)
        for part in (self.model.gates, self.model.experts):
            part.decay_segments(training.segment_decay)
        self.step += 1
        return {**record, "grad_norm": float(grad_norm)}

    def _check(self, record: dict[str, float]) -> None:
        """Stop before `backward`, which writes the tables: one bad gradient would poison every row that it meets."""
        if not torch.tensor(list(record.values())).isfinite().all():
            raise UserError(
                f"training: the loss is not finite at step {self.step} ({record}); "
                "lower training.learning_rate or look for extreme values in numeric columns and labels"
            )

    def _set_learning_rates(self) -> None:
        share = rate_share(self.step, self.steps, self.training.learning_rate_decay)
        self.optimizer.param_groups[0]["lr"] = share * self.training.learning_rate
        for group in self.fused.param_groups:
            group["lr"] = share * self.training.embedding_learning_rate
        self.fused.step()  # the tables learn inside backward; this only hands the rate on

    def _weights(self, batch: Batch) -> Tensor:
        """How much the rows of a training batch, which may be a sample, count: [B], or [B, T]."""
        if self.config.sampled is None:
            return batch.weight
        ancestry = self.model.ancestry.to(self.device)
        tasks, sampled = self.config.tasks, self.config.sampled
        return sampling_weights(batch.labels, batch.label_mask, batch.weight, tasks, ancestry, sampled)

    def _loss_sums(self, logits: Tensor, batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
        ancestry = self.model.ancestry.to(self.device)
        return loss_sums(logits, batch.labels, batch.label_mask, weight, self.config.tasks, ancestry)

    def _global(self, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.stack([sums.detach(), counts])
        dist.all_reduce(both)
        return both[0], both[1]

    def _means(self) -> _Means:
        return _Means(tuple(task.name for task in self.config.tasks), self.task_weights.cpu())


def _shard(
    model: RankingModel, tables: TorchrecEmbeddings, training: TrainingConfig, device: torch.device
) -> tuple[nn.Module, Any]:
    """Put the tables under DistributedModelParallel, also in one process: only there is the kernel fused.

    Returns: the wrapped model, and the optimizer that works inside its `backward`.
    """
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import KernelConfig, ParameterConstraints, TopologyFactory, TrainerConfig
    from torchrec.distributed.types import ShardingType
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    rate = {"lr": training.embedding_learning_rate, "eps": 1e-8}
    apply_optimizer_in_backward(RowWiseAdagrad, tables.parameters(), rate)
    sharders = [EmbeddingBagCollectionSharder()]
    whole_tables = ParameterConstraints(sharding_types=[ShardingType.TABLE_WISE.value])
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(world_size=dist.get_world_size()), kernel_config=KernelConfig(compute_device=device.type)
        ),
        batch_size=training.batch_size,
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        constraints=dict.fromkeys(tables.keys, whole_tables),
        debug=False,
    )
    group = dist.group.WORLD
    assert group is not None
    plan = planner.collective_plan(model, sharders, group)
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)
    return sharded, sharded.fused_optimizer


def _full_tables(embeddings: nn.Module, device: torch.device) -> list[Tensor]:
    """Every whole table, in every process: each writes the shards that it holds, and the sum has them all."""
    tables = []
    for sharded in embeddings.state_dict().values():
        table = torch.zeros(sharded.size(), device=device)
        for shard in sharded.local_shards():
            (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            table[row : row + rows, column : column + columns] = shard.tensor
        dist.all_reduce(table)
        tables.append(table.cpu())
    return tables
