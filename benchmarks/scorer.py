"""`python -m benchmarks.scorer SIZES`: our scoring and our forward pass, measured on request (benchmarks.peers.worker).

`factorised` and `factorised bf16` are `score_top_n` as the product calls it, from raw columns to lists. `forward` is
the model on encoded pairs with the experts that they chose, `dense` with all; `peak` is a large matrix product.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Self, cast, get_args

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from benchmarks.peers.worker import Channel, Measure
from benchmarks.peers.workload import Workload
from recsys_moe.batch import Batch
from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import ModelConfig
from recsys_moe.encoding import Encoder
from recsys_moe.encoding.moments import Scaler
from recsys_moe.memory import keep_freed_memory
from recsys_moe.presets import with_preset
from recsys_moe.scoring import Blend, Precision, TopN, score_top_n

KEPT = 10
"""The length of lists whose change by rounding is told."""


@dataclass(frozen=True)
class Sizes:
    """How much is scored: `candidates` of `items`, drawn for each of `users`.

    A forward pass is of `rows` pairs, which are gone through `repeats` times, and a product of `peak`³ is computed
    `products` times: so all last seconds, and none is lucky to fall into a quick moment of the machine.
    """

    users: int = 2000
    items: int = 5000
    candidates: int = 500
    top_n: int = 20
    rows: int = 3 * 4096
    repeats: int = 6
    peak: int = 2048
    products: int = 20

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """One line, for another process."""
        return json.dumps(asdict(self))


def model_config(workload: Workload) -> ModelConfig:
    """The best two of many experts, of the workload's sizes; every other feature is the user's."""
    model = with_preset({"preset": "mixtral", "experts": {"routed": workload.experts, "dispatch": "sparse"}})
    ids = zip(workload.ids, workload.vocabularies, strict=True)
    features: list[dict[str, Any]] = [{"name": n, "kind": "categorical", "hash_buckets": size - 1} for n, size in ids]
    features += [{"name": name, "kind": "numeric"} for name in workload.numbers]
    return ModelConfig.model_validate(
        {
            "features": [f | {"side": ("user", "item")[n % 2]} for n, f in enumerate(features)],
            "tasks": [{"name": f"task{n}"} for n in range(workload.tasks)],
            "embedding_dim": workload.dim,
            "experts": {**model["experts"], "hidden": workload.hidden},
            "towers": workload.towers,
        }
    )


class Scoring:
    """A model with random weights, users, items and each user's candidates."""

    def __init__(self, workload: Workload, sizes: Sizes) -> None:
        self.sizes, config = sizes, model_config(workload)
        scalers = {f.name: Scaler() for f in config.features if f.kind == "numeric"}
        torch.manual_seed(0)
        encoder = Encoder(config, {}, scalers)
        model = empty_model(encoder)
        torch.nn.init.normal_(cast(torch.Tensor, model.embeddings.weight))  # as large as they are once trained
        self.ranker = Ranker(encoder, model.eval().requires_grad_(False))
        self.blend = Blend({task.name: 1.0 for task in config.tasks})
        draw = np.random.default_rng(0)
        self.users, self.items = (self._rows(draw, side) for side in ("user", "item"))
        shuffled = draw.permuted(np.tile(np.arange(sizes.items), (sizes.users, 1)), axis=1)
        self.candidates: NDArray[np.int64] = shuffled[:, : sizes.candidates].copy()

    def _rows(self, draw: np.random.Generator, side: str) -> pa.Table:
        count = self.sizes.users if side == "user" else self.sizes.items
        columns = {
            f.name: draw.integers(0, f.hash_buckets, count) if f.hash_buckets else draw.normal(size=count)
            for f in self.ranker.config.features
            if f.side == side
        }
        return pa.table(columns)

    def measures(self) -> Mapping[str, Callable[[], Measure]]:
        """All of them, by name, as `Channel.serve` makes them."""
        square = torch.ones(self.sizes.peak, self.sizes.peak)
        passes: dict[str, Measure] = {
            "factorised": lambda: self.lists("fp32"),
            "factorised bf16": lambda: self.lists("bf16"),
            "forward": lambda: [self.forward("sparse") for _ in range(2 * self.sizes.repeats)],
            "dense": lambda: [self.forward("dense") for _ in range(self.sizes.repeats)],
            "peak": lambda: [square @ square for _ in range(self.sizes.products)],
        }
        return {name: partial(_itself, run) for name, run in passes.items()}

    def lists(self, precision: Precision, users: slice = slice(None), top_n: int | None = None) -> list[TopN]:
        """The best of each user's candidates."""
        found = range(self.sizes.users)[users]
        return list(
            score_top_n(
                self.ranker,
                self.users.slice(found.start, len(found)),
                self.items,
                self.candidates[users],
                self.blend,
                top_n or self.sizes.top_n,
                precision=precision,
            )
        )

    @cached_property
    def batches(self) -> list[Batch]:
        """Encoded pairs: the first users' candidates."""
        user = np.arange(self.sizes.rows) // self.sizes.candidates
        item = self.candidates.ravel()[: self.sizes.rows]
        users, items = self.users.take(user), self.items.take(item)
        joined = pa.table({name: table[name] for table in (users, items) for name in table.column_names})
        encoded = self.ranker.encoder.encode(joined)
        parts = (encoded.slice(at, Workload.rows) for at in range(0, self.sizes.rows, Workload.rows))
        return [self.ranker.encoder.to_batch(part) for part in parts]

    @torch.inference_mode()
    def forward(self, dispatch: str) -> NDArray[np.float32]:
        """[rows, T] probabilities."""
        model = self.ranker.model
        model.experts.dispatch = dispatch
        return np.concatenate([model.probabilities(model(batch)[0]).numpy() for batch in self.batches])

    @torch.inference_mode()
    def experts_per_row(self) -> float:
        """How many experts a pair runs, for all its tasks together."""
        batch, model = self.batches[0], self.ranker.model
        _, routing = model(batch)
        runs = torch.zeros(len(batch), model.experts.layout.total).scatter_(1, routing.experts.flatten(1), 1.0)
        return float(runs.sum() / len(batch))

    def errors(self) -> dict[str, float]:
        """How far scores are from those of the forward pass, and how much of a list rounding keeps."""
        whole = self.sizes.rows // self.sizes.candidates
        users = slice(0, max(1, whole))
        plain = self.forward("sparse")
        said: dict[str, float] = {"spread_of_logits": float(_logit(plain).std())}
        lists = {}
        for precision in get_args(Precision):
            found = self.lists(precision, users, self.sizes.candidates)
            scores = np.concatenate([best.task_scores for best in found])
            order = np.concatenate([np.lexsort((best.item, best.user)) for best in found])
            places = np.argsort(self.candidates[users], axis=1)
            expected = np.take_along_axis(
                plain[: places.size].reshape(*places.shape, -1), places[..., None], axis=1
            ).reshape(places.size, -1)
            said[f"largest_error_{precision}"] = float(np.abs(_logit(scores[order]) - _logit(expected)).max())
            lists[precision] = {(u, i) for best in found for u, i in _first(best)}
        said["kept_of_top_10_in_bf16"] = len(lists["fp32"] & lists["bf16"]) / len(lists["fp32"])
        return said


def _itself(measure: Measure) -> Measure:
    return measure


def _first(best: TopN) -> list[tuple[int, int]]:
    listed = best.rank <= KEPT
    return list(zip(best.user[listed].tolist(), best.item[listed].tolist(), strict=True))


def _logit(chance: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = chance.astype(np.float64)
    return np.asarray(np.log(wide) - np.log1p(-wide))


def main(workload: str, sizes: str) -> None:
    """Measure what is asked for; last comes what the model runs, and how exact it is."""
    channel = Channel()
    keep_freed_memory()
    scoring = Scoring(Workload.from_json(workload), Sizes.from_json(sizes))
    channel.say(torch=torch.__version__)
    channel.serve(scoring.measures())
    channel.say(experts_per_row=scoring.experts_per_row(), **scoring.errors())


if __name__ == "__main__":
    main(*sys.argv[1:])
