"""In which number type experts and towers compute. Embeddings, gates, losses and all weights stay fp32."""

from __future__ import annotations

import torch

from recsys_moe.config import TrainingConfig
from recsys_moe.model import RankingModel


def number_type(training: TrainingConfig, device: torch.device) -> torch.dtype:
    """The type that `training.precision` asks for."""
    if training.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if training.precision == "bf16" else torch.float32


def compute_in(dtype: torch.dtype, model: RankingModel, device: torch.device) -> None:
    """Let experts and towers run under torch's autocast where `dtype` is not fp32."""
    if dtype != torch.float32:
        for part in (model.experts, model.towers):
            part.forward = torch.autocast(device.type, dtype)(part.forward)  # type: ignore[method-assign]
