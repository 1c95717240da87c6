"""Known architectures, as values of the one mechanism: `model: {preset: mmoe}` in a recommender's YAML.

A preset says what makes its architecture what it is; widths, towers and all else keep their defaults, and whatever
the YAML writes beside it stands above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    # One network under all tasks (Caruana 1997).
    "shared_bottom": {"experts": {"shared": 1, "per_task": 0, "per_segment": 0, "routed": 0}},
    # One softmax gate over all experts (Jacobs, Jordan, Nowlan & Hinton 1991).
    "jacobs": {
        "experts": {"shared": 8, "per_task": 0, "per_segment": 0, "routed": 0},
        "gates": {"shared_gate": True},
    },
    # The same with a gate per task (Ma et al. 2018).
    "mmoe": {"experts": {"shared": 8, "per_task": 0, "per_segment": 0, "routed": 0}},
    # Experts for all beside experts of each task: one level of progressive layered extraction (Tang et al. 2020).
    "ple": {"experts": {"shared": 2, "per_task": 2, "per_segment": 0, "routed": 0}},
    # The best of many, weighted by its probability among all, balanced by a loss (Fedus, Zoph & Shazeer 2021).
    "switch": {
        "experts": {"shared": 0, "per_task": 0, "per_segment": 0, "routed": 8, "top_k": 1},
        "gates": {"renormalise": False, "balance_rate": 0.0, "auxiliary_loss": 0.01},
    },
    # The best two of eight, which share one softmax (Jiang et al. 2024).
    "mixtral": {"experts": {"shared": 0, "per_task": 0, "per_segment": 0, "routed": 8, "top_k": 2}},
    # Ours: for everyone, for the row's segment, and the best two of many.
    "segmented": {"experts": {"shared": 2, "per_task": 0, "per_segment": 1, "routed": 16, "top_k": 2}},
}


def with_preset(model: Mapping[str, Any]) -> dict[str, Any]:
    """What is written under `model:`, with the values of its `preset` wherever it says nothing itself.

    Raises:
        ValueError: there is no such preset.
    """
    name = model.get("preset")
    if name is None:
        return dict(model)
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset: {name!r} is none of {', '.join(PRESETS)}")
    merged = dict(model)
    for block, values in PRESETS[name].items():
        written = model.get(block, {})
        merged[block] = {**values, **written} if isinstance(written, Mapping) else written
    return merged
