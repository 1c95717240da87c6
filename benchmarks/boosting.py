"""Our model against gradient boosting with history on KuaiRand-Pure: is it certainly better, task by task?

Both are fitted to the same days and asked of the same rows of the two days after. Ours is the model of
configs/kuairand.yaml through the product's own code, the mean over several seeds. Differences have 95 % intervals by
drawing users: all rows of a user, for both models alike.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.booster import TASKS, boosted
from benchmarks.kuairand import CONFIG, LAST_DAY, METRICS, OURS, Days
from pipelines.config import load
from pipelines.held_out import HeldOut
from pipelines.predictions import Scores
from recsys_moe.errors import UserError
from recsys_moe.memory import keep_freed_memory
from recsys_moe.user_draws import UserDraws, over_draws

log = logging.getLogger(__name__)

Drawn = dict[str, NDArray[np.float64]]
"""By metric (`click_auc`), [draws]: its value in every draw of users."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many seeds, up to which day, and whether the booster without history is fitted too."""
    parser.add_argument("--seeds", type=int, default=5, help="fits of our model (5)")
    last = "the last test day; 2022-05-04 leaves the last two for the end (2022-05-06)"
    parser.add_argument("--as-of", type=date.fromisoformat, default=LAST_DAY, help=last)
    parser.add_argument("--static", action="store_true", help="also the booster without history")


def run(seeds: int = 5, as_of: date = LAST_DAY, static: bool = False) -> dict[str, Any]:
    """Fit the booster once and our model with every seed; measure them on the two days up to `as_of`.

    Raises:
        UserError: there is no seed.
    """
    if seeds < 1:
        raise UserError("--seeds: at least 1")
    keep_freed_memory()
    config = load(CONFIG)
    config = config.model_copy(update={"training": config.training.model_copy(update={"threads": 1})})
    days = Days.of(config, as_of)
    draws = UserDraws.of(days.held_out.users)
    ours = []
    for seed in range(seeds):
        scores, _ = days.scores(OURS, seed)
        ours.append(drawn_metrics(days.held_out, draws, scores))
        log.info("seed %d: %s", seed, {name: round(float(values[0]), 4) for name, values in ours[-1].items()})
    theirs = {"booster": drawn_metrics(days.held_out, draws, boosted(config, days.learned, days.held_out.table))}
    if static:
        scores = boosted(config, days.learned, days.held_out.table, history=False)
        theirs["booster without history"] = drawn_metrics(days.held_out, draws, scores)
    rows = {"learned": days.learned.num_rows, "test": days.held_out.table.num_rows}
    return {"as_of": as_of.isoformat(), "seeds": seeds, "rows": rows, **compared(ours, theirs)}


def drawn_metrics(held_out: HeldOut, draws: UserDraws, scores: Scores) -> Drawn:
    """AUC and GAUC of the tasks, in every draw."""
    found: Drawn = {}
    for task in TASKS:
        found[f"{task}_auc"] = draws.auc(held_out.labels[task], scores[task])
        found[f"{task}_gauc"] = draws.gauc(held_out.labels[task], scores[task])
    return found


def compared(ours: Sequence[Drawn], theirs: Mapping[str, Drawn]) -> dict[str, Any]:
    """By model, every metric with its interval, and ours above each baseline's, draw by draw."""
    mean = {name: np.mean([one[name] for one in ours], axis=0) for name in ours[0]}
    everyone = {"ours": mean, **theirs}
    return {
        "models": {model: {name: over_draws(values) for name, values in of.items()} for model, of in everyone.items()},
        "ours_above": {
            model: {name: over_draws(mean[name] - values) for name, values in of.items()}
            for model, of in theirs.items()
        },
        "seeds_apart": {name: float(np.ptp([one[name][0] for one in ours])) for name in mean},
    }


def table(result: Mapping[str, Any]) -> str:
    """AUC and GAUC by task, and the differences with their 95 % intervals, in Markdown."""
    names = [f"{task}_{metric}" for task in TASKS for metric in METRICS]
    titles = [name.replace("_gauc", " GAUC").replace("_auc", " AUC").replace("_", " ") for name in names]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(names) + 1) + "|"]
    for model, of in result["models"].items():
        cells = [f"{of[name]['mean']:.4f}" for name in names]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    for model, of in result["ours_above"].items():
        cells = [f"{of[name]['mean']:+.4f} ({of[name]['low']:+.4f} to {of[name]['high']:+.4f})" for name in names]
        lines.append(f"| ours above {model} | {' | '.join(cells)} |")
    return "\n".join(lines)
