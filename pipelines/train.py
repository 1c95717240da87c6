"""From examples to a registered version: choose on validation days, then fit again on those too."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import figures, labels, leaks
from pipelines.catalog import model_config
from pipelines.config import Recommender
from pipelines.errors import NotDueError
from pipelines.prepare import sides_of
from pipelines.progress import Progress
from pipelines.registry import Registry, Run, Version
from pipelines.split import Split, days_needed
from pipelines.tables import Tables
from recsys_moe import checkpoint
from recsys_moe.config import ModelConfig, TrainingConfig
from recsys_moe.encoding import Encoder
from recsys_moe.training import Fitted, fit

log = logging.getLogger(__name__)

_LOG_EVERY = 10
"""Steps that make one point of the training curve, their mean."""
_RECIPE = 2
"""Raised when the same config and data would give another model: finished runs of before are then not taken."""


def check_due(config: Recommender, as_of: date) -> None:
    """Raise `NotDueError` where a scheduled training for `as_of` would be too early or too late."""
    tables = Tables(config.storage)
    every_day = config.schedule is not None and config.schedule.every_day
    newest = max(tables.days("interactions"), default=as_of)
    if newest > as_of and not every_day:
        raise NotDueError(f"{as_of}: {newest} is ingested already, and its training sees this day too")
    known = [day for day in tables.days("examples") if labels.all_ripe(config, day, as_of)]
    if len(known) < days_needed(config):
        needed = days_needed(config)
        raise NotDueError(f"{as_of}: {len(known)} days are prepared and have labels, training starts at {needed}")


def train(config: Recommender, as_of: date) -> dict[str, Any]:
    """Train for the days up to `as_of` and register the result; a run that finished before is not repeated.

    Raises:
        UserError: too few days are prepared, or the data do not fit the YAML.
    """
    tables = Tables(config.storage)
    split = Split.of(config, tables.days("examples"), as_of)
    shape = model_config(config, sides_of(config, tables))
    warnings = leaks.check(config, tables, split)
    fingerprint = _fingerprint(shape, config, tables, split)
    registry = Registry(config)
    version = registry.finished(fingerprint)
    repeated = version is not None
    if version is None:
        version = _train_anew(config, shape, tables, split, registry, fingerprint)
    registry.describe(version, {"leaks": " | ".join(warnings)[:4000]} if warnings else {})
    return {
        "step": "train",
        "as_of": as_of.isoformat(),
        "version": version.number,
        "run_id": version.run_id,
        "trained_through": version.through.isoformat(),
        "repeated": repeated,
        "warnings": warnings,
        "versions": {"examples": tables.version("examples")},
    }


def _train_anew(
    config: Recommender, shape: ModelConfig, tables: Tables, split: Split, registry: Registry, fingerprint: str
) -> Version:
    as_of, test_days = split.as_of, split.days_of("test")
    learned = split.days_of("train", "validation") if config.evaluation.refit else split.days_of("train")
    tags = {
        "as_of": as_of.isoformat(),
        "trained_through": learned[-1].isoformat(),
        "test_days": ",".join(day.isoformat() for day in test_days),
        "fingerprint": fingerprint,
    }
    with registry.run(f"{config.name} {as_of}", tags) as run, _scratch(config) as scratch:
        run.params(_params(config))
        run.text(json.dumps(config.model_dump(mode="json"), indent=2), "config.json")
        versions = {"examples": tables.version("examples")}
        run.inputs({name: (tables.path("examples"), number) for name, number in versions.items() if number is not None})
        encoder, fitted = _choose_and_fit(config, shape, tables, split, scratch, run)
        folder = scratch / "checkpoint"
        checkpoint.save(folder, encoder, fitted.model)
        ranker = checkpoint.load(folder)
        example = next(split.rows(tables, "train")).slice(0, 5).select(shape.columns)
        answers = ranker.predict(example)
        return registry.register(run, folder, example, {task.name: answers[:, t] for t, task in enumerate(shape.tasks)})


def _choose_and_fit(
    config: Recommender, shape: ModelConfig, tables: Tables, split: Split, scratch: Path, run: Run
) -> tuple[Encoder, Fitted]:
    """Fit on the training window to find the best epoch, then on train + validation for as many epochs."""
    training = config.training
    encoder = Encoder.fit(shape, _batches(split.rows_to_learn(tables, "train")))
    rows = _encoded(encoder, split.rows_to_learn(tables, "train"), scratch / "train.arrow")
    held_out = _encoded(encoder, split.rows(tables, "validation"), scratch / "validation.arrow")
    has_validation = held_out.num_rows > 0
    steps: list[dict[str, float]] = []
    chosen = _fit(shape, training, encoder, rows, held_out if has_validation else None, run, "choose", steps)
    run.picture(figures.training_curve(steps, chosen.history), "pictures/training.png")
    best = chosen.best_epoch
    run.metrics({"best_epoch": best, "rows/train": rows.num_rows, "rows/validation": held_out.num_rows})
    refit = config.evaluation.refit and has_validation
    if not refit and best == training.epochs:
        return encoder, chosen
    if refit:
        encoder = Encoder.fit(shape, _batches(split.rows_to_learn(tables, "train", "validation")))
        rows = _encoded(encoder, split.rows_to_learn(tables, "train", "validation"), scratch / "refit.arrow")
    again = training.model_copy(update={"epochs": best})
    return encoder, _fit(shape, again, encoder, rows, None, run, "refit", [])


def _fit(
    shape: ModelConfig,
    training: TrainingConfig,
    encoder: Encoder,
    rows: pa.Table,
    held_out: pa.Table | None,
    run: Run,
    phase: str,
    curve: list[dict[str, float]],
) -> Fitted:
    """Fit, with progress for a person and metrics for the run; the points of the training curve go to `curve`."""
    steps = -(-rows.num_rows // training.batch_size)
    title = f"{phase}: {rows.num_rows} rows, {training.epochs} epochs"
    with Progress(title, steps * training.epochs, "steps") as progress:
        since: list[dict[str, float]] = []

        def on_step(record: dict[str, float]) -> None:
            progress.advance(1, f"loss {record['loss']:.4f}")
            since.append(record)
            if len(since) == _LOG_EVERY:
                point = {name: sum(r[name] for r in since) / len(since) for name in record if name.startswith("loss")}
                since.clear()
                curve.append({"step": record["step"], **point})
                run.metrics({f"{phase}/{name}": value for name, value in point.items()}, int(record["step"]))

        def on_epoch(record: dict[str, float]) -> None:
            numbers = {f"{phase}/epoch/{name}": v for name, v in record.items() if name not in ("epoch", "step")}
            run.metrics(numbers, int(record["epoch"]))

        def batches(epoch: int) -> Iterator[Any]:
            return encoder.batches(rows, training.batch_size, shuffle=(training.seed, epoch))

        validation = (lambda: encoder.batches(held_out, training.batch_size)) if held_out is not None else None
        return fit(
            shape,
            training,
            encoder,
            batches,
            steps_per_epoch=steps,
            validation=validation,
            on_step=on_step,
            on_epoch=on_epoch,
        )


def _batches(days: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    for day in days:
        yield from day.to_batches()


def _encoded(encoder: Encoder, days: Iterable[pa.Table], path: Path) -> pa.Table:
    """Encode once into a file, and give it back memory-mapped."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, encoder.schema) as writer:
        for day in days:
            writer.write_table(encoder.encode(day))
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


