"""Experts that read a part of every embedding: which weights are zero, and that training keeps them so."""

from __future__ import annotations

import pytest
import torch

from recsys_moe.checkpoint import empty_model
from recsys_moe.config import Experts
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError
from recsys_moe.experts import ExpertBank
from tests.recsys_moe.conftest import model_config, raw_rows
from tests.recsys_moe.training.fitting import TRAINING, fit_on

EXPERTS = Experts(shared=2, per_task=1, routed=4, top_k=2, hidden=(16, 8), segment_rank=2, embedding_sets=2)
NUMBERS, DIM = 5, 4
"""Sparse features of `model_config`, and the width of their embeddings."""


def assert_each_reads_its_own(bank: ExpertBank) -> None:
    first = torch.cat([bank.always.weights[0], bank.routed.weights[0]])
    read = first[:, : NUMBERS * DIM, :16].abs().sum(2).view(8, NUMBERS, 2, DIM // 2) > 0
    for expert in range(8):
        assert read[expert, :, expert % 2].all()
        assert not read[expert, :, 1 - expert % 2].any()
    assert (first[:, NUMBERS * DIM : NUMBERS * DIM + 1, :16] != 0).any(2).all()  # numbers are everyone's


def test_each_expert_reads_its_own_part_also_after_training() -> None:
    rows = raw_rows(512)
    encoder = Encoder.fit(model_config(experts=EXPERTS), rows.to_batches())
    before = empty_model(encoder)
    assert_each_reads_its_own(before.experts)
    fitted = fit_on(encoder, rows, TRAINING.model_copy(update={"weight_decay": 0.1}))
    assert_each_reads_its_own(fitted.model.experts)
    assert not torch.equal(fitted.model.experts.always.weights[0], before.experts.always.weights[0])


def test_sets_that_do_not_divide_the_embedding_are_refused() -> None:
    config = model_config(experts=EXPERTS.model_copy(update={"embedding_sets": 3}))
    encoder = Encoder.fit(config, raw_rows(100).to_batches())
    with pytest.raises(UserError, match="3 sets do not divide"):
        empty_model(encoder)


def test_more_sets_than_experts_are_refused() -> None:
    """Nobody would read what is left over."""
    few = Experts(shared=1, per_task=0, routed=0, hidden=(16, 8), embedding_sets=2)
    encoder = Encoder.fit(model_config(experts=few), raw_rows(64).to_batches())
    with pytest.raises(UserError, match="2 sets are more than the 1 experts"):
        empty_model(encoder)
