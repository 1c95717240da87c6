"""How the tests here train: a small model, on few rows."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow as pa

from recsys_moe.config import TrainingConfig
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.training import Fitted, fit
from tests.recsys_moe.conftest import model_config

TRAINING = TrainingConfig(batch_size=256, learning_rate=5e-3, embedding_learning_rate=0.2, device="cpu", threads=1)


def changed(encoder: Encoder, dispatch: str = "sparse", **changes: object) -> Encoder:
    """The encoder with another config, and experts computed in one way: timing could choose either."""
    other = copy.copy(encoder)
    experts = encoder.config.experts.model_copy(update={"dispatch": dispatch})
    other.config = encoder.config.model_copy(update={"experts": experts, **changes})
    return other


def small_encoder(rows: pa.Table, previous: Encoder | None = None) -> Encoder:
    """An encoder of these rows, with one way of computing experts."""
    return changed(Encoder.fit(model_config(), rows.to_batches(), previous))


def weighted(rows: pa.Table) -> pa.Table:
    """Every second row counts five times."""
    return rows.append_column("row_weight", pa.array(1.0 + 4.0 * (np.arange(rows.num_rows) % 2)))


def fit_on(encoder: Encoder, rows: pa.Table, training: TrainingConfig, **more: object) -> Fitted:
    """Fit on raw rows, in one process."""
    loader = Loader(encoder, encoder.encode(rows), training.batch_size, shuffle=training.seed)
    return fit(encoder.config, training, encoder, loader, **more)
