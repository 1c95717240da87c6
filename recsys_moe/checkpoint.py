"""A fitted model as a folder: weights.safetensors, config.json, encoder.json, vocabularies.parquet. No pickle.

`format.json` says that it is one, and what the other files must be (`recsys_moe.digests`). Beside them, where there is
one, optimizer.safetensors: what a warm start needs of the optimizer. Serving ignores it.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys_moe import digests
from recsys_moe.config import ModelConfig
from recsys_moe.embeddings import PlainEmbeddings
from recsys_moe.encoding import Encoder, RawTable
from recsys_moe.errors import OldFormatError, UserError
from recsys_moe.model import RankingModel

FORMAT = {"format": "recsys_moe checkpoint", "version": 2}
OPTIMIZER = "optimizer.safetensors"
PREDICT_ROWS = 8192


@dataclass(frozen=True)
class Ranker:
    """An encoder and a model with plain weights: raw columns in, probabilities out. Needs no torchrec.

    Attributes:
        table_sums: [rows of all tables] see `Fitted.table_sums`; only `load(…, to_train=True)` reads it.
    """

    encoder: Encoder
    model: RankingModel
    table_sums: Tensor | None = None

    @property
    def config(self) -> ModelConfig:
        """What the model is made of."""
        return self.encoder.config

    @torch.no_grad()
    def predict(self, table: RawTable) -> NDArray[np.float32]:
        """Probabilities (values, for a regression) [B, T] of raw rows, tasks in the config's order.

        Raises:
            UserError: a raw column is missing or cannot be read as its kind.
        """
        out = np.empty((table.num_rows, len(self.config.tasks)), np.float32)
        for start in range(0, table.num_rows, PREDICT_ROWS):
            batch = self.encoder.to_batch(self.encoder.encode(table.slice(start, PREDICT_ROWS)))
            logits, _ = self.model(batch)
            out[start : start + PREDICT_ROWS] = self.model.probabilities(logits).numpy()
        return out


def save(folder: Path, encoder: Encoder, model: RankingModel, table_sums: Tensor | None = None) -> None:
    """Write a checkpoint: beside `folder` first, then renamed, so that no reader sees half of one.

    A checkpoint that is already there is replaced. With `table_sums` (of `Fitted`) a training can start from it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        fresh = Path(beside) / "new"
        fresh.mkdir()
        encoder.save(fresh)
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, fresh / "weights.safetensors")
        if table_sums is not None:
            save_file({"table_sums": table_sums}, fresh / OPTIMIZER)
        listed = FORMAT | {"sha256": digests.digests(fresh)}
        (fresh / digests.LIST).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            os.replace(folder, Path(beside) / "old")
        os.replace(fresh, folder)


def load(folder: Path, to_train: bool = False) -> Ranker:
    """Read a checkpoint that `save` wrote; `to_train` with what a warm start needs of the optimizer, if it is there.

    Raises:
        OldFormatError: another version of this project wrote it.
        UserError: the folder is no checkpoint, or a damaged one.
    """
    found = _format(folder)
    listed = found.pop("sha256", None)  # checkpoints of before have none
    if found != FORMAT:
        raise OldFormatError(f"{folder}: is {found}, and this version reads {FORMAT}; train again, or use its version")
    try:
        if listed is not None:
            digests.check(folder, dict(listed))
        encoder = Encoder.load(folder)
        model = empty_model(encoder)
        model.load_state_dict(load_file(folder / "weights.safetensors"))
        has_sums = to_train and (folder / OPTIMIZER).exists()
        sums = load_file(folder / OPTIMIZER)["table_sums"] if has_sums else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ValidationError, SafetensorError) as error:
        raise UserError(f"{folder}: the checkpoint is damaged ({error}); take another or train again") from error
    return Ranker(encoder, model.eval().requires_grad_(False), sums)


def empty_model(encoder: Encoder) -> RankingModel:
    """A model with the serving body, its weights not yet fitted."""
    embeddings = PlainEmbeddings(encoder.vocab_sizes, encoder.config.embedding_dim)
    return RankingModel(encoder.config, encoder.vocab_sizes, encoder.num_dense, encoder.num_segments, embeddings)


def _format(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / digests.LIST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(
            f"{folder}: is no checkpoint of recsys_moe (it has no {digests.LIST} that can be read)"
        ) from None
