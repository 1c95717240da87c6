"""How a step runs: one thing after the other, or on CUDA with the next batches on their way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from recsys_moe.embeddings import JaggedBatch
from recsys_moe.training.objective import Seen


class Update(Protocol):
    """What follows a backward pass, as torchrec's pipelines call an optimizer."""

    def zero_grad(self) -> None:
        """Forget gradients."""

    def step(self) -> None:
        """Move the weights."""


class InTurn:
    """Copy, forward, backward, update: one step after the other."""

    def __init__(self, model: nn.Module, update: Update, device: torch.device) -> None:
        self._model, self._update, self._device = model, update, device

    def progress(self, batches: Iterator[JaggedBatch]) -> Seen:
        """Train on the next batch.

        Raises:
            StopIteration: there is none.
        """
        batch = next(batches).to(self._device)
        self._update.zero_grad()
        loss, seen = self._model(batch)
        loss.backward()
        self._update.step()
        out: Seen = seen
        return out

    def pause(self) -> None:
        """Make the model usable for other things until the next `progress`."""


class Overlapped:
    """torchrec's `TrainPipelineSparseDist`: the next batch is sent to its tables, and the one after it to the device.

    On CUDA these run on streams of their own beside the step. No CUDA device was at hand: a test runs it on the CPU,
    where it gives the same numbers and overlaps nothing.
    """

    def __init__(self, model: nn.Module, update: Update, device: torch.device) -> None:
        from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
        from torchrec.streamable import Pipelineable

        Pipelineable.register(JaggedBatch)
        self._pipeline: Any = TrainPipelineSparseDist(model, update, device, execute_all_batches=True)

    def progress(self, batches: Iterator[JaggedBatch]) -> Seen:
        """Train on the next batch; up to two after it are taken from `batches` already.

        Raises:
            StopIteration: there is none.
        """
        seen: Seen = self._pipeline.progress(batches)
        return seen

    def pause(self) -> None:
        """Give the model its own forward pass back, until the next `progress`."""
        self._pipeline.detach()
