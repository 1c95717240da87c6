"""The whole loop on simulated data: files in, top lists out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipelines import evaluate, promote
from pipelines.config.steps import BASELINES
from pipelines.registry import Registry
from pipelines.tables import Tables, snapshots
from recsys_moe import checkpoint
from recsys_moe.errors import OldFormatError
from tests.end_to_end.loop import FIRST_NIGHT, SECOND_NIGHT, Played, call, call_step, small_demo, without_pictures


@pytest.fixture(scope="module")
def again(played: Played, project_root: Path) -> Played:
    """Another recommender that is given the same files."""
    path = small_demo(played.folder, project_root, name="again")
    with without_pictures():
        return Played(path, {FIRST_NIGHT: call_step("run", "--config", path, "--as-of", FIRST_NIGHT.isoformat())})


def _scores(played: Played, night: Any) -> pd.DataFrame:
    frame: pd.DataFrame = Tables(played.config.storage).read_day("scores", night).to_pandas()
    return frame


def _seen(played: Played) -> pd.DataFrame:
    table = Tables(played.config.storage).dataset("interactions").to_table(columns=["user_id", "item_id"])
    frame: pd.DataFrame = table.to_pandas()
    return frame


def test_every_row_that_was_read_is_accounted_for(played: Played) -> None:
    for day in played.nights[SECOND_NIGHT]["ingest"]:
        assert day["read"] == day["accepted"] + day["rejected"] + day["duplicates"]
        assert day["rejected"] > 0
        assert day["duplicates"] > 0


def test_the_model_beats_chance_and_not_the_truth_and_says_which_baselines_are_better(played: Played) -> None:
    found = played.nights[SECOND_NIGHT]["evaluate"]
    for task in found["tasks"].values():
        assert 0.5 < task["auc"] <= task["best_auc"] + 0.02
    click = found["tasks"]["click"]
    measured = [name for name in BASELINES if f"{name}_auc" in click]
    assert measured == ["popularity", "boosting"]  # those that the small demo asks for
    assert found["loses_to"] == [name for name in measured if click[f"{name}_auc"] > click["auc"]]


def test_first_version_is_promoted_and_the_next_only_if_the_gate_holds(played: Played) -> None:
    first, second = (played.nights[night]["promote"] for night in (FIRST_NIGHT, SECOND_NIGHT))
    assert (first["promoted"], first["champion"]) == (True, first["version"])
    assert first["reasons"] == ["there was no champion yet"]
    primary = second["table"][0]
    assert (second["mode"], primary["metric"], primary["segment"]) == ("refresh", "click/auc", "overall")
    assert primary["rows"] == played.nights[SECOND_NIGHT]["evaluate"]["tasks"]["click"]["rows"]
    delta = played.config.evaluation.gate.delta
    lost = primary["low"] <= -delta or "blocks" in {line["verdict"] for line in second["table"]}
    assert not (lost and second["promoted"])
    assert second["promoted"] or second["reasons"]
    assert second["champion"] == (second["version"] if second["promoted"] else first["version"])


def test_every_user_has_a_full_list_unless_candidates_run_out(played: Played) -> None:
    scores = _scores(played, SECOND_NIGHT)
    top_n = played.config.scoring.top_n
    tables = Tables(played.config.storage)
    users = set(snapshots.read(tables, "users", SECOND_NIGHT).column("user_id").to_pylist())
    assert set(scores["user_id"]) == users
    items = set(snapshots.read(tables, "items", SECOND_NIGHT).column("item_id").to_pylist())
    seen = _seen(played).groupby("user_id")["item_id"].agg(lambda found: len(items & set(found)))
    unseen = (len(items) - seen).reindex(sorted(users), fill_value=len(items))
    ranks = scores.groupby("user_id")["rank"].agg(lambda found: sorted(found) == list(range(1, len(found) + 1)))
    assert ranks.all()
    assert scores.groupby("user_id").size().equals(unseen.clip(upper=top_n))
    assert not scores.duplicated(["ds", "context", "user_id", "item_id"]).any()
    assert scores["model_version"].nunique() == 1
    assert np.isfinite(scores.filter(like="score").select_dtypes("number")).all().all()


def test_a_list_goes_down_in_score_and_ties_go_by_item(played: Played) -> None:
    scores = _scores(played, SECOND_NIGHT).sort_values(["user_id", "rank"])
    expected = scores.sort_values(["user_id", "score", "item_id"], ascending=[True, False, True])
    assert scores["item_id"].tolist() == expected["item_id"].tolist()


def test_seen_items_are_left_out(played: Played) -> None:
    both = _scores(played, SECOND_NIGHT).merge(_seen(played), on=["user_id", "item_id"])
    assert both.empty


@pytest.mark.parametrize("step", ["ingest", "prepare", "score"])
def test_a_step_that_runs_twice_gives_the_same_rows(played: Played, step: str) -> None:
    tables, names = Tables(played.config.storage), {"ingest": "interactions", "prepare": "examples", "score": "scores"}
    name: Any = names[step]
    before = tables.read_day(name, FIRST_NIGHT).to_pandas()
    version = ["--model-version", str(before["model_version"].iloc[0])] if step == "score" else []
    call_step(step, "--config", played.path, "--as-of", FIRST_NIGHT.isoformat(), *version)
    after = tables.read_day(name, FIRST_NIGHT).to_pandas()
    leave = ["scored_at"] if step == "score" else []
    pd.testing.assert_frame_equal(before.drop(columns=leave), after.drop(columns=leave))


def test_simulating_twice_writes_the_same_bytes(played: Played) -> None:
    files = [Path(path) for path in played.nights[SECOND_NIGHT]["simulate"]["files"]]
    before = [path.read_bytes() for path in files]
    call_step("simulate", "--config", played.path)
    assert [path.read_bytes() for path in files] == before


def test_a_finished_training_is_not_repeated(played: Played) -> None:
    again = call_step("train", "--config", played.path, "--as-of", SECOND_NIGHT.isoformat())
    first = played.nights[SECOND_NIGHT]["train"]
    assert again["repeated"]
    assert (again["version"], again["run_id"]) == (first["version"], first["run_id"])


def test_the_same_files_give_the_same_model(played: Played, again: Played) -> None:
    first, second = (one.nights[FIRST_NIGHT]["evaluate"]["tasks"] for one in (played, again))
    assert second == first


def test_evaluating_and_promoting_again_change_nothing(played: Played) -> None:
    night = SECOND_NIGHT.isoformat()
    with without_pictures():
        evaluated = call_step("evaluate", "--config", played.path, "--as-of", night)
    assert evaluated["tasks"].keys() == played.nights[SECOND_NIGHT]["evaluate"]["tasks"].keys()
    assert evaluated["tasks"]["click"]["auc"] == played.nights[SECOND_NIGHT]["evaluate"]["tasks"]["click"]["auc"]
    promoted = call_step("promote", "--config", played.path, "--as-of", night)
    assert promoted["champion"] == played.nights[SECOND_NIGHT]["promote"]["champion"]


def test_a_day_without_training_is_scored_by_the_champion_of_before(again: Played) -> None:
    for step in ("ingest", "prepare"):
        call_step(step, "--config", again.path, "--as-of", SECOND_NIGHT.isoformat())
    scored = call_step("score", "--config", again.path, "--as-of", SECOND_NIGHT.isoformat())
    assert (scored["model_version"], scored["users"]) == (1, 300)


SERVE = """
import sys, mlflow, pyarrow.parquet as pq
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(pq.read_table(sys.argv[2]).to_pandas())
assert not {'torchrec', 'fbgemm_gpu', 'sklearn', 'pipelines'} & set(sys.modules), 'served with training packages'
print(answer.to_json(orient='columns'))
"""


def test_the_registered_model_scores_alone_with_no_pickle_and_no_torchrec(played: Played, tmp_path: Path) -> None:
    """Copied away and with all tables gone, it says of raw rows what its checkpoint says."""
    registry = Registry(played.config)
    champion = registry.champion()
    assert champion is not None
    rows = Tables(played.config.storage).read_day("examples", SECOND_NIGHT).slice(0, 50)
    expected = checkpoint.load(registry.checkpoint(champion)).predict(rows)
    pq.write_table(rows, tmp_path / "rows.parquet")
    model = shutil.copytree(mlflow.artifacts.download_artifacts(f"models:/small/{champion.number}"), tmp_path / "model")
    assert not [file for file in model.rglob("*") if file.suffix in {".pkl", ".pickle", ".pt", ".pth", ".bin"}]
    tables = Path(played.config.storage)
    tables.rename(tables.with_name("away"))
    try:
        arguments = [sys.executable, "-P", "-c", SERVE, str(model), str(tmp_path / "rows.parquet")]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path)
    finally:
        tables.with_name("away").rename(tables)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert list(answer) == ["click", "like", "purchase"]
    for position, column in enumerate(answer.values()):
        assert list(column.values()) == pytest.approx(expected[:, position], abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_champion_of_an_older_format_stands_in_nobodys_way(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can no longer serve, so the next version takes over, and is measured without it."""
    registry = Registry(played.config)
    old, new = registry.version(1), registry.version(2)
    read = checkpoint.load

    def load(folder: Path) -> checkpoint.Ranker:
        if folder == registry.checkpoint(old):
            raise OldFormatError(f"{folder}: is of version 0")
        return read(folder)

    monkeypatch.setattr(checkpoint, "load", load)
    monkeypatch.setattr(Registry, "champion", lambda self: old)
    monkeypatch.setattr(Registry, "trained_for", lambda *_: new)
    decision = promote.promote(played.config, SECOND_NIGHT, dry_run=True)
    assert decision["promoted"]
    assert "champion 1 cannot be tried" in decision["reasons"][0]
    with without_pictures():
        click = evaluate.evaluate(played.config, SECOND_NIGHT)["tasks"]["click"]
    assert "champion_auc" not in click


