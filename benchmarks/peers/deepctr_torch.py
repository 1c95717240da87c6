"""DeepCTR-Torch's MMoE: bare steps and predictions on tensors in memory, and its own `fit`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.worker import Measure
from benchmarks.peers.workload import Rows, Workload


def measures(workload: Workload) -> Mapping[str, Callable[[], Measure]]:
    """`step`, `loop` and `predict`."""
    # Imported, it asks PyPI for a newer version in a thread; with this in the way of its request it does not.
    sys.modules["requests"] = ModuleType("requests")
    makers = {"step": _step, "loop": _loop, "predict": _predict}
    return {name: partial(maker, workload) for name, maker in makers.items()}


def _model(workload: Workload) -> Any:
    """With linear gates, as the others' are; by default they would have a hidden layer."""
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import MMOE

    ids = zip(workload.ids, workload.vocabularies, strict=True)
    features = [SparseFeat(name, size, workload.dim) for name, size in ids]
    features += [DenseFeat(name, 1) for name in workload.numbers]
    return MMOE(
        features,
        num_experts=workload.experts,
        expert_dnn_hidden_units=workload.hidden,
        gate_dnn_hidden_units=(),
        tower_dnn_hidden_units=workload.towers,
        task_types=["binary"] * workload.tasks,
        task_names=[f"task{n}" for n in range(workload.tasks)],
    )


def _matrix(rows: Rows) -> Tensor:
    return torch.cat([rows.ids.float(), rows.numbers], 1)


def _step(workload: Workload) -> Measure:
    model = _model(workload).train()
    optimizer = torch.optim.Adam(model.parameters())
    batches = [(_matrix(rows), rows.labels) for rows in Rows.batches(workload)]

    def run() -> None:
        for matrix, labels in batches:
            predicted = model(matrix)
            optimizer.zero_grad()
            torch.autograd.backward(functional.binary_cross_entropy(predicted, labels))
            optimizer.step()

    return run


def _loop(workload: Workload) -> Measure:
    model = _model(workload)
    model.compile("adam", ["binary_crossentropy"] * workload.tasks)
    rows = Rows.draw(workload)
    matrix, labels = _matrix(rows).numpy(), rows.labels.numpy()
    return lambda: model.fit(list(matrix.T), labels, batch_size=workload.rows, verbose=0)


def _predict(workload: Workload) -> Measure:
    model = _model(workload).eval()
    matrices = [_matrix(rows) for rows in Rows.batches(workload)]

    @torch.inference_mode()
    def run() -> None:
        for matrix in matrices:
            model(matrix)

    return run
