"""A training that is killed goes on where it was; two processes train as one does. Real processes, a real MLflow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run
from safetensors.torch import load_file

from pipelines import config as recommenders
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.registry import Registry
from tests.pipelines.conftest import Tiny

DAY = 4
TRAINING = {"batch_size": 4, "epochs": 3, "threads": 1, "checkpoint_minutes": 1e-4}
MODEL = {"embedding_dim": 4, "experts": {"shared": 1, "routed": 2, "top_k": 1, "hidden": [8], "dispatch": "sparse"}}
KILLED_AT = ("train", "train-state/000020", "both", "refit-state/000003", "checkpoint")
"""What lies in the scratch folder when a process is killed: nothing but encoded rows, states, the finished model."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recommender whose days are prepared, to be copied."""
    tiny = Tiny(tmp_path_factory.mktemp("prepared"))
    config = tiny(training=TRAINING, model=MODEL)
    for number in range(DAY + 1):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    return tiny.folder


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, trained in one go."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("undisturbed") / "tiny")
    finished(start(folder))
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "tiny")


def start(folder: Path, *options: str, launcher: tuple[str, ...] = ("-m", "pipelines.cli")) -> subprocess.Popen[str]:
    """`recsys-moe train`, in a process of its own."""
    yaml = folder / "configs" / "tiny.yaml"
    command = [sys.executable, *launcher, "train", "--config", str(yaml), "--as-of", Tiny.day(DAY).isoformat()]
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RECSYS_MOE_RESULT")}
    environment |= {"OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *options], env=environment, cwd=Path(__file__).parents[2], **pipes)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The result of a training that must succeed."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.count("{") == 2, out  # one process speaks
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def scratch_of(folder: Path) -> list[Path]:
    return list((folder / "var" / "tiny" / "scratch").glob("train-*"))


def kill_at(process: subprocess.Popen[str], folder: Path, moment: str) -> None:
    """Kill a process, SIGKILL, as soon as a file lies in its scratch folder."""
    name, _, number = moment.partition("/")
    while True:
        assert process.poll() is None, process.communicate()
        found = [path.name for scratch in scratch_of(folder) for path in (scratch / name).glob("*")]
        if found and (not number or any(path.isdecimal() and path >= number for path in found)):
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the only version that there is."""
    registry = registry_of(folder)
    (version,) = registry.client.search_model_versions("name = 'tiny'")
    return load_file(registry.checkpoint(registry.version(int(version.version))) / "weights.safetensors")


def registry_of(folder: Path) -> Registry:
    return Registry(recommenders.load(folder / "configs" / "tiny.yaml"))


def runs_of(folder: Path) -> list[Run]:
    registry = registry_of(folder)
    return list(registry.client.search_runs([registry.experiment_id]))


def history(folder: Path, name: str) -> list[tuple[int, float]]:
    (run,) = runs_of(folder)
    return [(p.step, p.value) for p in registry_of(folder).client.get_metric_history(run.info.run_id, name)]


def assert_close(curve: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert curve == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in expected]


def test_killed_again_and_again_it_ends_with_the_same_weights_in_one_run(undisturbed: Path, folder: Path) -> None:
    for moment in KILLED_AT:
        kill_at(start(folder), folder, moment)
    result = finished(start(folder))
    assert not scratch_of(folder)
    expected, found = weights_of(undisturbed), weights_of(folder)
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert torch.equal(found[name], weights), name
    (run,) = runs_of(folder)
    assert (run.info.run_id, run.info.status) == (result["run_id"], "FINISHED")
    assert [step for step, _ in history(folder, "train/loss")] == [
        step for step, _ in history(undisturbed, "train/loss")
    ]
    for name in ("train/epoch/loss", "validation/loss", "refit/epoch/loss"):
        assert history(folder, name) == history(undisturbed, name)


def test_without_resume_it_begins_anew_and_the_half_run_is_ended(undisturbed: Path, folder: Path) -> None:
    kill_at(start(folder), folder, "train-state/000020")
    result = finished(start(folder, "--no-resume"))
    states = {run.info.run_id: run.info.status for run in runs_of(folder)}
    assert states.pop(result["run_id"]) == "FINISHED"
    assert [*states.values()] == ["KILLED"]
    assert all(torch.equal(weights, weights_of(folder)[name]) for name, weights in weights_of(undisturbed).items())


def test_of_two_at_once_one_trains_and_the_other_says_so(folder: Path) -> None:
    both = [start(folder), start(folder)]
    ends = [(*process.communicate(), process.returncode) for process in both]
    assert sorted(code for *_, code in ends) == [0, 75]
    (said,) = [err for _, err, code in ends if code == 75]
    assert said.splitlines()[-1].endswith("another process is at this very training; wait for it")
    assert len(runs_of(folder)) == 1


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipelines.cli")


@pytest.mark.parametrize("way", ["torchrun", "--processes"])
def test_two_processes_train_as_one(undisturbed: Path, folder: Path, way: str) -> None:
    process = start(folder, launcher=TORCHRUN) if way == "torchrun" else start(folder, "--processes", "2")
    result = finished(process)
    assert len(runs_of(folder)) == 1
    assert not result["repeated"]
    assert_close(history(folder, "train/loss"), history(undisturbed, "train/loss"))


def test_two_processes_that_are_killed_go_on(undisturbed: Path, folder: Path) -> None:
    kill_at(start(folder, "--processes", "2"), folder, "train-state/000005")
    finished(start(folder, "--processes", "2"))
    (run,) = runs_of(folder)
    assert run.info.status == "FINISHED"
    together = history(folder, "refit/epoch/loss")
    assert together == [
        (step, pytest.approx(loss, rel=1e-4)) for step, loss in history(undisturbed, "refit/epoch/loss")
    ]


def test_an_error_in_one_process_ends_all_with_one_line(folder: Path) -> None:
    path = folder / "configs" / "tiny.yaml"
    path.write_text(path.read_text().replace("batch_size: 4\n", "batch_size: 4\n  learning_rate: 1.0e+30\n"))
    process = start(folder, "--processes", "2")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert [line for line in err.splitlines() if "error" in line.lower()] == [err.splitlines()[-1]]
    assert err.splitlines()[-1].startswith("error: training: the loss of task")
