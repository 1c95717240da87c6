"""One training that several files look at and go on from."""

from __future__ import annotations

import pytest

from recsys_moe.encoding import Encoder, Loader
from recsys_moe.training import Fitted
from tests.recsys_moe.conftest import raw_rows
from tests.recsys_moe.training.fitting import TRAINING, fit_on, small_encoder


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return small_encoder(raw_rows(12_000))


@pytest.fixture(scope="session")
def fitted(encoder: Encoder) -> Fitted:
    """Three epochs, each followed by a validation."""
    training = TRAINING.model_copy(update={"epochs": 3})
    held_out = encoder.encode(raw_rows(2_000, seed=1))
    return fit_on(encoder, raw_rows(12_000), training, validation=Loader(encoder, held_out, 512))
