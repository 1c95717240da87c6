"""Where runs go, as far as it needs no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config import Recommender
from pipelines.registry import Registry, tracking_uri


def test_two_recommenders_in_one_process_each_have_their_own_store(
    tiny: Callable[..., Recommender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = tiny()
    elsewhere = config.model_copy(update={"storage": str(tmp_path / "elsewhere" / "tables")})
    Registry(config)
    assert Registry(elsewhere).uri == tracking_uri(elsewhere) == f"sqlite:///{tmp_path}/elsewhere/mlflow/mlflow.db"


def test_a_server_in_the_environment_comes_first(
    tiny: Callable[..., Recommender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/asked_for.db")
    assert Registry(tiny()).uri == f"sqlite:///{tmp_path}/asked_for.db"


def test_there_is_no_champion_before_the_first_promotion(
    tiny: Callable[..., Recommender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/empty.db")
    assert Registry(tiny()).champion() is None
