"""A training that was killed and goes on: the same weights, to the bit."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_moe import checkpoint
from recsys_moe.config import TrainingConfig
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.training import Fitted, fit
from tests.recsys_moe.conftest import raw_rows
from tests.recsys_moe.training.fitting import TRAINING, changed, small_encoder

ROWS = 1_000  # 4 steps an epoch
RESUMED = TRAINING.model_copy(
    update={"epochs": 3, "validations": 2, "checkpoint_minutes": 1e-9, "loss_weights": "uncertainty"}
)


class Stopped(Exception):
    """In the place of a kill."""


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    plain = small_encoder(raw_rows(ROWS))
    return changed(plain, gates=plain.config.gates.model_copy(update={"dropout": 0.1}))


def fit_in(encoder: Encoder, state: Path | None, training: TrainingConfig = RESUMED, **more: Any) -> Fitted:
    loader = Loader(encoder, encoder.encode(raw_rows(ROWS)), training.batch_size, shuffle=0)
    held_out = Loader(encoder, encoder.encode(raw_rows(300, seed=1)), 256)
    return fit(encoder.config, training, encoder, loader, validation=held_out, state=state, **more)


@pytest.fixture(scope="module")
def undisturbed(encoder: Encoder) -> Fitted:
    return fit_in(encoder, None)


def assert_same(one: Fitted, other: Fitted) -> None:
    first, second = one.model.state_dict(), other.model.state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert one.table_sums is not None
    assert other.table_sums is not None
    assert torch.equal(one.table_sums, other.table_sums)
    assert one.history == other.history


def test_stopped_at_any_point_it_ends_with_the_same_weights(
    encoder: Encoder, undisturbed: Fitted, tmp_path: Path
) -> None:
    """In the middle of an epoch, right before a validation, and right after an epoch's end."""
    stops = iter([3, 6, 8])

    def stop(record: dict[str, float], at: list[int]) -> None:
        if record["step"] == at[0]:
            at[0] = next(stops, -1)
            raise Stopped

    at = [next(stops)]
    for _ in range(3):
        with pytest.raises(Stopped):
            fit_in(encoder, tmp_path, resume=True, on_step=lambda record: stop(record, at))
    resumed: list[float] = []
    done = fit_in(encoder, tmp_path, resume=True, on_step=lambda record: resumed.append(record["step"]))
    assert resumed[0] == 8  # it was stopped before this step was saved
    assert_same(done, undisturbed)


def test_a_finished_training_is_not_repeated(encoder: Encoder, undisturbed: Fitted, tmp_path: Path) -> None:
    fit_in(encoder, tmp_path)
    steps: list[dict[str, float]] = []
    assert_same(fit_in(encoder, tmp_path, resume=True, on_step=steps.append), undisturbed)
    assert steps == []
    assert len(list(tmp_path.iterdir())) == 1  # only the last state is kept


def test_without_checkpoints_by_time_epochs_are_saved(encoder: Encoder, tmp_path: Path) -> None:
    steps: list[float] = []

    def stop(record: dict[str, float]) -> None:
        steps.append(record["step"])
        if record["step"] == 7:
            raise Stopped

    hourly = RESUMED.model_copy(update={"checkpoint_minutes": 60.0})
    with pytest.raises(Stopped):
        fit_in(encoder, tmp_path, hourly, on_step=stop)
    with pytest.raises(Stopped):
        fit_in(encoder, tmp_path, hourly, resume=True, on_step=stop)
    assert steps == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7]


