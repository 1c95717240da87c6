"""The tasks are as related as said, the models as large as said, and a small run is whole and repeats itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import tasks_correlation as experiment
from benchmarks.__main__ import main
from benchmarks.tasks_correlation import CORRELATIONS, MODELS, Stack, Worlds

REPEATS = 2


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def worlds(repeats: int = 3, seed: int = 0) -> Worlds:
    return Worlds.draw(CORRELATIONS, repeats, torch.Generator().manual_seed(seed))


def test_weights_have_the_stated_cosine_and_length() -> None:
    w1, w2 = worlds().weights.unbind(2)
    stated = torch.tensor(CORRELATIONS)[:, None].expand(-1, 3)
    torch.testing.assert_close(torch.cosine_similarity(w1, w2, dim=-1), stated)
    torch.testing.assert_close(w2.norm(dim=-1), torch.ones(3, 3))


def test_labels_are_what_the_formula_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "NOISE", 0.0)
    drawn = worlds()
    x, y = drawn.rows(5, torch.Generator().manual_seed(1))
    z = float(x[4, 2] @ drawn.weights.flatten(0, 1)[4, 1])
    assert float(y[4, 2, 1]) == pytest.approx(z + sum(math.sin(a * z + b) for a, b in experiment.SINES), abs=1e-4)


def test_equal_tasks_have_equal_labels_but_for_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    same = Worlds.draw((1.0,), 2, torch.Generator().manual_seed(0))
    _, noisy = same.rows(2000, torch.Generator())
    assert float((noisy[..., 0] - noisy[..., 1]).std()) == pytest.approx(2**0.5 * experiment.NOISE, rel=0.05)
    monkeypatch.setattr(experiment, "NOISE", 0.0)
    _, clean = same.rows(2000, torch.Generator())
    assert np.corrcoef(clean[0].numpy(), rowvar=False)[0, 1] == pytest.approx(1.0)


def test_a_repeat_has_the_same_inputs_in_all_correlations_and_repeats_differ() -> None:
    x, _ = worlds().rows(4, torch.Generator())
    by_correlation = x.unflatten(0, (len(CORRELATIONS), 3))
    assert (by_correlation == by_correlation[0]).all()
    assert not (by_correlation[0, 0] == by_correlation[0, 1]).any()


@pytest.mark.parametrize(("preset", "width"), MODELS.values(), ids=MODELS)
def test_parameters_are_counted_as_they_learn(preset: str, width: int) -> None:
    """Against those that a gradient reaches in some world: padding and the gate of a single expert get none."""
    config, worlds, rows = experiment.model_config(preset, width), 8, 64
    stack = Stack(config, correlations=1, repeats=worlds, seed=0)
    x, y = torch.randn(worlds, rows, experiment.INPUTS), torch.randn(worlds, rows, experiment.TASKS)
    experiment.losses(stack, x, y).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [weight.grad for weight in stack.parameters.values() if weight.grad is not None]
    assert sum(int((gradient != 0).any(0).sum()) for gradient in gradients) == experiment.count_parameters(config)


def test_models_are_of_about_equal_size() -> None:
    sizes = [experiment.count_parameters(experiment.model_config(*model)) for model in MODELS.values()]
    assert max(sizes) / min(sizes) < 1.01


@pytest.mark.parametrize(("preset", "width"), MODELS.values(), ids=MODELS)
def test_a_stack_gives_what_its_models_give(preset: str, width: int) -> None:
    stack = Stack(experiment.model_config(preset, width), correlations=1, repeats=3, seed=0)
    x = torch.randn(3, 7, experiment.INPUTS)
    for world, (outputs, rows) in enumerate(zip(stack(x), x, strict=True)):
        stack.model.load_state_dict({name: p[world] for name, p in stack.parameters.items()}, strict=False)
        torch.testing.assert_close(outputs, stack.model(rows))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("figure") / "plot.png"
    return experiment.run(repeats=REPEATS, steps=experiment.POINTS, seed=3, out=out), out


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_reports_every_model_at_every_correlation(tiny: tuple[dict[str, Any], Path]) -> None:
    result, out = tiny
    assert [model["name"] for model in result["models"]] == list(MODELS)
    for model in result["models"]:
        assert len(model["loss"]) == len(model["curve"]) == len(CORRELATIONS)
        assert all(loss["low"] < loss["mean"] < loss["high"] for loss in model["loss"])
        assert [points[-1] for points in model["curve"]] == model["loss"]
    assert result["curve_steps"][-1] == result["steps"]
    assert out.read_bytes().startswith(b"\x89PNG")
    assert all(name in experiment.table(result) for name in MODELS)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_seed_gives_the_same_result_and_the_command_prints_it_as_a_line(
    tiny: tuple[dict[str, Any], Path], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sizes = ["--repeats", str(REPEATS), "--steps", str(experiment.POINTS), "--seed", "3"]
    assert main(["tasks-correlation", *sizes, "--json"]) == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line) | {"seconds": 0} == tiny[0] | {"seconds": 0}
    assert "learning rate" in caplog.text


def test_the_interval_is_students() -> None:
    """Two values: the mean plus and minus 12.706 standard errors."""
    found = experiment.interval(np.array([0.0, 2.0]))
    assert found == pytest.approx({"mean": 1.0, "low": 1.0 - 12.7062, "high": 1.0 + 12.7062}, abs=1e-4)
