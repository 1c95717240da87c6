"""Six architectures on the same real days, KuaiRand-Pure: AUC and GAUC of three tasks over several seeds.

Only the mixture differs: features, optimizer, rows, order of rows and steps are the same for all. Models without an
expert for segments have the segment's column as an ordinary feature, which all of them have; ours hides it in a share
of its training rows. `segmented` is the model
of configs/kuairand.yaml, the others are presets with its hidden sizes, and `dense` is one network as wide as makes
the same number of multiplications a row.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.intervals import interval
from pipelines.catalog import model_config
from pipelines.config import Recommender, load
from pipelines.config.steps import ModelShape
from pipelines.evaluate import scores_of
from pipelines.held_out import HeldOut
from pipelines.ingest import ingest
from pipelines.predictions import Scores
from pipelines.prepare import prepare, sides_of
from pipelines.split import Split
from pipelines.tables import Tables
from recsys_moe.checkpoint import Ranker
from recsys_moe.compute import multiplications, widened
from recsys_moe.config import ModelConfig
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.errors import UserError
from recsys_moe.memory import keep_freed_memory
from recsys_moe.training import fit

log = logging.getLogger(__name__)

CONFIG = Path(__file__).parent.parent / "configs" / "kuairand.yaml"
FIRST_DAY, LAST_DAY = date(2022, 4, 25), date(2022, 5, 6)
OURS = "segmented"
EQUAL: Mapping[str, Mapping[str, Any]] = {
    "all_of_8": {"preset": "mmoe", "experts": {"shared": 8}},
    "4_and_2_of_4": {
        "experts": {"shared": 4, "per_task": 0, "per_segment": 0, "routed": 4, "top_k": 2},
        "gates": {"routing": "example"},
    },
    "all_of_16": {"preset": "mmoe", "experts": {"shared": 16}},
    "2_of_16": {"preset": "mixtral", "experts": {"routed": 16}, "gates": {"routing": "example"}},
    "all_of_8_by_user": {"preset": "mmoe", "experts": {"shared": 8}, "gates": {"input": "user"}},
    "4_and_2_of_4_by_user": {
        "experts": {"shared": 4, "per_task": 0, "per_segment": 0, "routed": 4, "top_k": 2},
        "gates": {"routing": "example", "input": "user"},
    },
}
"""As many experts of one size: all for every row, or the best two of some of them; with gates that read the pair, or
the user alone."""
MODELS = ("shared_bottom", "dense", "mmoe", "ple", "mixtral", OURS)
METRICS = ("auc", "gauc")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which models, how many seeds, and up to which day."""
    parser.add_argument("--models", nargs="+", choices=(*MODELS, *EQUAL), default=list(MODELS), help="which of them")
    parser.add_argument("--against", choices=(*MODELS, *EQUAL), default=OURS, help="what others are compared with")
    parser.add_argument("--seeds", type=int, default=5, help="fits of each model (5)")
    last = "the last test day; 2022-05-04 leaves the last two for the end (2022-05-06)"
    parser.add_argument("--as-of", type=date.fromisoformat, default=LAST_DAY, help=last)


def run(models: list[str] | None = None, seeds: int = 5, as_of: date = LAST_DAY, against: str = OURS) -> dict[str, Any]:
    """Fit each model with each seed and measure it on the two days up to `as_of`.

    Raises:
        UserError: there are fewer than two seeds.
    """
    if seeds < 2:
        raise UserError("--seeds: an interval needs at least 2")
    keep_freed_memory()
    config = load(CONFIG)
    config = config.model_copy(update={"training": config.training.model_copy(update={"threads": 1})})
    days = Days.of(config, as_of)
    names = models or list(MODELS)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in range(seeds):
        for name in names:
            found[name].append(days.measure(name, seed))
            log.info("seed %d, %s: %s", seed, name, found[name][-1])
    measured = {name: _summary(results, found.get(against)) for name, results in found.items()}
    rows = {"learned": days.learned.num_rows, "test": days.held_out.table.num_rows}
    return {"as_of": as_of.isoformat(), "seeds": seeds, "rows": rows, "models": measured}


