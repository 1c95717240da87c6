"""The fits of one training: what they read is encoded once, then all processes of the team fit, and the run is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.progress import Progress
from pipelines.runs import Run
from pipelines.scratch import made_once
from pipelines.split import batches_of
from pipelines.team import Team
from recsys_moe import checkpoint
from recsys_moe.config import Frozen, TrainingConfig
from recsys_moe.encoding import EncodedRows, Encoder, Loader
from recsys_moe.training import Fitted, fit
from recsys_moe.training.sharding import device_of

_LOG_EVERY = 10
"""Steps that make one point of the training curve, their mean."""


class Job(Frozen):
    """A fit, as the leader tells it to the others. The folders are where all processes of the team see them.

    Attributes:
        rows: what is learned from, see `Encoded`.
        state: where the fit leaves off and goes on.
        start: the checkpoint of a warm start.
    """

    rows: Path
    state: Path
    training: TrainingConfig
    start: Path | None = None


@dataclass(frozen=True)
class Encoded:
    """The folder of what a fit reads: an encoder, the rows to learn from, and those that are held out."""

    folder: Path

    @property
    def encoder(self) -> Encoder:
        """What encoded them."""
        return Encoder.load(self.folder)

    @property
    def train(self) -> EncodedRows:
        """The rows to learn from."""
        return EncodedRows.open(self.folder / "train.arrow")

    @property
    def held_out(self) -> EncodedRows:
        """The rows to judge by; there may be none."""
        return EncodedRows.open(self.folder / "held_out.arrow")

    @classmethod
    def once(
        cls,
        folder: Path,
        fit_encoder: Callable[[Iterable[pa.RecordBatch]], Encoder],
        window: Iterable[pa.Table],
        held_out: Iterable[pa.Table],
        train: Iterable[pa.Table] | None = None,
    ) -> Encoded:
        """Fit an encoder to a window of raw rows and encode those to learn from, unless it was finished before.

        Those to learn from are `train`, or, where there are none, the window: its tables are read once then.
        """

        def write(unfinished: Path) -> None:
            path = unfinished / "train.arrow"
            if train is None:
                encoder, _ = EncodedRows.write_fitted(path, fit_encoder, batches_of(window))
            else:
                encoder = fit_encoder(batches_of(window))
                EncodedRows.write(path, encoder, train)
            encoder.save(unfinished)
            EncodedRows.write(unfinished / "held_out.arrow", encoder, held_out)

        return cls(made_once(folder, write))


def follow(team: Team) -> None:
    """Take part in every fit that the leader starts, until it has finished."""
    for word in team.words():
        _take_part(Job.model_validate_json(word), team, None)


def lead(job: Job, phase: str, run: Run, team: Team) -> Fitted:
    """Fit, with all processes of the team. The losses of a phase go to the run, how far it is to a person.

    As `<phase>/loss`, `<phase>/loss/<task>` and `<phase>/epoch/loss…` go those of rows that are learned from, as
    `validation/loss…` those of rows held out.

    Raises:
        UserError: see `recsys_moe.training.fit`.
    """
    team.say(job.model_dump_json())
    encoded, training = Encoded(job.rows), job.training
    steps = training.epochs * -(-encoded.train.num_rows // training.batch_size)
    with Progress(f"{phase}: {encoded.train.num_rows} rows, {training.epochs} epochs", steps, "steps") as progress:
        return _take_part(job, team, _Reports(run, phase, progress))


def _take_part(job: Job, team: Team, reports: _Reports | None) -> Fitted:
    encoded, training, encoder = Encoded(job.rows), job.training, Encoded(job.rows).encoder

    def loader(rows: EncodedRows, shuffle: int | None = None) -> Loader:
        return Loader(
            encoder,
            rows,
            training.batch_size,
            shuffle=shuffle,
            rank=team.rank,
            world=team.world,
            buffer_rows=training.buffer_rows,
        )

    with team.group(device_of(training)):
        return fit(
            encoder.config,
            training,
            encoder,
            loader(encoded.train, training.seed),
            validation=loader(encoded.held_out) if encoded.held_out.num_rows else None,
            start=checkpoint.load(job.start, to_train=True) if job.start else None,
            state=job.state,
            resume=True,
            on_step=reports.step if reports else None,
            on_epoch=reports.epoch if reports else None,
            on_validation=reports.validation if reports else None,
        )


def curve(run: Run, phase: str, names: Sequence[str]) -> list[dict[str, float]]:
    """The points of a phase that the run was told, by whichever process: `step` and some losses."""
    values = {name: run.history(f"{phase}/{name}") for name in names}
    steps = sorted(set.intersection(*map(set, values.values())))
    return [{"step": step} | {name: values[name][step] for name in names} for step in steps]


class _Reports:
    """What a fit says, as metrics of the run. Steps that a killed process has told already are told once only."""

    def __init__(self, run: Run, phase: str, progress: Progress) -> None:
        self._run, self._phase, self._progress = run, phase, progress
        self._since: list[dict[str, float]] = []
        self._told: dict[str, int] = {}

    def step(self, record: dict[str, float]) -> None:
        """A point of the curve every `_LOG_EVERY` steps; the first after a resume may be the mean of fewer."""
        step, since = int(record["step"]), self._since
        self._progress.advance(step - self._progress.done, f"loss {record['loss']:.4f}")
        since.append({name: value for name, value in record.items() if name.startswith(("loss", "weight/"))})
        if step % _LOG_EVERY == 0:
            means = {f"{self._phase}/{name}": sum(one[name] for one in since) / len(since) for name in since[0]}
            self._tell(step, means)
            since.clear()

    def epoch(self, record: dict[str, float]) -> None:
        """The means over an epoch, of the rows that were learned from; those held out have been told."""
        numbers = {f"{self._phase}/epoch/{name}": value for name, value in _numbers(record).items()}
        self._tell(int(record["epoch"]), {name: numbers[name] for name in numbers if "/validation/" not in name})

    def validation(self, record: dict[str, float]) -> None:
        """The losses on the rows held out."""
        self._tell(int(record["step"]), _numbers(record))

    def _tell(self, step: int, numbers: dict[str, float]) -> None:
        """Metrics of a step after all that the run knows of them."""
        first = next(iter(numbers))
        if first not in self._told:
            self._told[first] = max(self._run.history(first), default=-1)
        if step > self._told[first]:
            self._run.metrics(numbers, step)


def _numbers(record: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name not in ("epoch", "step")}
