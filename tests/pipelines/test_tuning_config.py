"""The block `tuning`: what can be searched, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.config import Recommender
from recsys_moe.errors import UserError

Tiny = Callable[..., Recommender]
RATE = {"low": 0.001, "high": 0.1, "log": True}


def _tuning(search: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"search": search, **more}


def test_a_search_says_what_each_setting_may_be(tiny: Tiny) -> None:
    search = {"training.learning_rate": RATE, "model.experts.hidden": {"choices": [[8], [8, 4]]}}
    config = tiny(tuning=_tuning(search))
    assert config.tuning is not None
    assert config.tuning.trials == 20
    assert config.tuning.search["training.learning_rate"].bounds == (0.001, 0.1)
    assert config.tuning.search["model.experts.hidden"].bounds == ((8,), (8, 4))


def test_values_stand_in_their_places_and_all_else_stays(tiny: Tiny) -> None:
    config = tiny()
    tuned = config.tuned({"training.learning_rate": 0.5, "model.experts.hidden": (8, 4), "model.towers": ()})
    assert tuned.training == config.training.model_copy(update={"learning_rate": 0.5})
    assert tuned.model.experts == config.model.experts.model_copy(update={"hidden": (8, 4)})
    assert tuned.model.towers == ()
    assert tuned.setting("model.experts.routed") == config.model.experts.routed


@pytest.mark.parametrize("preset", ["mmoe", "ple"])
def test_a_searched_preset_brings_its_values_beside_what_is_written(tiny: Tiny, preset: str) -> None:
    config = tiny(model={"embedding_dim": 4}, tuning=_tuning({"model.preset": {"choices": ["mmoe", "ple"]}}))
    assert config.tuned({"model.preset": preset}).model == tiny(model={"embedding_dim": 4, "preset": preset}).model


def test_whole_numbers_are_told_by_the_setting_not_by_how_the_range_is_written(tiny: Tiny) -> None:
    config = tiny(
        tuning=_tuning({"training.epochs": {"low": 1, "high": 3}, "training.clip_norm": {"low": 1, "high": 3}})
    )
    assert config.takes_whole_numbers("training.epochs")
    assert not config.takes_whole_numbers("training.clip_norm")


def test_ends_that_only_fit_each_other_are_fine(tiny: Tiny) -> None:
    """The YAML has 2 routed experts, so that 4 of them could not be chosen if each setting were tried alone."""
    search = {"model.experts.routed": {"choices": [4, 8]}, "model.experts.top_k": {"low": 1, "high": 4}}
    assert tiny(tuning=_tuning(search)).tuning is not None


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({}, "tuning.search: "),
        ({"training.learning_rat": RATE}, "'learning_rat' is no key of training; did you mean 'learning_rate'"),
        ({"model.experts.rooted": RATE}, "'rooted' is no key of model.experts; did you mean 'routed'"),
        ({"training.epochs.more": RATE}, "'more' is no key of training.epochs"),
        ({"features.history.days": RATE}, "lies below model or training"),
        ({"training": RATE}, "lies below model or training"),
        ({"training.learning_rate": {"low": 0.1}}, "give choices, or low and high"),
        ({"training.learning_rate": {"low": 1, "high": 1}}, "low 1 must be below high 1"),
        ({"training.learning_rate": {"low": 0, "high": 1, "log": True}}, "a logarithm needs low above 0"),
        ({"training.learning_rate": {**RATE, "step": 1}}, "either log or step"),
        ({"training.learning_rate": {**RATE, "choices": [1, 2]}}, "either choices, or low and high"),
        ({"training.epochs": {"choices": [1, 1]}}, "names one twice"),
        ({"training.epochs": {"choices": [1]}}, "at least 2 items"),
        ({"training.epochs": {"low": 1, "high": 3, "step": 0.5}}, "is a whole number, so its step is no 0.5"),
        ({"training.epochs": {"low": 0, "high": 3}}, r"training.epochs 0.0 cannot be: epochs: Input should be greater"),
        ({"training.epochs": {"low": 1, "high": 2.5}}, r"training.epochs 2.5 cannot be: epochs: .*integer"),
        ({"training.device": {"choices": ["cpu", "tpu"]}}, r"training.device 'tpu' cannot be"),
        ({"model.experts": {"choices": [1, 2]}}, "model.experts 1 cannot be"),
        (
            {"model.experts.routed": {"choices": [2, 8]}, "model.experts.top_k": {"choices": [1, 4]}},
            r"model.experts.routed 2 and model.experts.top_k 4 cannot be: experts: top_k 4 is more than the 2 routed",
        ),
    ],
)
def test_what_cannot_be_searched_is_told_in_one_line(tiny: Tiny, search: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        tiny(tuning=_tuning(search))
    assert "tuning.search" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_segment_needs_a_shared_expert_in_each_trial(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="per_segment needs shared >= 1"):
        tiny(tuning=_tuning({"model.experts.shared": {"low": 0, "high": 2}}))


def test_too_many_combinations_to_check_are_told(tiny: Tiny) -> None:
    rates = ["learning_rate", "embedding_learning_rate", "clip_norm", "hide_ids", "hide_segments"]
    choices = {"choices": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}
    with pytest.raises(UserError, match="more than 10000 combinations"):
        tiny(tuning=_tuning({f"training.{name}": choices for name in rates}))


def test_a_preset_is_either_written_or_searched(tiny: Tiny) -> None:
    tuning = _tuning({"model.preset": {"choices": ["mmoe", "ple"]}})
    with pytest.raises(UserError, match=r"leave model\.preset out"):
        tiny(model={"preset": "mmoe"}, tuning=tuning)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"task": "clck"}, r"tuning\.task: 'clck' is no task"),
        ({"metric": "auc", "task": "price"}, "auc is for a binary task, and 'price' is a regression"),
        ({"metric": "rmse"}, r"tuning\.metric"),
        ({"trials": 0}, r"tuning\.trials"),
    ],
)
def test_what_trials_cannot_be_judged_by_is_told(tiny: Tiny, more: dict[str, Any], message: str) -> None:
    tasks = [{"name": "click", "label": "clicked"}, {"name": "price", "label": "liked", "kind": "regression"}]
    with pytest.raises(UserError, match=message):
        tiny(tasks=tasks, tuning=_tuning({"training.learning_rate": RATE}, **more))
