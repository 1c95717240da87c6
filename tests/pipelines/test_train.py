"""Whole trainings that begin from the champion, on a tiny recommender and a real MLflow."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipelines import fitting
from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.promote import rollback
from pipelines.registry import Registry
from pipelines.tables import Tables
from pipelines.train import train
from recsys_moe import checkpoint
from tests.pipelines.conftest import CONFIG, Tiny

TRAINING = {"batch_size": 16, "epochs": 2, "threads": 1}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def warm(tiny: Tiny, store: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Recommender:
    """Days 0 to 5 are prepared; the champion is of day 4, trained cold, as it was the first."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    config = tiny(name=request.node.name[:30], training=TRAINING | {"warm_start": True})
    for number in range(6):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    first = train(config, tiny.day(4))
    rollback(config, "the first", to=first["version"])
    assert tags_of(config, first)["warm_start"] == "no (there is no champion yet)"
    return config


def tags_of(config: Recommender, result: dict[str, Any]) -> dict[str, str]:
    return dict(Registry(config).client.get_run(result["run_id"]).data.tags)


def test_the_next_day_begins_from_the_champion(warm: Recommender, tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(warm)
    with caplog.at_level("INFO"):
        result = train(warm, tiny.day(5))
    assert tags_of(warm, result)["warm_start"] == "from version 1"
    assert "choose: " not in caplog.text
    learned = re.search(r"refit: (\d+) rows", caplog.text)
    assert learned is not None
    assert len(tiny.rows(4)) < int(learned[1]) < 5 * len(tiny.rows(4))
    first, second = (checkpoint.load(registry.checkpoint(registry.version(number))).encoder for number in (1, 2))
    for name, known in first.vocabularies.items():
        assert second.vocabularies[name].slice(0, len(known)).equals(known)
    rollback(warm, "the next", to=2)
    again = train(warm, tiny.day(5))
    assert (again["version"], again["repeated"]) == (2, True)


def test_a_new_feature_costs_one_cold_start(warm: Recommender, tiny: Tiny) -> None:
    features = CONFIG["features"] | {"categorical": ["user", "item", "tab", "band", "hour"]}
    changed = tiny(name=warm.name, training=TRAINING | {"warm_start": True}, features=features)
    tags = tags_of(changed, train(changed, tiny.day(5)))
    assert tags["warm_start"].startswith("no (version 1 does not fit: features: 'hour' (categorical) differ")
    assert "started_from" not in tags


def test_examples_that_change_under_a_training_end_it(tiny: Tiny, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run would name other examples than those that it has read."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    config = tiny(name="changed", training=TRAINING)
    for number in range(4):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    tables, fit = Tables(config.storage), fitting.lead

    def fit_and_change(*arguments: Any) -> Any:
        fitted = fit(*arguments)
        rows = tables.read_day("examples", tiny.day(0))
        tables.replace_day("examples", tiny.day(0), rows.slice(1).drop_columns(["ds"]))
        return fitted

    monkeypatch.setattr("pipelines.train.lead", fit_and_change)
    with pytest.raises(TryAgainError, match="prepared again"):
        train(config, tiny.day(3))
    assert Registry(config).trained_for(tiny.day(3)) is None