def test_a_run_shows_its_config_numbers_pictures_and_inputs(played: Played) -> None:
    registry = Registry(played.config)
    run = registry.client.get_run(played.nights[SECOND_NIGHT]["train"]["run_id"])
    assert {"test/click/auc", "popularity/click/auc", "best_attainable/click/auc"} <= run.data.metrics.keys()
    assert any(name.startswith("test/click/auc/") for name in run.data.metrics)
    assert run.data.params["model.experts.routed"] == "8"
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"examples", "users", "items"}
    pictures = {file.path for file in registry.client.list_artifacts(run.info.run_id, "pictures")}
    assert {"pictures/training.png", "pictures/calibration.png", "pictures/expert_load.png"} <= pictures


@pytest.mark.parametrize(
    ("step", "reason"), [("score", "no champion"), ("evaluate", "no version"), ("promote", "no version")]
)
def test_steps_that_come_too_early_say_so_and_exit_99(
    step: str, reason: str, played: Played, project_root: Path
) -> None:
    path = small_demo(played.folder, project_root, name="early")
    code, stdout, stderr = call(step, "--config", path, "--as-of", "2026-01-01")
    assert (code, stdout) == (99, "")
    assert reason in stderr


def test_training_is_not_due_for_an_older_day(played: Played) -> None:
    code, _, stderr = call("train", "--config", played.path, "--as-of", FIRST_NIGHT.isoformat(), "--if-due")
    assert code == 99
    assert "2026-01-05 is ingested already" in stderr


def test_too_few_days_are_a_users_error_by_hand_and_not_due_for_a_scheduler(played: Played) -> None:
    arguments = ("train", "--config", played.path, "--as-of", "2026-01-02")
    code, _, stderr = call(*arguments)
    assert (code, stderr.count("\n")) == (2, 1)
    assert "needs at least 3 prepared days" in stderr
