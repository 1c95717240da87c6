"""Our own model with one expert for everyone: as small as usual, or so wide that a row costs as much as in ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from pipelines.baselines.sample import Sample, Scores, shape_with_segment, with_segment
from pipelines.split import batches_of
from recsys_moe.checkpoint import Ranker
from recsys_moe.compute import multiplications, widened
from recsys_moe.config import Experts, Gating, ModelConfig, TrainingConfig
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.presets import PRESETS
from recsys_moe.training import Fitted, fit


@dataclass(frozen=True)
class Network:
    """A fitted network, whose input has the segment as an ordinary feature."""

    name: str
    ranker: Ranker
    segments: Encoder

    @classmethod
    def shared_bottom(cls, sample: Sample) -> Self:
        """One network under all tasks (Caruana 1997), its layers those of one of our experts."""
        return cls._fitted("shared_bottom", sample, _shared_bottom(sample.beside.config))

    @classmethod
    def dense(cls, sample: Sample) -> Self:
        """The same, with layers widened until a row takes as many multiplications as in the model beside it."""
        own, encoder = sample.beside, sample.encoder
        inputs = len(encoder.vocab_sizes) * own.config.embedding_dim + encoder.num_dense
        wanted = multiplications(own.config, own.model.input_dim)
        return cls._fitted("dense", sample, widened(_shared_bottom(own.config), inputs, wanted))

    @classmethod
    def _fitted(cls, name: str, sample: Sample, shape: ModelConfig) -> Self:
        training = sample.config.training.model_copy(update={"warm_start": None})
        if training.epochs > 1 and sample.validation.num_rows:
            training = training.model_copy(update={"epochs": _best_epoch(shape, training, sample)})
        encoder = _of_shape(sample.encoder, shape)
        fitted = _fit(encoder, training, sample.learned)
        return cls(name, Ranker(encoder, fitted.model), sample.beside.encoder)

    def predict(self, table: pa.Table) -> Scores:
        """What it says of raw rows, by task."""
        said = self.ranker.predict(with_segment(self.segments, table)).astype(np.float64)
        return {task.name: said[:, number] for number, task in enumerate(self.ranker.config.tasks)}


def _shared_bottom(own: ModelConfig) -> ModelConfig:
    experts = Experts.model_validate({**PRESETS["shared_bottom"]["experts"], "hidden": own.experts.hidden})
    return shape_with_segment(own).model_copy(update={"experts": experts, "gates": Gating()})


def _best_epoch(shape: ModelConfig, training: TrainingConfig, sample: Sample) -> int:
    """After how many epochs it does best on the validation rows, fitted to the others: as the model's are chosen."""
    encoder = Encoder.fit(shape, batches_of([sample.train]))
    return _fit(encoder, training, sample.train, sample.validation).best_epoch


def _fit(encoder: Encoder, training: TrainingConfig, rows: pa.Table, held_out: pa.Table | None = None) -> Fitted:
    size, ahead = training.batch_size, training.buffer_rows
    loader = Loader(encoder, encoder.encode(rows), size, shuffle=training.seed, buffer_rows=ahead)
    validation = Loader(encoder, encoder.encode(held_out), size) if held_out is not None else None
    return fit(encoder.config, training, encoder, loader, validation=validation)


def _of_shape(fitted: Encoder, shape: ModelConfig) -> Encoder:
    """What was fitted, for a model of the same features and another shape."""
    return Encoder(shape, fitted.vocabularies, fitted.scalers, label_means=fitted.label_means)
