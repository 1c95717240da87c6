"""Simple models that are measured beside ours, on the same rows: one that does not beat them is not worth serving.

All are fitted to the same sample of what the model learned from, see `sample`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import pyarrow as pa

from pipelines.baselines.boosting import Boosting
from pipelines.baselines.networks import Network
from pipelines.baselines.popularity import Popularity
from pipelines.baselines.sample import Sample, Scores
from pipelines.config import Recommender
from pipelines.split import Split
from pipelines.tables import Tables
from recsys_moe.checkpoint import Ranker
from recsys_moe.errors import UserError

__all__ = ["Baseline", "Boosting", "Network", "Popularity", "Sample", "fitted"]

log = logging.getLogger(__name__)


class Baseline(Protocol):
    """A fitted model."""

    @property
    def name(self) -> str:
        """What it is called in the YAML and in results."""
        ...

    def predict(self, table: pa.Table) -> Scores:
        """By task, [rows] what it says of examples: a probability (of a task and those it is given), or the value."""
        ...


_FIT: Mapping[str, Callable[[Sample], Baseline]] = {
    "popularity": Popularity.of,
    "shared_bottom": Network.shared_bottom,
    "dense": Network.dense,
    "boosting": Boosting.of,
}


def fitted(config: Recommender, tables: Tables, split: Split, beside: Ranker) -> dict[str, Baseline]:
    """The baselines that the YAML names, by name, fitted to a sample of what the model `beside` them learned from.

    One that cannot be fitted with the model's settings is left out, and the log says why.

    Raises:
        UserError: `evaluation.baselines.max_rows` allows for no user.
    """
    wanted = config.evaluation.baselines.models
    if not wanted:
        return {}
    sample = Sample.of(config, tables, split, beside)
    found: dict[str, Baseline] = {}
    for name in wanted:
        start = time.perf_counter()
        try:
            found[name] = _FIT[name](sample)
        except UserError as error:
            log.warning("baseline %s is left out: %s", name, error)
            continue
        seconds = time.perf_counter() - start
        log.info("baseline %s: fitted to %d rows in %.1f s", name, sample.learned.num_rows, seconds)
    return found
