"""What a YAML says of the model, checked by itself."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipelines.config.steps import ModelShape
from recsys_moe.config import Experts


def test_sets_are_equal_parts_of_an_embedding() -> None:
    assert ModelShape(embedding_dim=15, experts=Experts(embedding_sets=3)).experts.embedding_sets == 3
    with pytest.raises(ValidationError, match="embedding_sets 3 does not divide embedding_dim 16"):
        ModelShape(embedding_dim=16, experts=Experts(embedding_sets=3))
