"""A training made again from what its run kept, on a tiny recommender and a real MLflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.evaluate import evaluate
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.promote import rollback
from pipelines.registry import Registry
from pipelines.reproduce import Reproduction, in_words, reproduce
from pipelines.runs import Run
from pipelines.scratch import scratch_of
from pipelines.tables import Tables
from pipelines.train import train
from recsys_moe.errors import UserError
from tests.pipelines.conftest import CONFIG, Tiny

SECRET = "a-place-that-nobody-is-told"
TRAINING = {"batch_size": 16, "epochs": 2, "threads": 1}
CODE = {"code", "mlflow.source.git.commit", "git.dirty"}
"""What somebody who edits meanwhile changes."""
SOURCE = CONFIG["source"] | {"interactions": {"path": "../${PLACE}/log/{ds}.csv"}}


@pytest.fixture
def kept(tiny: Tiny, store: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Recommender, str]]:
    """Trains on days 0 to 3 and evaluates; returns the recommender and the run's id."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("PLACE", SECRET)
    monkeypatch.setattr(Run, "picture", lambda *_: None)
    monkeypatch.setattr("pipelines.evaluate.baselines.fitted", lambda *_: {})
    shutil.copytree(tiny.folder / "data" / "log", tiny.folder / SECRET / "log")

    def make(name: str, **training: Any) -> tuple[Recommender, str]:
        config = tiny(name=name, training=TRAINING | training, source=SOURCE)
        for number in range(4):
            ingest(config, tiny.day(number))
            prepare(config, tiny.day(number))
        run_id = str(train(config, tiny.day(3))["run_id"])
        evaluate(config, tiny.day(3))
        return config, run_id

    return make


