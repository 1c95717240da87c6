"""A multi-gate mixture-of-experts ranking model: experts per user segment, sparse routing, balanced load.

The names below are the public interface; the rest may change. They are looked up on first use, because reading a
recommender's configuration must not import torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Batch": "batch",
    "Encoder": "encoding",
    "ModelConfig": "config",
    "Ranker": "checkpoint",
    "RankingModel": "model",
    "TrainingConfig": "config",
    "UserError": "errors",
    "fit": "training",
    "score_top_n": "scoring",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
