"""What a version's experts do on the test rows: numbers, tables and pictures for its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pipelines import figures
from recsys_moe.checkpoint import Ranker
from recsys_moe.encoding import Loader
from recsys_moe.explain import SEGMENT_FEATURE, gate_strengths, input_widths
from recsys_moe.knock_out import KnockOut, knock_out
from recsys_moe.routing import RoutingReport, routing_report

KNOCK_OUT_ROWS = 20_000
"""Rows, drawn with a fixed seed, over which experts are taken out one by one."""
_BATCH_ROWS = 8192
_KNOCK_OUT_BATCH = 2048
"""Fewer, since what every expert says of every row is held."""
_STRENGTH_ROWS = 5_000
"""Rows of those, over which it is measured what moves the gates."""
_SHOWN_SEGMENTS = 16


@dataclass(frozen=True)
class ExpertHealth:
    """Who is used, over all test rows, what each expert is worth and what moves the gates, over a sample of them.

    Attributes:
        strength: [T, F + 1] how much each feature moves a task's gate, see `gate_strengths`.
    """

    segment_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    routing: RoutingReport
    knock_out: KnockOut
    strength: Tensor

    @classmethod
    def of(cls, ranker: Ranker, rows: pa.Table, users: NDArray[Any]) -> ExpertHealth:
        """Measure on raw rows with labels; `users` [rows] says whose each is."""
        encoder, encoded = ranker.encoder, ranker.encoder.encode(rows)
        routing = routing_report(ranker.model, Loader(encoder, encoded, _BATCH_ROWS).batches())
        drawn = _drawn(encoded.num_rows)
        sample = encoded.take(drawn)
        worth = knock_out(ranker.model, Loader(encoder, sample, _KNOCK_OUT_BATCH).batches(), users[drawn])
        features = (*(name for name, _ in input_widths(ranker.config)), SEGMENT_FEATURE)
        return cls(encoder.segment_names, features, routing, worth, _strength(ranker, sample))

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
                "low": _by_name(worth.low, experts, tasks),
                "high": _by_name(worth.high, experts, tasks),
            },
            "gate_features": _by_name(self.strength, tasks, self.feature_names),
        }

    def pictures(self) -> dict[str, Figure]:
        """Pictures by name; of what this model has."""
        routing, worth, tasks = self.routing, self.knock_out, self.routing.task_names
        drawn, experts = {}, routing.expert_names
        if len(experts) > 1:
            title = "Weight of each expert by task, test days"
            drawn["gate_weights"] = figures.gate_weights(title, tasks, experts, routing.weight.numpy())
            drawn["gate_features"] = figures.gate_features(tasks, self.feature_names, self.strength.numpy())
        if worth.rise.isfinite().any():
            percent = [(100 * part / worth.loss).numpy() for part in (worth.rise, worth.low, worth.high)]
            drawn["knock_out"] = figures.knock_out(tasks, worth.expert_names, *percent)
        return drawn | self._pictures_by_segment()

    def _pictures_by_segment(self) -> dict[str, Figure]:
        """Those that have a row for all rows together, and one for each of the largest segments."""
        routing, rows = self.routing, self.routing.rows.numpy()
        seen = [number for number in np.argsort(-rows, kind="stable")[:_SHOWN_SEGMENTS] if rows[number]]
        names = ["all rows", *(figures.with_rows(self.segment_names[number], rows[number]) for number in seen)]
        drawn = {}
        if routing.routed_names:
            load = np.concatenate([routing.load.numpy()[None], routing.load_by_segment.numpy()[seen]])
            drawn["expert_load"] = figures.expert_load(routing.task_names, names, load)
        if len(seen) > 1 and len(routing.expert_names) > 1:
            weights = np.concatenate([routing.weight.numpy()[None], routing.weight_by_segment.numpy()[seen]])
            for number, task in enumerate(routing.task_names):
                title = f"{task}: weight of each expert by segment, test days"
                of_task = figures.gate_weights(title, names, routing.expert_names, weights[:, number])
                drawn[f"gate_weights_by_segment/{task}"] = of_task
        return drawn


def _strength(ranker: Ranker, sample: pa.Table) -> Tensor:
    """Over some rows of the sample; their order is that of the days, so they are taken evenly."""
    few = sample.take(np.arange(0, sample.num_rows, -(-sample.num_rows // _STRENGTH_ROWS)))
    batch = ranker.encoder.to_batch(few)
    with torch.no_grad():
        return gate_strengths(ranker.model, ranker.model.inputs(batch), batch.segment)


def _drawn(rows: int) -> NDArray[np.int64]:
    """Positions of `KNOCK_OUT_ROWS` rows at most, in order."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:KNOCK_OUT_ROWS])


def _by_name(values: Tensor, *axes: Sequence[str]) -> Any:
    """Nested dictionaries, a level for each dimension of the tensor; NaN becomes None."""
    if axes:
        return {name: _by_name(part, *axes[1:]) for name, part in zip(axes[0], values, strict=True)}
    value = values.item()
    return value if value == value else None
