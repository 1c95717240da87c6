"""How good the shipped recommenders are: long, so `make test-all` runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from pipelines import config as recommenders
from pipelines.registry import Registry
from tests.end_to_end.loop import call_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def _elsewhere(config: Path, folder: Path, **changes: Any) -> Path:
    """A shipped YAML that stores in a folder of its own."""
    raw = yaml.safe_load(config.read_text(encoding="utf-8"))
    path = folder / "configs" / config.name
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({**raw, **changes}), encoding="utf-8")
    return path


def test_the_demo_closes_most_of_the_way_to_the_best_attainable_auc(project_root: Path, tmp_path: Path) -> None:
    path = _elsewhere(project_root / "configs" / "demo.yaml", tmp_path)
    click = call_step("run", "--config", path)["evaluate"]["tasks"]["click"]
    closed = (click["auc"] - click["popularity_auc"]) / (click["best_auc"] - click["popularity_auc"])
    assert closed >= 0.7
    assert click["auc"] > max(click["shared_bottom_auc"], click["dense_auc"], click["boosting_auc"])


def test_twelve_real_days(project_root: Path, shared_data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("KUAIRAND", str(shared_data))
    path = _elsewhere(project_root / "configs" / "kuairand.yaml", tmp_path)
    result = call_step("run", "--config", path)
    assert sum(day["read"] for day in result["ingest"]) == 198_895
    for day in result["ingest"]:
        assert day["read"] == day["accepted"] + day["rejected"] + day["duplicates"]
    assert result["train"]["trained_through"] == "2022-05-04"
    tasks = result["evaluate"]["tasks"]
    assert tasks["click"]["auc"] >= 0.72
    assert tasks["long_view"]["auc"] >= 0.72
    assert tasks["like"]["auc"] >= 0.80
    assert (result["score"]["users"], result["score"]["rows"]) == (27_285, 27_285 * 20)
    Registry(recommenders.load(path))  # mlflow now looks into this recommender's store
    model = mlflow.pyfunc.load_model("models:/kuairand@champion")
    helpers = ["watched_3s", "watched_7s", "watched_20s", "watched_60s", "profile"]
    assert [column.name for column in model.metadata.get_output_schema()] == ["click", "long_view", "like", *helpers]
