"""How soon a warm start is as good as a cold one, on the demo's simulated marketplace.

The champion learns from the days 1 to d. Then day d + 1 is there: a cold run learns from the days 1 to d + 1, a warm
one begins with the champion and learns from day d + 1 and a sample of the days before, with the usual settings of
`training.warm_start`. Both are validated on day d + 2, as they go on. The warm one is as good when its validation loss
is no higher than the cold one's at its end; `steps_share` is how many steps that takes, over all of the cold one's.

Losses of two seeds differ by more than those of a warm and a cold run. So `steps_share` is of the means over the seeds,
and `difference` says how sure it is.
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
from pipelines.split import sample
from pipelines.tables import Tables
from recsys_moe.checkpoint import Ranker
from recsys_moe.config import ModelConfig, TrainingConfig, WarmStart
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.errors import UserError
from recsys_moe.training import Fitted, fit

log = logging.getLogger(__name__)

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
VALIDATIONS = 5
"""How often the validation loss is taken over a run. A warm one keeps a share of its start's weights at its end: more
would tell little."""

Curve = list[dict[str, float]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Sizes, and where the files go."""
    parser.add_argument("--days", type=int, default=13, help="that the champion learns from (13)")
    parser.add_argument("--rows", type=int, default=15_000, help="of each day (15,000)")
    parser.add_argument("--seeds", type=int, default=3, help="of the first weights and the order of rows (3)")
    parser.add_argument("--folder", type=Path, default=Path("var/benchmarks"), help="for the files (var/benchmarks)")


def run(days: int, rows: int, seeds: int, folder: Path) -> dict[str, Any]:
    """Mean curves over the seeds, and how soon the warm one is where the cold one ends.

    Raises:
        UserError: too few days, rows or seeds to say anything.
    """
    if days < 1 or rows < 1000 or seeds < 2:
        raise UserError("--days must be at least 1, --rows at least 1000 and --seeds at least 2")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        world = World.of(Path(scratch), days, rows)
        measured = [world.measure(seed) for seed in range(seeds)]
    cold, warm = (mean_curve([one[name] for one in measured]) for name in ("cold", "warm"))
    last = np.array([[one[name][-1]["loss"] for name in ("cold", "warm")] for one in measured])
    return {
        "days": days,
        "rows_per_day": rows,
        "seeds": seeds,
        "settings": world.settings.model_dump(),
        "steps_share": steps_share(cold, warm),
        "steps_share_of_seeds": [steps_share(one["cold"], one["warm"]) for one in measured],
        "cold_loss": interval(last[:, 0]),
        "warm_loss": interval(last[:, 1]),
        "difference": interval(last[:, 1] - last[:, 0]),
        "champion_loss": interval(np.array([one["champion"][-1]["loss"] for one in measured])),
        "curves": {"cold": cold, "warm": warm},
    }


def table(result: Mapping[str, Any]) -> str:
    """The share, and both mean curves."""
    lines = [f"steps_share {result['steps_share']} (of the seeds: {result['steps_share_of_seeds']})"]
    for name, points in result["curves"].items():
        lines += ["", name, *(f"{point['step']:>8.0f}  {point['loss']:.5f}" for point in points)]
    return "\n".join(lines)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves whose steps are the same."""
    return [
        {"step": points[0]["step"], "loss": float(np.mean([point["loss"] for point in points]))}
        for points in zip(*curves, strict=True)
    ]


def steps_share(cold: Curve, warm: Curve) -> float | None:
    """The warm run's steps to the cold one's last validation loss, over the cold one's; None if it never gets there."""
    steps = [point["step"] for point in warm if point["loss"] <= cold[-1]["loss"]]
    return steps[0] / cold[-1]["step"] if steps else None


@dataclass(frozen=True)
class World:
    """Prepared days: those that the champion learns from, one more to learn from, and one to validate on.

    `replayed` are the rows of the known days that a warm start learns again.
    """

    shape: ModelConfig
    training: TrainingConfig
    settings: WarmStart
    known: pa.Table
    replayed: pa.Table
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
        dates = sorted(tables.days("examples"))
        *learned, new, held_out = [tables.read_day("examples", day) for day in dates]
        known, settings = _joined(learned), WarmStart()
        replayed = sample(config, known, settings.replay * new.num_rows / known.num_rows, dates[-1])
        training = config.training.model_copy(update={"threads": 1, "device": "cpu", "warm_start": settings})
        shape = model_config(config, sides_of(config, tables))
        return cls(shape, training, settings, known, replayed, new, held_out)

    def measure(self, seed: int) -> dict[str, Curve]:
        """The validation losses by step of the champion, of a cold run and of a warm one."""
        training = self.training.model_copy(update={"seed": seed})
        first = Encoder.fit(self.shape, self.known.to_batches())
        fitted, before = self._fit(first, self.known, training)
        champion = Ranker(first, fitted.model, fitted.table_sums)
        whole = _joined([self.known, self.new])
        _, cold = self._fit(Encoder.fit(self.shape, whole.to_batches()), whole, training)
        grown = Encoder.fit(self.shape, whole.to_batches(), champion.encoder)
        _, warm = self._fit(grown, _joined([self.replayed, self.new]), training, champion)
        log.info("seed %d: cold %.5f, warm %.5f", seed, cold[-1]["loss"], warm[-1]["loss"])
        return {"champion": before, "cold": cold, "warm": warm}

    def _fit(
        self, encoder: Encoder, rows: pa.Table, training: TrainingConfig, start: Ranker | None = None
    ) -> tuple[Fitted, Curve]:
        points: Curve = []

        def on_validation(record: dict[str, float]) -> None:
            points.append({"step": record["step"], "loss": record["validation/loss"]})

        fitted = fit(
            self.shape,
            training.model_copy(update={"validations": VALIDATIONS}),
            encoder,
            _loader(encoder, rows, training, training.seed),
            validation=_loader(encoder, self.held_out, training, None),
            start=start,
            on_validation=on_validation,
        )
        return fitted, points


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
