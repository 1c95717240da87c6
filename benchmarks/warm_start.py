"""How soon a warm start is as good as a cold one, on the demo's simulated marketplace.

The champion learns from the days 1 to d. Then day d + 1 is there: a cold run learns from the days 1 to d + 1, a warm
one begins with the champion and learns from day d + 1 alone, once. Both are validated on day d + 2, as they go on. The
warm one is as good when its validation loss is no higher than the cold one's at its end; `steps_share` is how many
steps that takes, over all of the cold one's.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from benchmarks.intervals import interval
from pipelines.catalog import model_config
from pipelines.config import Recommender, load
from pipelines.ingest import ingest
from pipelines.prepare import prepare, sides_of
from pipelines.simulate import simulate
from pipelines.tables import Tables
from recsys_moe.checkpoint import Ranker
from recsys_moe.config import ModelConfig, TrainingConfig
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.errors import UserError
from recsys_moe.training import fit

log = logging.getLogger(__name__)

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
VALIDATIONS = 20
"""How often the validation loss is taken over a run: a step is known to a twentieth of it."""

Curve = list[dict[str, float]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Sizes, and where the files go."""
    parser.add_argument("--days", type=int, default=6, help="that the champion learns from (6)")
    parser.add_argument("--rows", type=int, default=25_000, help="of each day (25,000)")
    parser.add_argument("--seeds", type=int, default=3, help="of the first weights and the order of rows (3)")
    parser.add_argument("--folder", type=Path, default=Path("var/benchmarks"), help="for the files (var/benchmarks)")


def run(days: int, rows: int, seeds: int, folder: Path) -> dict[str, Any]:
    """Curves of the first seed, and `steps_share` of all.

    Raises:
        UserError: too few days, rows or seeds to say anything.
    """
    if days < 1 or rows < 1000 or seeds < 2:
        raise UserError("--days must be at least 1, --rows at least 1000 and --seeds at least 2")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        world = World.of(Path(scratch), days, rows)
        measured = [world.measure(seed) for seed in range(seeds)]
    shares = [steps_share(one["cold"], one["warm"]) for one in measured]
    reached = [share for share in shares if share is not None]
    return {
        "days": days,
        "rows_per_day": rows,
        "seeds": seeds,
        "reached": len(reached),
        "steps_share": float(max(reached)) if len(reached) == seeds else None,
        "cold_loss": interval(np.array([one["cold"][-1]["loss"] for one in measured])),
        "warm_loss": interval(np.array([one["warm"][-1]["loss"] for one in measured])),
        "curves": measured[0],
    }


def table(result: Mapping[str, Any]) -> str:
    """The share, and both curves of the first seed."""
    lines = [f"steps_share {result['steps_share']} ({result['reached']} of {result['seeds']} seeds got there)"]
    for name, points in result["curves"].items():
        lines += ["", name, *(f"{point['step']:>8.0f}  {point['loss']:.5f}" for point in points)]
    return "\n".join(lines)


def steps_share(cold: Curve, warm: Curve) -> float | None:
    """The warm run's steps to the cold one's last validation loss, over the cold one's; None if it never gets there."""
    steps = [point["step"] for point in warm if point["loss"] <= cold[-1]["loss"]]
    return steps[0] / cold[-1]["step"] if steps else None


@dataclass(frozen=True)
class World:
    """Prepared days: those that the champion learns from, one more to learn from, and one to validate on."""

    shape: ModelConfig
    training: TrainingConfig
    known: pa.Table
    new: pa.Table
    held_out: pa.Table

    @classmethod
    def of(cls, folder: Path, days: int, rows: int) -> World:
        """Simulate, ingest and prepare the days, and read them."""
        config = _recommender(folder, days + 2, rows)
        tables = Tables(config.storage)
        for text in simulate(config)["days"]:
            ingest(config, date.fromisoformat(text))
            prepare(config, date.fromisoformat(text))
        read = [tables.read_day("examples", day) for day in sorted(tables.days("examples"))]
        training = config.training.model_copy(update={"threads": 1, "device": "cpu"})
        shape = model_config(config, sides_of(config, tables))
        return cls(shape, training, _joined(read[:days]), read[days], read[days + 1])

    def measure(self, seed: int) -> dict[str, Curve]:
        """The validation losses by step of a cold and a warm run."""
        training = self.training.model_copy(update={"seed": seed})
        first = Encoder.fit(self.shape, self.known.to_batches())
        fitted = fit(self.shape, training, first, _loader(first, self.known, training, seed))
        champion = Ranker(first, fitted.model, fitted.table_sums)
        whole = _joined([self.known, self.new])
        cold = self._curve(Encoder.fit(self.shape, whole.to_batches()), whole, training, None)
        grown = Encoder.fit(self.shape, whole.to_batches(), champion.encoder)
        warm = self._curve(grown, self.new, training, champion)
        log.info("seed %d: cold %.5f, warm %.5f", seed, cold[-1]["loss"], warm[-1]["loss"])
        return {"cold": cold, "warm": warm}

    def _curve(self, encoder: Encoder, rows: pa.Table, training: TrainingConfig, start: Ranker | None) -> Curve:
        points: Curve = []

        def on_validation(record: dict[str, float]) -> None:
            points.append({"step": record["step"], "loss": record["validation/loss"]})

        fit(
            self.shape,
            training.model_copy(update={"validations": VALIDATIONS}),
            encoder,
            _loader(encoder, rows, training, training.seed),
            validation=_loader(encoder, self.held_out, training, None),
            start=start,
            on_validation=on_validation,
        )
        return points


def _loader(encoder: Encoder, rows: pa.Table, training: TrainingConfig, shuffle: int | None) -> Loader:
    return Loader(encoder, encoder.encode(rows), training.batch_size, shuffle=shuffle)


def _joined(days: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(days, promote_options="permissive")


def _recommender(folder: Path, days: int, rows: int) -> Recommender:
    raw = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    raw["simulation"] |= {"days": days, "rows_per_day": rows}
    path = folder / "configs" / "demo.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load(path)