def call(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["reproduce", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_is_reproduced_from_the_tables_as_they_were(
    kept: Callable[..., tuple[Recommender, str]], tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    config, run_id = kept("reproduced")
    tables, registry = Tables(config.storage), Registry(config)
    rows = tables.read_day("examples", tiny.day(1))
    tables.replace_day("examples", tiny.day(1), rows.slice(9).drop_columns(["ds"]))
    config.origin.file.write_text("name: not even a recommender any more\n")
    code, out, error = call(run_id)
    assert code == 0, error
    result = json.loads(out.splitlines()[-1])
    assert (result["same"], result["same_weights"], result["differs"].keys() - CODE) == (True, True, set())
    assert {"test/click/auc", "test/click/log_loss", "test/like/auc", "test/click/auc/home"} <= set(result["metrics"])
    assert "the same to the last digit; the weights are the same to the last bit" in out
    again = registry.client.get_run(result["run_id"])
    assert (again.data.tags["reproduces"], again.data.tags["mlflow.parentRunId"]) == (run_id, run_id)
    assert registry.version_of(result["run_id"]) is None
    trained = registry.trained_for(tiny.day(3))
    assert trained is not None
    assert (trained.number, trained.run_id) == (1, run_id)
    _nobody_is_told(config, registry, run_id, caplog.text + out + error)
    _what_differs_is_named(config, registry, run_id, tiny)


def _nobody_is_told(config: Recommender, registry: Registry, run_id: str, said: str) -> None:
    """What the environment holds stands in no file, tag or parameter of the run, and in no message."""
    run, opened = registry.client.get_run(run_id), registry.open_run(run_id)
    texts = {path: str(opened.read_text(path)) for path in opened.files()}
    assert "${PLACE}" in texts["config.yaml"]
    for text in [said, str(run.data.tags), str(run.data.params), str(run.inputs), *texts.values()]:
        assert SECRET not in text


def _what_differs_is_named(config: Recommender, registry: Registry, run_id: str, tiny: Tiny) -> None:
    """Where the YAML that was kept, or what it was measured, is not what was trained."""
    opened = registry.open_run(run_id)
    evaluation = opened.read("evaluation.json")
    assert evaluation is not None
    evaluation["overall"]["model"]["click"]["auc"] += (
        1e-16 + abs(evaluation["overall"]["model"]["click"]["auc"]) * 1e-15
    )
    opened.table(evaluation, "evaluation.json")
    text = str(opened.read_text("config.yaml"))
    opened.text(text.replace("embedding_dim: 4", "embedding_dim: 8"), "config.yaml")
    config.origin.file.write_text(text)
    code, out, _ = call("--config", config.origin.file, run_id)
    result = json.loads(out.splitlines()[-1])
    assert (code, result["same"], result["same_weights"]) == (1, False, False)
    assert result["differs"]["model"] == {"recorded": '{"embedding_dim": 4}', "again": '{"embedding_dim": 8}'}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_warm_start_is_reproduced_from_where_it_began(
    kept: Callable[..., tuple[Recommender, str]], tiny: Tiny
) -> None:
    config, _ = kept("warm", warm_start=True)
    registry = Registry(config)
    rollback(config, "the first", to=1)
    ingest(config, tiny.day(4))
    prepare(config, tiny.day(4))
    run_id = train(config, tiny.day(4))["run_id"]
    evaluate(config, tiny.day(4))
    rollback(config, "the second", to=2)
    done = reproduce(run_id)
    assert (done.same, done.weights, done.differing.keys() - CODE) == (True, True, set())
    assert registry.client.get_run(run_id).data.tags["started_from"] == "1"
    registry.client.delete_model_version("warm", "1")
    with pytest.raises(UserError, match="began from the model of run"):
        reproduce(run_id)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_cannot_be_reproduced_is_told_in_one_line(
    kept: Callable[..., tuple[Recommender, str]], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run_id = kept("gone")
    tables, registry = Tables(config.storage), Registry(config)
    with scratch_of(config, "reproduce", run_id, resume=False), pytest.raises(TryAgainError, match="reproduction"):
        reproduce(run_id)
    refused = []
    monkeypatch.delenv("PLACE")
    refused.append((run_id, "the environment has no PLACE"))
    _refuse(refused)
    monkeypatch.setenv("PLACE", SECRET)
    with registry.run("a thought", {}) as other:
        refused.append((other.run_id, "did not finish (it is RUNNING)"))
        _refuse(refused)
    refused.append((other.run_id, "is no training (it is 'a thought')"))
    prepare(config, tiny.day(3))
    for ds in range(4):
        rows = tables.read_day("examples", tiny.day(ds))
        tables.replace_day("examples", tiny.day(ds), rows.slice(1).drop_columns(["ds"]))
    tables.delta("examples").vacuum(0, dry_run=False, enforce_retention_duration=False)
    refused.append((run_id, "of the 4 files that version"))
    _refuse(refused)
    shutil.rmtree(tables.path("examples"))
    refused.append((run_id, "has no version"))
    _refuse(refused)


def _refuse(refused: list[tuple[str, str]]) -> None:
    """The last of the runs is refused with its message."""
    run_id, message = refused[-1]
    code, out, error = call(run_id)
    assert (code, out, error.count("\n")) == (2, "", 1), error
    assert message in error


def test_an_unknown_run_and_no_server_are_told_in_one_line(
    tiny: Tiny, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, _, error = call("0123456789abcdef0123456789abcdef")
    assert (code, error.count("\n")) == (2, 1)
    assert "set MLFLOW_TRACKING_URI" in error
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for run_id in ("0123456789abcdef0123456789abcdef", "no id at all"):
        code, _, error = call(run_id)
        assert (code, error.count("\n")) == (2, 1)
        assert f"{run_id}: MLflow at {store} has no such run" in error


def test_a_difference_in_the_last_digit_is_one() -> None:
    metrics: dict[str, tuple[float | None, float | None]] = {
        "test/click/auc": (0.1 + 0.2, 0.3),
        "test/click/log_loss": (0.5, 0.5),
        "test/like/auc": (None, None),
        "test/click/auc/home": (0.5, 0.5),
    }
    facts = {"torch": ("2.12", "2.13"), "threads": ("1", "1"), "training": ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}')}
    done = Reproduction("first", "second", weights=False, metrics=metrics, facts=facts)
    assert not done.same
    words = in_words(done)
    assert "0.30000000000000004" in words
    assert "1 of 4 metrics differ; the weights are not the same" in words
    assert "and 1 metrics of segments, all the same" in words
    assert words.splitlines()[-2:] == ["  torch: was 2.12, is 2.13", '  training: was {"b": 2}, is {"b": 3}']
    same = Reproduction("first", "second", True, {"test/like/auc": (None, None)}, {})
    assert same.same
    assert json.dumps(same.result(), allow_nan=False)
