"""What a version's experts do on the test rows: numbers, tables and pictures for its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pipelines import figures
from recsys_moe.checkpoint import Ranker
from recsys_moe.encoding import Loader
from recsys_moe.knock_out import KnockOut, knock_out
from recsys_moe.routing import RoutingReport, routing_report

KNOCK_OUT_ROWS = 20_000
"""Rows, drawn with a fixed seed, over which experts are taken out one by one."""
_BATCH_ROWS = 8192
_KNOCK_OUT_BATCH = 2048
"""Fewer, since what every expert says of every row is held."""


@dataclass(frozen=True)
class ExpertHealth:
    """Who is used, over all test rows, and what each expert is worth, over a sample of them."""

    segment_names: tuple[str, ...]
    routing: RoutingReport
    knock_out: KnockOut

    @classmethod
    def of(cls, ranker: Ranker, rows: pa.Table) -> ExpertHealth:
        """Measure on raw rows with labels."""
        encoder, encoded = ranker.encoder, ranker.encoder.encode(rows)
        routing = routing_report(ranker.model, Loader(encoder, encoded, _BATCH_ROWS).batches())
        sample = encoded.take(_drawn(encoded.num_rows))
        worth = knock_out(ranker.model, Loader(encoder, sample, _KNOCK_OUT_BATCH).batches())
        return cls(encoder.segment_names, routing, worth)

    def numbers(self) -> dict[str, float]:
        """Metrics: `experts/load_entropy`, `experts/load/<number>`, `experts/knock_out/<task>/<expert>` and others."""
        load = {f"load/{number}": share for number, share in enumerate(self.routing.union_load.tolist())}
        worth = {f"knock_out/{name.replace(' ', '_')}": rise for name, rise in self.knock_out.summary().items()}
        return {f"experts/{name}": value for name, value in (self.routing.summary() | load | worth).items()}

    def tables(self) -> dict[str, Any]:
        """All of it by name, for a file; what is not defined is null."""
        routing, worth = self.routing, self.knock_out
        segments, tasks = self.segment_names, routing.task_names
        experts, routed = routing.expert_names, routing.routed_names
        return {
            "segment_rows": _by_name(routing.rows, segments),
            "segment_entropy_nats": routing.segment_entropy,
            "segment_information_nats": _by_name(routing.mutual_information, tasks),
            "segment_information": _by_name(routing.segment_information, tasks),
            "gate_distance": _by_name(routing.gate_distance, tasks, tasks),
            "dead": list(routing.dead),
            "union_load": _by_name(routing.union_load, routed),
            "load": _by_name(routing.load, tasks, routed),
            "load_by_segment": _by_name(routing.load_by_segment, segments, tasks, routed),
            "weight": _by_name(routing.weight, tasks, experts),
            "weight_by_segment": _by_name(routing.weight_by_segment, segments, tasks, experts),
            "knock_out": {
                "rows": worth.rows,
                "loss": _by_name(worth.loss, tasks),
                "rise": _by_name(worth.rise, experts, tasks),
            },
        }

    def pictures(self) -> dict[str, Figure]:
        """Pictures by name; of what this model has."""
        routing, tasks, rise = self.routing, self.routing.task_names, self.knock_out.rise.numpy()
        seen = np.flatnonzero(routing.rows.numpy())
        segments = [f"{self.segment_names[number]}  ({routing.rows[number]:,} rows)" for number in seen]
        drawn = {}
        if np.isfinite(rise).any():
            drawn["knock_out"] = figures.knock_out(tasks, self.knock_out.expert_names, rise)
        if routing.routed_names:
            drawn["expert_load"] = figures.expert_load(tasks, routing.load.numpy())
        if routing.routed_names and len(seen) > 1:
            by_segment = routing.load_by_segment.numpy()[seen]
            drawn["expert_load_by_segment"] = figures.load_by_segment(tasks, segments, by_segment)
        for number, task in enumerate(tasks):
            weights = routing.weight_by_segment[:, number].numpy()[seen]
            drawn[f"gate_weights_{task}"] = figures.gate_weights(task, segments, routing.expert_names, weights)
        return drawn


def _drawn(rows: int) -> NDArray[np.int64]:
    """Positions of `KNOCK_OUT_ROWS` rows at most, in order."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:KNOCK_OUT_ROWS])


def _by_name(values: Tensor, *axes: Sequence[str]) -> Any:
    """Nested dictionaries, a level for each dimension of the tensor; NaN becomes None."""
    if axes:
        return {name: _by_name(part, *axes[1:]) for name, part in zip(axes[0], values, strict=True)}
    value = values.item()
    return value if value == value else None