def test_the_state_of_another_training_is_left_alone(
    encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = RESUMED.model_copy(update={"epochs": 1})
    fit_in(encoder, tmp_path, one)
    steps: list[dict[str, float]] = []
    other = one.model_copy(update={"seed": 1, "checkpoint_minutes": 1.0})
    with caplog.at_level(logging.WARNING):
        fit_in(encoder, tmp_path, other, resume=True, on_step=steps.append)
    assert len(steps) == 4
    assert "is of another training (other training); starting from the beginning" in caplog.text
    fit_in(encoder, tmp_path, other, on_step=steps.append)  # not asked to resume
    assert len(steps) == 8


def test_a_state_of_epochs_of_another_length_is_left_alone(
    encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two processes leave out a last row that one has: a step number would be of another place in the epoch."""

    class ByTwo(Loader):
        steps = 3

    encoded = encoder.encode(raw_rows(3 * 256 + 1))
    fit(encoder.config, RESUMED, encoder, ByTwo(encoder, encoded, 256), state=tmp_path)
    with caplog.at_level(logging.WARNING):
        fit(encoder.config, RESUMED, encoder, Loader(encoder, encoded, 256), state=tmp_path, resume=True)
    assert "is of another training (other rows); starting from the beginning" in caplog.text


def test_a_half_written_state_is_not_seen(encoder: Encoder, undisturbed: Fitted, tmp_path: Path) -> None:
    (tmp_path / "000009.part").mkdir()
    assert_same(fit_in(encoder, tmp_path, resume=True), undisturbed)
    (state,) = (path for path in tmp_path.iterdir() if path.suffix != ".part")
    assert json.loads((state / "progress.json").read_text())["dispatch"] == "sparse"


def test_the_settled_dispatch_is_kept(encoder: Encoder, tmp_path: Path) -> None:
    """`auto` times both ways, and might choose the other one when it goes on."""
    auto = changed(encoder, "auto")
    fit_in(auto, tmp_path, RESUMED.model_copy(update={"epochs": 1}))
    (state,) = tmp_path.iterdir()
    progress = json.loads((state / "progress.json").read_text())
    progress["dispatch"] = other = {"dense": "sparse", "sparse": "dense"}[progress["dispatch"]]
    (state / "progress.json").write_text(json.dumps(progress))
    done = fit_in(auto, tmp_path, RESUMED.model_copy(update={"epochs": 1}), resume=True)
    assert done.history
    assert json.loads((state / "progress.json").read_text())["dispatch"] == other


KILLER = """
import os, random, signal, sys, time, torchrec
from pathlib import Path
from recsys_moe import checkpoint
from tests.recsys_moe.conftest import raw_rows
from tests.recsys_moe.training.fitting import small_encoder
from tests.recsys_moe.training.test_state import KILLS, LONG, ROWS, fit_in

def newest():
    return max((int(path.name) for path in state.glob("*") if path.name.isdecimal()), default=0)

state, draw, encoder = Path(sys.argv[1]), random.Random(0), small_encoder(raw_rows(ROWS))
for _ in range(KILLS):
    before, child = newest(), os.fork()
    if not child:
        fit_in(encoder, state, LONG, resume=True)
        os._exit(0)
    while newest() == before:  # it must come a step further, or twenty kills have no end
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it ended before it was killed"
done = fit_in(encoder, state, LONG, resume=True)
checkpoint.save(Path(sys.argv[2]), encoder, done.model, done.table_sums)
"""
KILLS = 20
LONG = RESUMED.model_copy(update={"epochs": 60})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_twenty_random_moments_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Real processes, killed -9 whenever: in a step, in a validation, while a state is written or removed.

    They are forks of one that has everything imported, which takes longer than they live.
    """
    command = [sys.executable, "-W", "ignore", "-c", KILLER, str(tmp_path / "state"), str(tmp_path / "model")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": "."}, timeout=550)
    undisturbed = fit_in(small_encoder(raw_rows(ROWS)), None, LONG)
    killed = checkpoint.load(tmp_path / "model", to_train=True)
    first, second = undisturbed.model.state_dict(), killed.model.state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert undisturbed.table_sums is not None
    assert killed.table_sums is not None
    assert torch.equal(undisturbed.table_sums, killed.table_sums)
