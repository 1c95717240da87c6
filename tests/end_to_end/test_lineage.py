"""From a score back to the rows that its model learned from, and forth again; nothing on the way is only believed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pyarrow.compute as pc
import yaml

from pipelines.registry import Registry
from pipelines.tables import Tables
from recsys_moe import checkpoint, digests
from tests.end_to_end.loop import SECOND_NIGHT, Played


def test_from_a_score_back_to_the_rows(played: Played, project_root: Path) -> None:
    registry, tables = Registry(played.config), Tables(played.config.storage)
    scores = tables.read_day("scores", SECOND_NIGHT)
    (number,) = scores.column("model_version").unique().to_pylist()
    (run_id,) = scores.column("run_id").unique().to_pylist()
    version = registry.version(number)
    assert version.run_id == run_id
    run, opened = registry.client.get_run(run_id), registry.open_run(run_id)
    assert run.data.tags["mlflow.source.name"] == str(played.path)
    assert opened.read_text("config.yaml") == played.path.read_text(encoding="utf-8")
    assert yaml.safe_load(str(opened.read_text("config.yaml")))["name"] == registry.name
    assert run.data.tags["mlflow.source.git.commit"] == _git(project_root, "rev-parse", "HEAD")
    assert run.data.tags["git.dirty"] in ("true", "false")
    assert run.data.tags["checkpoint.sha256"] == digests.digest(registry.checkpoint(version))
    inputs = {one.dataset.name: json.loads(one.dataset.source) for one in run.inputs.dataset_inputs}
    assert inputs.keys() == {"examples", "users", "items"}
    assert {name: source["path"] for name, source in inputs.items()} == {name: tables.path(name) for name in inputs}
    then = Tables(played.config.storage, {"examples": inputs["examples"]["delta_table_version"]})
    days = [day for day in then.days("examples") if day <= version.as_of]
    decisive = opened.read("decisive.json")
    assert decisive is not None
    assert decisive["examples"] == then.fingerprint("examples", days)
    learned = then.dataset("examples").to_table(columns=["user_id"], filter=pc.field("ds") <= version.through)
    known = set(checkpoint.load(registry.checkpoint(version)).encoder.vocabularies["user_id"].to_pylist())
    assert known <= set(learned.column("user_id").to_pylist())


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_from_a_table_forth_to_the_scores(played: Played) -> None:
    registry, tables = Registry(played.config), Tables(played.config.storage)
    for night, results in played.nights.items():
        at = results["train"]["versions"]["examples"]
        readers = [training for training in registry.trainings() if training.tables.get("examples") == at]
        (training,) = [training for training in readers if training.as_of == night]
        assert training.run_id == results["train"]["run_id"]
        assert training.versions == (results["train"]["version"],)
    scores = tables.read_day("scores", SECOND_NIGHT)
    serving = results["score"]["model_version"]
    (made,) = [training for training in registry.trainings() if serving in training.versions]
    assert set(scores.column("run_id").to_pylist()) == {made.run_id}


def test_what_it_ran_on_is_kept(played: Played) -> None:
    opened = Registry(played.config).open_run(played.nights[SECOND_NIGHT]["train"]["run_id"])
    environment = opened.read("environment.json")
    assert environment is not None
    assert (environment["threads"], environment["processes"], environment["device"]) == ("1", "1", "cpu")
    assert {"code", "python", "torch", "processor", "instructions"} <= environment.keys()
    assert opened.read("nothing.json") is None
