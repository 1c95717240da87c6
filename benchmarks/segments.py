"""What segments are worth, on a made-up world whose best attainable AUC is known (`segment_world`).

Two questions, each over several seeds: a world, its rows and a model's first weights of each.

- *Tastes*: segments that like different things. How much of the gap between one network for all and the best
  attainable AUC do experts per segment close, and do routed experts lose anything against running all of them?
- *Newcomers*: some segments are never seen in training and some have a few rows. How do they fare, against the same
  model without segments?

All models of a seed see the same rows in the same order, once, with the same optimizer.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.intervals import interval
from benchmarks.segment_world import FEATURES, TASKS, World
from recsys_moe.checkpoint import Ranker
from recsys_moe.config import ColumnSegments, ModelConfig, Segments, TrainingConfig
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.errors import UserError
from recsys_moe.metrics import auc
from recsys_moe.presets import with_preset
from recsys_moe.routing import RoutingReport, routing_report
from recsys_moe.training import fit

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

SMALL, WIDE = (16, 8), (144, 56)
"""Widths of an expert: of all models here, and of one network whose work per row is that of `segmented`."""

OWN_TASTES, RELATED_TASTES = 0.2, 0.5
"""Share of tastes' variance that segments have in common, where they differ and where a newcomer is to be served: one
who has nothing in common with anybody gets a random ranking from any model."""

Values = Mapping[str, Any]
TASTES: Mapping[str, Values] = {
    "shared_bottom": {"preset": "shared_bottom", "experts": {"hidden": SMALL}},
    "segmented": {"preset": "segmented", "experts": {"hidden": SMALL}},
    "segmented, all 16 run": {"preset": "segmented", "experts": {"hidden": SMALL, "top_k": 16}},
    "shared_bottom, equal work": {"preset": "shared_bottom", "experts": {"hidden": WIDE}},
}

SEGMENTS = 8
REGIONS = {"known": range(8), "thin": range(8, 16), "unseen": range(16, 24)}
"""Segments of the world with newcomers. There are many, since each is luck for itself."""
THIN_ROWS = 50
"""Training rows of each thin segment."""
NEWCOMERS: Mapping[str, int | None] = {"no segments": None, "segments": 1000, "segments, min_rows 50": THIN_ROWS}
"""`min_rows` of each model: the thin segment falls to the unknown one, or has an expert of its own."""

TRAINING = TrainingConfig(
    batch_size=2048,
    learning_rate=0.02,
    embedding_learning_rate=0.2,
    learning_rate_decay=0.9,
    device="cpu",
    threads=1,
)


@dataclass(frozen=True)
class Size:
    """How much a run takes: rows of a training window of each part, and of each test set."""

    tastes: int = 1_600_000
    newcomers: int = 300_000
    test: int = 100_000


FULL = Size()


def model_config(values: Values, min_rows: int | None = 1000) -> ModelConfig:
    """A model of the world's rows; with `min_rows` None it has no segments, and reads the region all the same."""
    model = with_preset(values)
    model.pop("preset")
    segments = Segments(by=ColumnSegments(column="region"), min_rows=min_rows) if min_rows else None
    return ModelConfig.model_validate({"features": FEATURES, "tasks": TASKS, "segments": segments, **model})


def fit_on(config: ModelConfig, rows: pa.Table, seed: int) -> Ranker:
    """Fit a model to rows, each seen once and in their order, which is random already."""
    training = TRAINING.model_copy(update={"seed": seed})
    encoder = Encoder.fit(config, rows.to_batches())
    encoded = encoder.encode(rows)
    start = time.perf_counter()
    fitted = fit(config, training, encoder, Loader(encoder, encoded, training.batch_size))
    log.info("fitted in %.0f s", time.perf_counter() - start)
    return Ranker(encoder, fitted.model)


def aucs(rows: pa.Table, scores: Mapping[str, Any]) -> dict[str, float]:
    """AUC of each task's scores on the rows' labels."""
    return {task.name: auc(np.asarray(rows[f"label_{task.name}"]), np.asarray(scores[task.name])) for task in TASKS}


def best_aucs(rows: pa.Table) -> dict[str, float]:
    """AUC of the true probabilities, which no model can beat but by luck."""
    return aucs(rows, {task.name: rows[f"probability_{task.name}"] for task in TASKS})


def model_aucs(ranker: Ranker, rows: pa.Table) -> dict[str, float]:
    """AUC of a model's probabilities."""
    return aucs(rows, dict(zip((task.name for task in TASKS), ranker.predict(rows).T, strict=True)))