def _summary(results: list[dict[str, Any]], reference: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Means with 95 % intervals of every metric, and of how far the same seed is above the reference."""
    summary: dict[str, Any] = {key: results[0][key] for key in ("parameters", "multiplications")}
    summary["seconds"] = min(result["seconds"] for result in results)
    for key in results[0]["metrics"]:
        values = [result["metrics"][key] for result in results]
        summary[key] = interval(values)
        if reference is not None and reference is not results:
            others = [result["metrics"][key] for result in reference]
            summary[f"{key}_above"] = interval([a - b for a, b in zip(values, others, strict=True)])
    return summary


@dataclass(frozen=True)
class Days:
    """Rows to learn from and rows to be measured on."""

    config: Recommender
    tables: Tables
    learned: pa.Table
    held_out: HeldOut

    @classmethod
    def of(cls, config: Recommender, as_of: date) -> Days:
        """Read the days up to `as_of`; they are ingested and prepared if they were not."""
        tables = Tables(config.storage)
        wanted = [FIRST_DAY + timedelta(days=n) for n in range((as_of - FIRST_DAY).days + 1)]
        for day in sorted({*wanted} - {*tables.days("examples")}):
            ingest(config, day)
            prepare(config, day)
        split = Split.of(config, tables.days("examples"), as_of)
        learned = pa.concat_tables(split.rows(tables, "train", "validation"), promote_options="permissive")
        return cls(config, tables, learned, HeldOut.of(config, tables, split))

    def measure(self, name: str, seed: int) -> dict[str, Any]:
        """Fit one model with one seed; its metrics, its size and how long it took."""
        scores, size = self.scores(name, seed)
        measured = self.held_out.measure(scores)
        return {
            "metrics": {f"{task}_{metric}": of[metric] for task, of in measured.items() for metric in METRICS},
            **size,
        }

    def scores(self, name: str, seed: int) -> tuple[Scores, dict[str, Any]]:
        """Fit one model with one seed; what it says of the test rows, and its size and how long it took."""
        ranker, seconds = self.fit(name, seed)
        dense = [p for name, p in ranker.model.named_parameters() if not name.startswith("embeddings.")]
        return scores_of(ranker, self.held_out), {
            "parameters": sum(p.numel() for p in dense),
            "multiplications": round(multiplications(ranker.config, ranker.model.input_dim)),
            "seconds": seconds,
        }

    def fit(self, name: str, seed: int) -> tuple[Ranker, float]:
        """Fit one model with one seed; it, and the seconds it took."""
        shape = self.shape(name)
        training = self.config.training.model_copy(update={"seed": seed})
        encoder = Encoder.fit(shape, self.learned.to_batches())
        rows = encoder.encode(self.learned)
        loader = Loader(encoder, rows, training.batch_size, shuffle=seed, buffer_rows=training.buffer_rows)
        start = time.perf_counter()
        fitted = fit(shape, training, encoder, loader)
        return Ranker(encoder, fitted.model), time.perf_counter() - start

    def shape(self, name: str) -> ModelConfig:
        """What a model of this name is made of."""
        own = self.config.model
        if name == OURS:
            return self._model_config(own, with_segments=True)
        written = EQUAL.get(name, {"preset": "shared_bottom" if name == "dense" else name})
        experts = {**written.get("experts", {}), "hidden": own.experts.hidden}
        shape = self._model_config(ModelShape.model_validate({**written, "experts": experts}), with_segments=False)
        return self._as_wide_as_ours(shape) if name == "dense" else shape

    def _model_config(self, model: ModelShape, with_segments: bool) -> ModelConfig:
        own = self.config.model
        same = {"towers": own.towers, "embedding_dim": own.embedding_dim, "min_count": own.min_count}
        changes: dict[str, Any] = {"model": model.model_copy(update=same)}
        changes |= {} if with_segments else {"segments": None}
        config = self.config.model_copy(update=changes)
        return model_config(config, sides_of(config, self.tables))

    def _as_wide_as_ours(self, shape: ModelConfig) -> ModelConfig:
        """One network whose hidden layers are widened together until a row costs as much as in ours."""
        encoder = Encoder.fit(shape, self.learned.slice(0, 1000).to_batches())
        inputs = len(encoder.vocab_sizes) * shape.embedding_dim + encoder.num_dense
        return widened(shape, inputs, multiplications(self.shape(OURS), inputs))


def table(result: Mapping[str, Any]) -> str:
    """AUC and GAUC by task with half their 95 % interval, in Markdown."""
    keys = [key for key in next(iter(result["models"].values())) if key.endswith(METRICS)]
    titles = [key.replace("_gauc", " GAUC").replace("_auc", " AUC") for key in keys]
    lines = [f"| | {' | '.join(titles)} | multiplications a row |", "|---" * (len(keys) + 2) + "|"]
    for name, found in result["models"].items():
        cells = [f"{found[key]['mean']:.4f} ± {found[key]['high'] - found[key]['mean']:.4f}" for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} | {found['multiplications'] / 1000:.0f}k |")
    return "\n".join(lines)