@contextmanager
def _scratch(config: Recommender) -> Iterator[Path]:
    """A folder under the storage for what is only needed while training."""
    root = config.workspace / "scratch"
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="train-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fingerprint(shape: ModelConfig, config: Recommender, tables: Tables, split: Split) -> str:
    """A digest of all that decides the result: the model, its training, which examples of the days, and these."""
    parts = [
        str(_RECIPE),
        shape.model_dump_json(),
        config.training.model_dump_json(),
        config.evaluation.split.model_dump_json(),
        str(config.sampling.keep_negatives),
        str(config.evaluation.refit),
        str(split.as_of),
        str(split.days),
        tables.fingerprint("examples", split.days),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _params(config: Recommender) -> dict[str, object]:
    """The settings that make one run differ from another, by their path in the YAML."""
    chosen = {"model": config.model, "training": config.training, "evaluation.split": config.evaluation.split}
    values: dict[str, object] = {"evaluation.refit": config.evaluation.refit}
    for where, part in chosen.items():
        values |= _flat(where, part.model_dump(mode="json"))
    if config.sampling.keep_negatives is not None:
        values |= _flat("sampling.keep_negatives", config.sampling.keep_negatives.model_dump(mode="json"))
    if config.segments is not None:
        values |= {"segments.by": config.segments.title, "segments.min_rows": config.segments.min_rows}
    return values


def _flat(where: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        return {where: value}
    return {key: leaf for name, inner in value.items() for key, leaf in _flat(f"{where}.{name}", inner).items()}