def routing_on(ranker: Ranker, rows: pa.Table) -> RoutingReport:
    """Which experts the rows use."""
    loader = Loader(ranker.encoder, ranker.encoder.encode(rows), TRAINING.batch_size)
    return routing_report(ranker.model, loader.batches())


def multiply_adds(ranker: Ranker, rows: pa.Table) -> float:
    """Multiplications per row of gates, towers and the experts that the rows run, a routed one counted once a row."""
    config, layout, inputs = ranker.config, ranker.model.experts.layout, ranker.model.input_dim
    first, last = config.experts.hidden
    (tower,), rank = config.towers, config.experts.segment_rank
    _, routing = ranker.model(ranker.encoder.to_batch(ranker.encoder.encode(rows)))
    chosen = np.sort(routing.chosen.flatten(1).numpy(), axis=1)
    routed = float(np.mean(np.sum(np.diff(chosen, axis=1) > 0, axis=1) + 1)) if layout.routed else 0.0
    experts = (layout.num_always + layout.per_segment + routed) * (inputs * first + first * last)
    change = layout.per_segment * rank * (inputs + first + first + last)
    gates_and_towers = len(TASKS) * (inputs * layout.total + tower * (last + 1))
    return experts + change + gates_and_towers


def tastes(seed: int, names: Iterable[str] = TASTES, size: Size = FULL) -> dict[str, dict[str, Any]]:
    """Fit the models of `TASTES` on one seed's world.

    Returns: by name `auc` of each task, `multiply_adds` a row and, where experts are routed, the `idlest` one's load,
        as a share of a fair one. `best` has the best attainable AUCs.
    """
    world = World.of(seed, SEGMENTS, OWN_TASTES)
    rows, test = world.rows(size.tastes, seed, 0), world.rows(size.test, seed, 1)
    found: dict[str, dict[str, Any]] = {"best": {"auc": best_aucs(test)}}
    for name in names:
        ranker = fit_on(model_config(TASTES[name]), rows, seed)
        found[name] = {"auc": model_aucs(ranker, test), "multiply_adds": multiply_adds(ranker, test.slice(0, 10_000))}
        if ranker.config.experts.routed:
            load = routing_on(ranker, test).union_load
            found[name]["idlest"] = float(load.min() * len(load))
        log.info(
            "seed %d, %s: click AUC %.4f of %.4f",
            seed,
            name,
            found[name]["auc"]["click"],
            found["best"]["auc"]["click"],
        )
    return found


