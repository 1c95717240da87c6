"""Settings that do not go together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from recsys_moe.config import TrainingConfig


def test_embeddings_are_taken_over_or_forgotten() -> None:
    with pytest.raises(ValidationError, match="fresh_tables would forget"):
        TrainingConfig(epochs=2, fresh_tables=True, warm_start=True)
    assert TrainingConfig(epochs=1, fresh_tables=True, warm_start=True).warm_start
