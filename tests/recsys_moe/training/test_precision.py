from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys_moe import metrics
from recsys_moe.checkpoint import Ranker
from recsys_moe.config import TrainingConfig
from recsys_moe.training.precision import number_type
from tests.recsys_moe.conftest import raw_rows
from tests.recsys_moe.training.fitting import TRAINING, changed, fit_on, small_encoder


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("bf16", "cpu", torch.bfloat16),
        ("fp32", "cuda", torch.float32),
    ],
)
def test_auto_is_bf16_on_cuda_alone(precision: str, device: str, expected: torch.dtype) -> None:
    training = TrainingConfig.model_validate({"precision": precision})
    assert number_type(training, torch.device(device)) is expected


@pytest.mark.parametrize("dispatch", ["sparse", "dense"])
def test_in_bf16_it_learns_the_same_and_weights_stay_fp32(dispatch: str) -> None:
    rows, held_out = raw_rows(3_000), raw_rows(2_000, seed=1)
    encoder, aucs = changed(small_encoder(rows), dispatch), []
    for precision in ("fp32", "bf16"):
        training = TRAINING.model_copy(update={"precision": precision, "epochs": 6})
        model = fit_on(encoder, rows, training).model
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
        predicted = Ranker(encoder, model).predict(held_out)[:, 0]
        aucs.append(metrics.auc(np.array(held_out["label_click"]), predicted))
    assert aucs[0] > 0.8
    assert aucs[1] == pytest.approx(aucs[0], abs=0.02)
    assert aucs[1] != aucs[0]