def newcomers(seed: int, names: Iterable[str] = NEWCOMERS, size: Size = FULL) -> dict[str, dict[str, float]]:
    """Fit the models of `NEWCOMERS` on rows of the known segments, and a few of the thin ones.

    Returns: by name the click AUC on the rows of a segment, the mean over the `known`, the `thin` and the `unseen`
        ones. `best` has the best attainable.
    """
    world = World.of(seed, sum(map(len, REGIONS.values())), RELATED_TASTES)
    parts = [world.rows(size.newcomers, seed, 2, regions=REGIONS["known"])]
    parts += [world.rows(THIN_ROWS, seed, 3, region, regions=[region]) for region in REGIONS["thin"]]
    rows = pa.concat_tables(parts)
    rows = rows.take(pa.array(np.random.default_rng([seed, 4]).permutation(rows.num_rows)))
    tests = [
        world.rows(size.test // world.segments, seed, 5, region, regions=[region]) for region in range(world.segments)
    ]
    found = {"best": _by_kind([best_aucs(test)["click"] for test in tests])}
    for name in names:
        ranker = fit_on(model_config(TASTES["segmented"], NEWCOMERS[name]), rows, seed)
        found[name] = _by_kind([model_aucs(ranker, test)["click"] for test in tests])
        log.info("seed %d, %s: %s", seed, name, found[name])
    return found


def _by_kind(of_region: Sequence[float]) -> dict[str, float]:
    return {kind: float(np.mean([of_region[region] for region in regions])) for kind, regions in REGIONS.items()}


def closed_gap(found: Mapping[str, Any], name: str) -> float:
    """Share of the gap in click AUC from `shared_bottom` to the best attainable that a model closes."""
    best, base, own = (found[key]["auc"]["click"] for key in ("best", "shared_bottom", name))
    return float((own - base) / (best - base))


def routed_loss(found: Mapping[str, Any]) -> float:
    """Click AUC that is lost by running the best two of sixteen experts and not all of them."""
    return float(found["segmented, all 16 run"]["auc"]["click"] - found["segmented"]["auc"]["click"])


def summarise_tastes(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means with intervals over seeds, the work of a row, and the idlest routed expert of all seeds."""
    models = {}
    for name, first in seeds[0].items():
        auc_of = {t.name: over_seeds(found[name]["auc"][t.name] for found in seeds) for t in TASKS}
        models[name] = {
            "auc": auc_of,
            "closed": over_seeds(closed_gap(found, name) for found in seeds),
            "multiply_adds": float(np.mean([found[name].get("multiply_adds", 0.0) for found in seeds])),
        }
        if "idlest" in first:
            models[name]["idlest"] = min(found[name]["idlest"] for found in seeds)
    return {"seeds": len(seeds), "models": models, "routed_loss": over_seeds(map(routed_loss, seeds))}


def summarise_newcomers(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means with intervals over seeds, and those of the differences from `no segments`, taken within each seed."""
    models = {}
    for name, first in seeds[0].items():
        models[name] = {
            kind: {
                "auc": over_seeds(found[name][kind] for found in seeds),
                "above_no_segments": over_seeds(found[name][kind] - found["no segments"][kind] for found in seeds),
            }
            for kind in first
        }
    return {"seeds": len(seeds), "models": models}


def over_seeds(values: Iterable[float]) -> dict[str, float]:
    """Mean and 95 % interval of one number per seed."""
    return interval(np.fromiter(values, np.float64))


def run(seeds: int, newcomer_seeds: int, rows: int, newcomer_rows: int) -> dict[str, Any]:
    """Fit all models on all seeds.

    Raises:
        UserError: too few seeds for an interval, or too few rows to say anything.
    """
    if min(seeds, newcomer_seeds) < 2 or min(rows, newcomer_rows) < 10_000:
        raise UserError("--seeds and --newcomer-seeds must be at least 2, --rows and --newcomer-rows at least 10000")
    start, size = time.perf_counter(), Size(rows, newcomer_rows)
    return {
        "benchmark": "segments",
        "rows": rows,
        "newcomer_rows": newcomer_rows,
        "thin_rows": THIN_ROWS,
        "test_rows": size.test,
        "tastes": summarise_tastes([tastes(seed, size=size) for seed in range(seeds)]),
        "newcomers": summarise_newcomers([newcomers(seed, size=size) for seed in range(newcomer_seeds)]),
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(result: Mapping[str, Any]) -> str:
    """Two tables, as in `docs/segments.md`: mean and half width of the interval."""
    tastes_rows = [["click AUC", "", "gap closed", "products a row", "idlest expert"]]
    for name, model in result["tastes"]["models"].items():
        idlest = f"{model['idlest']:.2f} of fair" if "idlest" in model else ""
        work = f"{model['multiply_adds']:,.0f}" if name != "best" else ""
        tastes_rows.append([name, _shown(model["auc"]["click"]), _shown(model["closed"], 3), work, idlest])
    kinds = ("unseen", "thin", "known")
    newcomer_rows = [["click AUC on", *kinds], *([name] for name in result["newcomers"]["models"])]
    for row, model in zip(newcomer_rows[1:], result["newcomers"]["models"].values(), strict=True):
        row += [_shown(model[kind]["auc"]) for kind in kinds]
        if row[0] not in ("best", "no segments"):
            newcomer_rows.append([f"{row[0]}: gain", *(_shown(model[kind]["above_no_segments"]) for kind in kinds)])
    loss = f"running two of sixteen experts loses {_shown(result['tastes']['routed_loss'])} click AUC"
    return "\n".join([_aligned(tastes_rows), "", loss, "", _aligned(newcomer_rows)])


def _shown(value: Mapping[str, float], digits: int = 4) -> str:
    return f"{round(value['mean'], digits) + 0.0:.{digits}f} ± {value['high'] - value['mean']:.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options are the arguments of `run`."""
    parser.add_argument("--seeds", type=int, default=5, help="worlds of segments that differ (%(default)s)")
    parser.add_argument("--newcomer-seeds", type=int, default=12, help="worlds with new segments (%(default)s)")
    parser.add_argument("--rows", type=int, default=FULL.tastes, help="to train on (%(default)s)")
    parser.add_argument("--newcomer-rows", type=int, default=FULL.newcomers, help="the same (%(default)s)")
