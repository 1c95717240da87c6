"""`recsys-moe explain` on the small recommender, as a person would call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from pipelines.explain_text import WIDTH
from pipelines.registry import Registry
from pipelines.tables import Tables
from tests.end_to_end.loop import SECOND_NIGHT, Played, call, call_step, small_demo


def _list_of_a_user(played: Played) -> list[dict[str, Any]]:
    rows = Tables(played.config.storage).read_day("scores", SECOND_NIGHT).to_pylist()
    mine = [row for row in rows if row["user_id"] == rows[0]["user_id"]]
    return sorted(mine, key=lambda row: row["rank"])


def test_a_pair_is_explained_as_it_was_scored(played: Played) -> None:
    row = _list_of_a_user(played)[0]
    pair = ("--user", row["user_id"], "--item", row["item_id"])
    found = call_step("explain", "--config", played.path, "--json", *pair)
    assert (found["as_of"], found["model_version"]) == (SECOND_NIGHT.isoformat(), row["model_version"])
    assert (found["segment"], found["segment_source"]) == (row["segment"], row["segment_source"])
    for task in found["tasks"]:
        assert task["prediction"] == pytest.approx(row[f"score_{task['task']}"], rel=1e-5)
        weights = task["experts"]
        assert sum(weights.values()) == pytest.approx(1.0)
        assert weights[f"segment {row['segment']}"] > 0
        assert sum(weight > 0 for weight in weights.values()) == 2 + 1 + 2 + 1  # shared, own, chosen, the segment's


def test_what_moved_the_gate_comes_with_its_values_and_most_first(played: Played) -> None:
    row = _list_of_a_user(played)[0]
    pair = ("--user", row["user_id"], "--item", row["item_id"])
    for task in call_step("explain", "--config", played.path, "--json", *pair)["tasks"]:
        sizes = [abs(move["added"]) for move in task["moved"]]
        assert sizes == sorted(sizes, reverse=True)
        values = {move["feature"]: move["value"] for move in task["moved"]}
        asked = {name: str(value) for name, value in played.config.scoring.context.items()}
        known = {"user_id": row["user_id"], "item_id": row["item_id"], "the segment": row["segment"], **asked}
        assert {name: values[name] for name in known} == known
        assert isinstance(values["topics"], list)
        for move in task["moved"]:
            added = task["logits"][move["expert"]]["added"]
            assert added[move["feature"]] == pytest.approx(move["added"])


def test_a_user_alone_is_explained_over_the_list_that_was_scored(played: Played) -> None:
    listed = _list_of_a_user(played)
    found = call_step("explain", "--config", played.path, "--json", "--user", listed[0]["user_id"])
    assert found["items"] == [row["item_id"] for row in listed]
    mean = sum(row["score_like"] for row in listed) / len(listed)
    assert found["tasks"][1]["prediction"] == pytest.approx(mean, rel=1e-5)
    values = {move["feature"]: "value" in move for move in found["tasks"][1]["moved"]}
    assert (values["user_id"], values["item_id"]) == (True, False)


@pytest.mark.parametrize("item", [(), ("--item", "i2")])
def test_text_fits_80_columns_and_says_who_what_and_why(played: Played, item: tuple[str, ...]) -> None:
    code, stdout, _ = call("explain", "--config", played.path, "--user", "u1", *item)
    assert code == 0
    assert max(map(cell_len, stdout.splitlines())) <= WIDTH == 80
    for said in ("User u1", "(champion)", "Segment ", "Predicted", "purchase", "shared 0", "routed ", "+0.69 doubles"):
        assert said in stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--user", "nobody"), "--user: 'nobody' is none of the 300 known at the end of 2026-01-05, such as u0"),
        (("--user", "u1", "--item", "nothing"), "--item: 'nothing' is none of the"),
        (("--user", "u1", "--as-of", "2026-02-01"), "2026-02-01 is not prepared; 2026-01-01 to 2026-01-05 are"),
        (("--user", "u1", "--as-of", "tomorrow"), "is no date"),
        (("--user", "u1", "--model-version", "99"), "no version 99"),
        (("--user", "u1", "--context", "moon"), "'moon' is none of default"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(played: Played, arguments: tuple[str, ...], says: str) -> None:
    code, stdout, stderr = call("explain", "--config", played.path, *arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert says in stderr


def test_before_the_first_champion_it_says_what_to_do(played: Played, project_root: Path) -> None:
    path = small_demo(played.folder, project_root, name="unpromoted")
    code, _, stderr = call("explain", "--config", path, "--user", "u1")
    assert code == 2
    assert "train and promote a version first" in stderr


def test_a_run_has_the_health_of_its_experts(played: Played) -> None:
    """Per epoch from the validation rows, and from the test rows with what each expert is worth."""
    registry = Registry(played.config)
    run_id = played.nights[SECOND_NIGHT]["train"]["run_id"]
    metrics = registry.client.get_run(run_id).data.metrics
    assert {
        "validation/experts/load_entropy",
        "validation/experts/segment_information/click",
        "experts/busiest_share",
        "experts/gate_distance/click-like",
        "experts/knock_out/purchase/segment",
        "experts/knock_out/click/routed_7",
    } <= metrics.keys()
    assert 0 < metrics["experts/load_entropy"] <= 1
    stored = Path(registry.client.download_artifacts(run_id, "experts.json"))
    tables = json.loads(stored.read_text(encoding="utf-8"))
    assert tables["knock_out"]["rise"]["segment"]["click"] == metrics["experts/knock_out/click/segment"]
    assert sum(tables["segment_rows"].values()) == played.nights[SECOND_NIGHT]["evaluate"]["tasks"]["click"]["rows"]
    pictures = {file.path for file in registry.client.list_artifacts(run_id, "pictures")}
    assert {"pictures/knock_out.png", "pictures/expert_load.png", "pictures/gate_weights_by_segment"} <= pictures
