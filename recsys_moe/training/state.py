"""A training that was killed goes on from here: a folder with one whole state, never with half of one.

    <folder>/000007/progress.json          where training stands, and of which training it is
    <folder>/000007/dense.safetensors      weights and optimizer state of all but the tables
    <folder>/000007/tables-<rank>.safetensors   the tables that a process holds, and their sums of squared gradients

A state is written beside, made durable and renamed; only then is the one before it removed. With several processes,
which must see the same folder, each writes its tables, and the first one renames when all have.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import distributed as dist

from recsys_moe.checkpoint import Ranker
from recsys_moe.config import ModelConfig, TrainingConfig
from recsys_moe.encoding import Encoder

log = logging.getLogger(__name__)

NOT_DECISIVE = {"checkpoint_minutes", "device", "threads"}
"""Settings that a training may go on with others of."""

Progress = dict[str, Any]


class StateFolder:
    """The states of one training, of which the newest is kept."""

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._identity = folder, identity
        self._number = max((int(path.name) for path in self._states()), default=0)
        _all_arrived()  # or the first process might already have written another

    def newest(self) -> Path | None:
        """The state to go on from; None where there is none, or one of another training."""
        if not self._number:
            return None
        path = self._folder / f"{self._number:06d}"
        theirs = read_progress(path)["identity"]
        other = [name for name in self._identity if self._identity[name] != theirs.get(name)]
        if other:
            log.warning("%s: is of another training (other %s); starting from the beginning", path, ", ".join(other))
            return None
        return path

    def write(self, progress: Progress, dense: dict[str, Tensor], tables: dict[str, Tensor]) -> Path:
        """Write a state, then remove the one before it. All processes call this at the same step."""
        self._number += 1
        fresh, path = (self._folder / name for name in (f"{self._number:06d}.part", f"{self._number:06d}"))
        is_first = dist.get_rank() == 0
        if is_first:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
        _all_arrived()
        _save(tables, fresh / f"tables-{dist.get_rank()}.safetensors")
        if is_first:
            _save(dense, fresh / "dense.safetensors")
            (fresh / "progress.json").write_text(json.dumps({"identity": self._identity, **progress}), encoding="utf-8")
            _make_durable(fresh / "progress.json")
        _all_arrived()
        if is_first:
            self._commit(fresh, path)
        return path

    def _commit(self, fresh: Path, path: Path) -> None:
        _make_durable(fresh)
        os.rename(fresh, path)
        _make_durable(self._folder)
        for old in self._states():
            if old != path:
                shutil.rmtree(old, ignore_errors=True)

    def _states(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.name.isdecimal()]


def read_progress(path: Path) -> Progress:
    """Where a training stood."""
    progress: Progress = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    return progress


def read_dense(path: Path) -> dict[str, Tensor]:
    """Tensors of all but the tables."""
    return load_file(path / "dense.safetensors")


@torch.no_grad()
def read_tables(path: Path, into: dict[str, Tensor]) -> None:
    """Fill this process's tables, whichever process wrote them."""
    missing = set(into)
    for file in sorted(path.glob("tables-*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in missing & set(stored.keys()):
                into[name].copy_(stored.get_tensor(name))
            missing -= set(stored.keys())
    assert not missing, f"{path}: no tables {missing}"


def identity_of(
    config: ModelConfig, training: TrainingConfig, encoder: Encoder, rows: Iterable[int], start: Ranker | None
) -> dict[str, str]:
    """What decides a training's result, by parts: a state is used where all of them agree.

    Args:
        rows: how many there are to train on, to validate on, …, and of how many steps: that can depend on the number
            of processes, and a step's place in its epoch on it.
    """
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder))
        files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    weights = {} if start is None else start.model.state_dict()
    parts = {
        "config": [config.model_dump_json().encode()],
        "training": [training.model_dump_json(exclude=NOT_DECISIVE).encode()],
        "encoder": files,
        "rows": [str(list(rows)).encode()],
        "start": [_bytes_of(tensor) for name, tensor in weights.items() if not name.startswith("embeddings.")],
    }
    return {name: hashlib.sha256(b"\0".join(part)).hexdigest()[:16] for name, part in parts.items()}


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    _make_durable(path)


def _make_durable(path: Path) -> None:
    """Bring a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _all_arrived() -> None:
    if dist.get_world_size() > 1:
        dist.barrier()
