"""Where runs go, as far as it needs no model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.registry import Registry, tracking_uri
from pipelines.tracking import in_a_line, without_login
from recsys_moe.errors import UserError


def test_two_recommenders_in_one_process_each_have_their_own_store(
    tiny: Callable[..., Recommender], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = tiny()
    elsewhere = config.model_copy(update={"storage": str(tmp_path / "elsewhere" / "tables")})
    for one in (config, elsewhere):  # made already: making a store takes seconds
        path = Path(tracking_uri(one).removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True)
        shutil.copy(store.removeprefix("sqlite:///"), path)
    first, second = Registry(config), Registry(elsewhere)
    run = first.client.create_run(first.experiment_id)
    assert [found.info.run_id for found in first.client.search_runs([first.experiment_id])] == [run.info.run_id]
    assert second.client.search_runs([second.experiment_id]) == []
    assert second.uri == tracking_uri(elsewhere) == f"sqlite:///{tmp_path}/elsewhere/mlflow/mlflow.db"


def test_a_server_in_the_environment_comes_first(
    tiny: Callable[..., Recommender], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    config = tiny()
    assert Registry(config).uri == store != f"sqlite:///{config.workspace}/mlflow/mlflow.db"


def test_there_is_no_champion_before_the_first_promotion(
    tiny: Callable[..., Recommender], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert Registry(tiny(name="never_promoted")).champion() is None


def test_a_deleted_experiment_is_told(
    tiny: Callable[..., Recommender], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    registry = Registry(tiny(name="was_deleted"))
    registry.client.delete_experiment(registry.experiment_id)
    with pytest.raises(UserError, match="the experiment 'was_deleted' was deleted; restore it with"):
        Registry(tiny(name="was_deleted"))


def test_two_steps_that_make_the_experiment_at_once_share_it(
    tiny: Callable[..., Recommender], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    first = Registry(tiny(name="made_at_once"))
    looked, look = [], MlflowClient.get_experiment_by_name

    def too_early(client: MlflowClient, name: str) -> object:
        looked.append(name)
        return None if len(looked) == 1 else look(client, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early)
    assert Registry(tiny(name="made_at_once")).experiment_id == first.experiment_id
    assert len(looked) == 2


def test_no_message_has_the_login_of_the_server(
    tiny: Callable[..., Recommender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s%40cret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TryAgainError, match=r"^MLflow at http://\*\*\*@127\.0\.0\.1:1: ") as told:
        Registry(tiny())
    assert not any(secret in str(told.value) for secret in ("cret", "me:"))
    assert without_login("http://127.0.0.1:1") == "http://127.0.0.1:1"
    assert in_a_line(OSError("no s@cret\nmore"), "http://me:s%40cret@127.0.0.1:1") == "no ***"
