"""`fit`: epochs, validations and checkpoints around a trainer's steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from recsys_moe.checkpoint import Ranker
from recsys_moe.config import ModelConfig, TrainingConfig
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.errors import UserError
from recsys_moe.model import RankingModel
from recsys_moe.training import state as states
from recsys_moe.training.objective import Seen, over_processes
from recsys_moe.training.records import Means
from recsys_moe.training.schedule import is_over, validation_steps
from recsys_moe.training.sharding import device_of, process_group, quiet
from recsys_moe.training.trainer import Trainer

Record = dict[str, float]
Report = Callable[[Record], None]

CLOCK_STEPS = 10
"""Several processes must agree on when to write a checkpoint, and do so every so many steps."""


@dataclass(frozen=True)
class Fitted:
    """A fitted model.

    Attributes:
        model: plain weights on the CPU, in evaluation mode; the same in every process.
        history: one record per epoch: `epoch`, `step`, `loss`, `loss/<task>` and, where there is a validation set,
            `validation/loss` and `validation/loss/<task>`, all in nats per row, and the numbers of
            `RoutingReport.summary` on it as `validation/experts/…`. With `config.sampled`, `loss` is of the sample
            that is trained on and `validation/loss` of all rows, as the model will be served. Stopped early, the last
            record may be of a part of its epoch.
        table_sums: [rows of all tables] row-wise Adagrad's sums of squared gradients, for a warm start.
    """

    model: RankingModel
    history: tuple[Record, ...] = ()
    table_sums: Tensor | None = None

    @property
    def best_epoch(self) -> int:
        """Number of epochs, from 1, after which the validation loss was lowest (training loss where there is none)."""
        key = "validation/loss" if "validation/loss" in self.history[0] else "loss"
        return 1 + min(range(len(self.history)), key=lambda epoch: self.history[epoch][key])


def fit(
    config: ModelConfig,
    training: TrainingConfig,
    encoder: Encoder,
    loader: Loader,
    *,
    validation: Loader | None = None,
    start: Ranker | None = None,
    state: Path | None = None,
    resume: bool = False,
    on_step: Report | None = None,
    on_epoch: Report | None = None,
    on_validation: Report | None = None,
) -> Fitted:
    """Fit a model to what `loader` gives, which is this process's share of every step's rows.

    Under torchrun (RANK and WORLD_SIZE in the environment) all processes call this, each with its loaders. The same
    seed and input give the same weights, to the bit in one process on a CPU (with `experts.dispatch` set: `auto` times
    two ways, which round differently). With `config.sampled`, `loader` has the rows that were kept, and `validation`
    all.

    Args:
        start: a fitted model to begin with: the weights of ids and parts that both know are taken over.
        state: the folder in which a checkpoint to resume from is written: every `training.checkpoint_minutes`, at an
            epoch's end and at the end. Processes share it.
        resume: go on from the checkpoint in `state`, where there is one of the same training.
        on_step: gets `step`, `epoch`, `loss`, `loss/<task>`, `grad_norm`, `rows` and, where they are learned,
            `weight/<task>`.
        on_epoch: gets the records of `Fitted.history`.
        on_validation: gets `step`, `epoch` and the numbers of a validation, `training.validations` times an epoch.

    Raises:
        UserError: a loss is not finite or explodes (before it reaches the weights); there is nothing to train on;
            `start` is of another shape; a step does not fit into the GPU.
    """
    if not loader.steps:
        raise UserError("there is nothing to train on: the training days have no rows")
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    device = device_of(training)
    with process_group(device):
        assert loader.world == dist.get_world_size()
        with quiet():
            trainer = Trainer(config, training, encoder, device, training.epochs * loader.steps)
        run = _Run(trainer, loader, validation, on_step, on_epoch, on_validation)
        run.prepare(start, state, resume)
        run.go()
        with quiet():
            return Fitted(trainer.plain_model(), tuple(run.history), trainer.tables.whole_sums())


class _Run:
    """One training: what it has recorded so far, and its checkpoints."""

    def __init__(
        self,
        trainer: Trainer,
        loader: Loader,
        validation: Loader | None,
        on_step: Report | None,
        on_epoch: Report | None,
        on_validation: Report | None,
    ) -> None:
        self.trainer, self.training, self.tasks = trainer, trainer.training, trainer.config.tasks
        self.loader = loader
        self.validation = validation if validation and validation.steps else None  # fewer rows than processes give none
        self.on_step, self.on_epoch, self.on_validation = on_step, on_epoch, on_validation
        self.history: list[Record] = []
        self.validations: list[float] = []
        self.means = Means(self.tasks)
        self.start: Ranker | None = None
        self.folder: states.StateFolder | None = None
        self.dispatch = ""
        self.saved_at = time.monotonic()
        self.validate_after: frozenset[int] = frozenset()
        if self.validation is not None:
            self.validate_after = validation_steps(loader.steps, self.training.validations)

    def prepare(self, start: Ranker | None, state: Path | None, resume: bool) -> None:
        """Begin anew, with the weights of `start`, or where a checkpoint stands."""
        found = None
        self.start = start
        if state is not None:
            loaders, trainer = [loader for loader in (self.loader, self.validation) if loader], self.trainer
            rows = [number for loader in loaders for number in (loader.num_rows, loader.steps)]
            identity = states.identity_of(trainer.config, self.training, trainer.encoder, rows, start)
            self.folder = states.StateFolder(state, identity)
            found = self.folder.newest() if resume else None
        if found is not None:
            self._load(found)
            return
        if start is not None:
            self.trainer.start_from(start)
        self.dispatch = self.trainer.settle_dispatch()

    def go(self) -> None:
        """Train to the end, or until validations get no better."""
        while self.trainer.step < self.trainer.steps and not self._is_over():
            epoch, first = divmod(self.trainer.step, self.loader.steps)
            if self.training.fresh_tables and epoch and not first:
                self.trainer.tables.draw(self.training.seed, epoch)
            with closing(self.loader.batches(epoch, first)) as batches:
                for seen in self.trainer.train(batches, epoch):
                    self._after_step(seen, epoch)
                    if self._is_over():
                        return

    def _after_step(self, seen: Seen, epoch: int) -> None:
        """Record, validate, end the epoch and write a checkpoint: in this order, so that it knows all of that."""
        step = self.trainer.step
        self.means.add(seen.sums, seen.counts)
        if self.on_step is not None:
            self.on_step({"step": step, "epoch": epoch, **self._step_record(seen)})
        whole = step % self.loader.steps == 0
        if whole:
            self._keep_of_start()
        validated: Record = {}
        if step - epoch * self.loader.steps in self.validate_after:
            validated = self._validate(epoch)
        ends = whole or self._is_over()
        if ends and not whole:
            self._keep_of_start()
        if ends:
            self._end_epoch(epoch, validated)
        if ends or self._is_time():
            self._save()

    def _keep_of_start(self) -> None:
        """At the end of a warm start's epoch, which an early stop cuts short."""
        if self.start is not None and self.training.warm_start is not None:
            self.trainer.keep_of(self.start, self.training.warm_start.keep)

    def _step_record(self, seen: Seen) -> Record:
        record = Means(self.tasks, seen.sums, seen.counts).record()
        if self.training.loss_weights != "static":
            record |= {f"weight/{name}": value for name, value in self.trainer.objective.weights.current().items()}
        return {**record, "grad_norm": float(self.trainer.grad_norm), "rows": seen.rows}

    def _validate(self, epoch: int) -> Record:
        assert self.validation is not None
        with closing(self.validation.batches()) as batches:
            numbers = self.trainer.evaluate(batches)
        record = {f"validation/{name}": value for name, value in numbers.items()}
        self.validations.append(numbers["loss"])
        if self.on_validation is not None:
            self.on_validation({"step": self.trainer.step, "epoch": epoch, **record})
        return record

    def _end_epoch(self, epoch: int, validated: Record) -> None:
        record = {"epoch": epoch, "step": self.trainer.step, **self.means.record(), **validated}
        self.history.append(record)
        self.means = Means(self.tasks)
        if self.on_epoch is not None:
            self.on_epoch(record)

    def _is_over(self) -> bool:
        return is_over(self.validations, self.training.early_stopping)

    def _is_time(self) -> bool:
        """Whether the last checkpoint is old; several processes ask the first one's clock."""
        if self.folder is None:
            return False
        is_due = time.monotonic() - self.saved_at >= 60 * self.training.checkpoint_minutes
        if dist.get_world_size() == 1:
            return is_due
        if self.trainer.step % CLOCK_STEPS:
            return False
        flag = torch.tensor([float(is_due and dist.get_rank() == 0)], device=self.trainer.device)
        return bool(over_processes(flag).item())

    def _save(self) -> None:
        if self.folder is None:
            return
        progress = {
            "step": self.trainer.step,
            "dispatch": self.dispatch,
            "history": self.history,
            "validations": self.validations,
            "means": [self.means.sums, self.means.counts],
            "first_losses": self.trainer.objective.guard.first,
        }
        path = self.folder.write(progress, self.trainer.dense_state(), self.trainer.table_state())
        self._remember(path)

    def _load(self, path: Path) -> None:
        progress = states.read_progress(path)
        self.trainer.step = progress["step"]
        self.history, self.validations = progress["history"], progress["validations"]
        self.means = Means(self.tasks, *progress["means"])
        self.trainer.objective.guard.first = progress["first_losses"]
        self.trainer.load_dense_state(states.read_dense(path))
        states.read_tables(path, self.trainer.table_state())
        self.dispatch = self.trainer.settle_dispatch(progress["dispatch"])
        self._remember(path)
        states.log.info("%s: going on after step %d", path, self.trainer.step)

    def _remember(self, path: Path) -> None:
        self.saved_at = time.monotonic()
        self.trainer.objective.last_good = f"the last good checkpoint is of step {self.trainer.step}, in {path}"
