"""A small made-up world with every kind of column, for all tests of the library."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import ColumnSegments, Experts, Feature, ModelConfig, Segments, Task
from recsys_moe.encoding import Encoder

FEATURES = (
    Feature(name="user_id", kind="categorical", side="user"),
    Feature(name="country", kind="categorical", side="user"),
    Feature(name="item_id", kind="categorical", side="item"),
    Feature(name="tags", kind="multivalued", side="item"),
    Feature(name="price", kind="numeric", side="item", transform="log1p"),
    Feature(name="hour", kind="categorical", side="context"),
    Feature(name="country_rate", kind="numeric", side="context", from_keys=("country", "item_id")),
)
TASKS = (Task(name="click"), Task(name="buy", given="click"))
COUNTRIES = np.array(["DE", "FR", "IT"])


def model_config(**changes: object) -> ModelConfig:
    """A small model with all four groups of experts, changed as said."""
    base = ModelConfig(
        features=FEATURES,
        tasks=TASKS,
        segments=Segments(by=ColumnSegments(column="country"), min_rows=1),
        embedding_dim=4,
        experts=Experts(shared=2, per_task=1, per_segment=1, routed=4, top_k=2, hidden=(16, 8), segment_rank=2),
        towers=(8,),
    )
    return base.model_copy(update=changes)


def raw_rows(rows: int, seed: int = 0) -> pa.Table:
    """Rows whose click is decided by country × item parity, a taste that differs in kind between the segments."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 60, rows), rng.integers(0, 40, rows)
    country = user % 3
    likes = np.select([country == 0, country == 1], [item % 2 == 0, item % 2 == 1], item < 20)
    click = rng.random(rows) < np.where(likes, 0.9, 0.1)
    buy = click & (rng.random(rows) < np.where(item % 5 == 0, 0.8, 0.2))
    return pa.table(
        {
            "user_id": [f"u{n}" for n in user],
            "country": COUNTRIES[country],
            "item_id": pa.array(item),
            "tags": [[f"t{n % 4}", f"t{n % 7}"] for n in item],
            "price": (item * 1.5) + 1,
            "hour": rng.integers(0, 24, rows),
            "country_rate": rng.random(rows),
            "label_click": click.astype(np.float32),
            "label_buy": buy.astype(np.float32),
        }
    )


@pytest.fixture(scope="session")
def rows() -> pa.Table:
    return raw_rows(2000)


@pytest.fixture(scope="session")
def encoder(rows: pa.Table) -> Encoder:
    return Encoder.fit(model_config(), rows.to_batches(max_chunksize=300))


@pytest.fixture
def ranker(encoder: Encoder) -> Ranker:
    """Random weights everywhere, in places that start at zero too."""
    torch.manual_seed(0)
    model = empty_model(encoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        model.gates.segment_embedding[0] = 0
    return Ranker(encoder, model.eval().requires_grad_(False))
