"""What of a recommender's YAML is worth comparing between runs: settings by their path, and no noise."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel

from pipelines.config import Recommender
from recsys_moe.training.state import NOT_DECISIVE

OWN = "own"
"""What a model is called that follows no preset."""


def preset(config: Recommender) -> str:
    """The known architecture that the model follows."""
    return config.model.preset or OWN


def digest(config: Recommender) -> str:
    """Of all settings that decide what a model learns, but not its data: versions with the same one differ by these."""
    parts = [config.columns, config.tasks, config.features, config.segments, config.sampling, config.model]
    text = [part.model_dump_json() if isinstance(part, BaseModel) else str(part) for part in parts]
    text += [config.training.model_dump_json(exclude=NOT_DECISIVE)]
    text += [config.evaluation.split.model_dump_json(), str(config.evaluation.refit)]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


def compared(config: Recommender) -> dict[str, object]:
    """The settings that make one run differ from another, by their path in the YAML.

    What decides nothing, and what is not set, is left out; features and tasks are one line each.
    """
    model, training = config.model.model_dump(mode="json", exclude={"preset"}), config.training.model_dump(mode="json")
    split = config.evaluation.split.model_dump(mode="json")
    values: dict[str, object] = {"tasks": _tasks_in_words(config), **_features_in_words(config)}
    values |= {"model.preset": preset(config), **_flat("model", model)}
    values |= _flat("training", {name: value for name, value in training.items() if name not in NOT_DECISIVE})
    values |= {"evaluation.refit": config.evaluation.refit, **_flat("evaluation.split", split)}
    if config.sampling.keep_negatives is not None:
        values |= _flat("sampling.keep_negatives", config.sampling.keep_negatives.model_dump(mode="json"))
    if config.segments is not None:
        values |= {"segments.by": config.segments.title, "segments.min_rows": config.segments.min_rows}
    return {name: value for name, value in values.items() if value is not None}


def _tasks_in_words(config: Recommender) -> str:
    """`click, like, purchase given click`, with the weights that are not 1."""
    words = []
    for task in config.tasks:
        weight = f" x {task.weight:g}" if task.weight != 1.0 else ""
        words.append(task.name + (f" given {task.given}" if task.given else "") + weight)
    return ", ".join(words)


def _features_in_words(config: Recommender) -> dict[str, object]:
    """How many features of each kind, and how far the history looks back; other features have another digest."""
    features, history = config.features, config.features.history
    digest = hashlib.sha256(features.model_dump_json().encode()).hexdigest()[:6]
    kinds = ("categorical", "multivalued", "numeric")
    counted = ", ".join(f"{len(getattr(features, kind))} {kind}" for kind in kinds if getattr(features, kind))
    words: dict[str, object] = {"features": f"{counted} ({digest})"}
    if history is not None:
        words["features.history"] = f"{len(history.keys)} keys, {', '.join(map(str, history.days))} days"
    return words


def _flat(where: str, value: object) -> dict[str, object]:
    if isinstance(value, list):
        return {where: " x ".join(map(str, value))}
    if not isinstance(value, dict):
        return {where: value}
    return {key: leaf for name, inner in value.items() for key, leaf in _flat(f"{where}.{name}", inner).items()}
