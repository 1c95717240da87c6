"""torch-rechub's MMoE: bare steps and predictions on tensors in memory, and its own trainer on its own loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks.peers.worker import Measure
from benchmarks.peers.workload import Rows, Workload


def measures(workload: Workload) -> Mapping[str, Callable[[], Measure]]:
    """`step`, `loop` and `predict`."""
    makers = {"step": _step, "loop": _loop, "predict": _predict}
    return {name: partial(maker, workload) for name, maker in makers.items()}


def _model(workload: Workload) -> Any:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE

    ids = zip(workload.ids, workload.vocabularies, strict=True)
    features = [SparseFeature(name, size, workload.dim) for name, size in ids]
    features += [DenseFeature(name) for name in workload.numbers]
    tower = {"dims": list(workload.towers)}
    return MMOE(
        features,
        ["classification"] * workload.tasks,
        workload.experts,
        {"dims": list(workload.hidden)},
        [tower] * workload.tasks,
    )


def _columns(workload: Workload, rows: Rows) -> dict[str, Any]:
    return dict(zip((*workload.ids, *workload.numbers), (*rows.ids.unbind(1), *rows.numbers.unbind(1)), strict=True))


def _step(workload: Workload) -> Measure:
    model = _model(workload).train()
    optimizer = torch.optim.Adam(model.parameters())
    batches = [(_columns(workload, rows), rows.labels) for rows in Rows.batches(workload)]

    def run() -> None:
        for columns, labels in batches:
            predicted = model(columns)
            optimizer.zero_grad()
            torch.autograd.backward(functional.binary_cross_entropy(predicted, labels))
            optimizer.step()

    return run


def _loop(workload: Workload) -> Measure:
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    rows = Rows.draw(workload)
    columns = {name: column.numpy() for name, column in _columns(workload, rows).items()}
    none: dict[str, Any] = {"x_val": {}, "y_val": [], "x_test": {}, "y_test": []}
    loader, _, _ = DataGenerator(columns, rows.labels.numpy()).generate_dataloader(**none, batch_size=workload.rows)
    trainer = MTLTrainer(_model(workload), ["classification"] * workload.tasks)
    return lambda: trainer.train_one_epoch(loader)


def _predict(workload: Workload) -> Measure:
    model = _model(workload).eval()
    batches = [_columns(workload, rows) for rows in Rows.batches(workload)]

    @torch.inference_mode()
    def run() -> None:
        for columns in batches:
            model(columns)

    return run
