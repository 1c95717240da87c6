"""A tiny recommender with one version, of which each test gets a copy of its own to score with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.runs import Run
from pipelines.train import train
from tests.pipelines.conftest import Tiny

LAST = 3
Scored = Callable[..., Recommender]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, store: str) -> Tiny:
    """Four days, and version 1."""
    made = Tiny(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        patch.setattr(Run, "picture", lambda *_: None)  # which nobody looks at here
        config = made(name="scored", training={"batch_size": 16, "threads": 1})
        for number in range(LAST + 1):
            ingest(config, made.day(number))
            prepare(config, made.day(number))
        train(config, made.day(LAST))
    return made


@pytest.fixture
def scored(trained: Tiny, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Scored:
    """Call it for the recommender with other keys of `scoring`; its tables are a copy."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    shutil.copytree(trained.folder, tmp_path / "world")
    world = Tiny.__new__(Tiny)
    world.folder = tmp_path / "world"

    def make(**scoring: Any) -> Recommender:
        wanted = {"context": {"tab": "home"}, "top_n": 3, "candidates": {"source": "all"}}
        if "contexts" in scoring:
            del wanted["context"]
        return world(name="scored", training={"batch_size": 16, "threads": 1}, scoring=wanted | scoring)

    return make
