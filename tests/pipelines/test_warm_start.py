"""What a training begins from: never a version that knows what it is to be judged by."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.config import Recommender
from pipelines.promote import rollback
from pipelines.registry import Registry, Version
from pipelines.split import Replay, Split
from pipelines.tables import Tables
from pipelines.warm_start import Start, checked, learned_days, start_of
from recsys_moe.checkpoint import empty_model, save
from recsys_moe.config import Feature, ModelConfig, Task, WarmStart
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError
from tests.pipelines.conftest import Tiny

WARM = {"training": {"warm_start": True}}


class Versions:
    """Registers versions that learned through a day, and crowns them."""

    def __init__(self, config: Recommender) -> None:
        self.config, self.registry = config, Registry(config)
        self.registry.client.create_registered_model(self.registry.name)

    def add(self, through: date, started_from: int | None = None, crown: bool = True) -> Version:
        tags = {"as_of": through.isoformat(), "trained_through": through.isoformat()}
        tags |= {"started_from": str(started_from)} if started_from else {}
        client = self.registry.client
        run = client.create_run(self.registry.experiment_id, tags=tags)
        made = client.create_model_version(self.registry.name, "file:///nowhere", run.info.run_id)
        version = self.registry.version(int(made.version))
        if crown:
            rollback(self.config, "a test", to=version.number)
        return version


@pytest.fixture
def config(tiny: Tiny, store: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Recommender:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return tiny(name=f"warm_{abs(hash(request.node.name))}", **WARM)


@pytest.fixture
def versions(config: Recommender) -> Versions:
    return Versions(config)


def split_of(config: Recommender, last: int) -> Split:
    return Split.of(config, [Tiny.day(number) for number in range(last + 1)], Tiny.day(last))


def start(config: Recommender, versions: Versions, last: int) -> Start:
    return start_of(config, versions.registry, split_of(config, last))


@pytest.mark.parametrize(
    ("written", "read"),
    [(True, WarmStart()), (False, None), (None, None), ({"keep": 0.2}, WarmStart(replay=3.0, keep=0.2))],
)
def test_true_is_short_for_the_usual_settings(tiny: Tiny, written: object, read: WarmStart | None) -> None:
    assert tiny(training={"warm_start": written}).training.warm_start == read


def test_cold_unless_asked_for(tiny: Tiny, versions: Versions) -> None:
    versions.add(Tiny.day(2))
    assert start(tiny(), versions, 4).words == "no (training.warm_start is false)"


def test_cold_without_a_champion(config: Recommender, versions: Versions) -> None:
    versions.add(Tiny.day(2), crown=False)
    assert start(config, versions, 4).words == "no (there is no champion yet)"


def test_from_the_champion_on_the_days_that_it_does_not_know(config: Recommender, versions: Versions) -> None:
    champion = versions.add(Tiny.day(2))
    found = start(config, versions, 4)
    assert found == Start(champion, found.reason)
    assert found.words == f"from version {champion.number}"
    rows = found.rows_of(split_of(config, 4))
    assert (rows.days_of("train"), rows.days_of("validation")) == ((), (Tiny.day(3),))


def test_an_older_champion_leaves_days_to_choose_by(config: Recommender, versions: Versions) -> None:
    versions.add(Tiny.day(1))
    rows = start(config, versions, 5).rows_of(split_of(config, 5))
    assert rows.days_of("train") == (Tiny.day(2), Tiny.day(3))
    assert rows.days_of("validation") == (Tiny.day(4),)


@pytest.mark.parametrize(("replay", "share"), [(0.0, 0.0), (1.5, 0.5), (20.0, 20 / 3)])
def test_older_rows_are_replayed_for_every_new_one(tiny: Tiny, versions: Versions, replay: float, share: float) -> None:
    config = tiny(training={"warm_start": {"replay": replay}})
    tables = Tables(config.storage)
    for number, rows in enumerate((20, 20, 20, 20, 5)):
        tables.replace_day("examples", Tiny.day(number), pa.table({"x": [0] * rows}))
    champion, split = Start(versions.add(Tiny.day(2))), split_of(config, 4)
    found = champion.replaying(split, tables, "train", "validation").replay
    assert found is not None
    assert found.through == Tiny.day(2)
    assert found.share == pytest.approx(share)
    assert champion.replaying(split_of(config, 3), tables, "train").replay == Replay(Tiny.day(2), 0.0)
    assert Start().replaying(split, tables, "train", "validation") == split


def test_a_training_that_is_repeated_begins_where_it_began(config: Recommender, versions: Versions) -> None:
    """Its own result may be the champion by now, or that of a later day."""
    first = versions.add(Tiny.day(2))
    second = versions.add(Tiny.day(3), started_from=first.number)
    versions.add(Tiny.day(4), started_from=second.number)
    assert start(config, versions, 4).version == first
    assert start(config, versions, 5).version == second


def test_cold_where_every_champion_knows_the_days(config: Recommender, versions: Versions) -> None:
    versions.add(Tiny.day(4))
    assert start(config, versions, 4).words == f"no (no champion of before {Tiny.day(3)} is known)"


def test_what_the_final_model_learns_from(tiny: Tiny) -> None:
    assert learned_days(tiny(), split_of(tiny(), 4))[-1] == Tiny.day(3)
    once = tiny(evaluation={"refit": False})
    assert learned_days(once, split_of(once, 4))[-1] == Tiny.day(2)


def test_only_time_tells_new_days_from_known_ones(tiny: Callable[..., Recommender]) -> None:
    with pytest.raises(UserError, match=r"training.warm_start: needs evaluation.split.by: time"):
        tiny(**WARM, evaluation={"split": {"by": "random", "validation": 0.1, "test": 0.1}})


TAB = Feature(name="tab", kind="categorical", side="context")
SHAPE = ModelConfig(features=(TAB,), tasks=(Task(name="click"),), embedding_dim=4)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"features": (TAB, Feature(name="hour", kind="categorical", side="context"))}, "features: 'hour'"),
        ({"tasks": (Task(name="like"),)}, "tasks: were click"),
        ({"embedding_dim": 8}, "model.embedding_dim: was 4"),
    ],
)
def test_a_champion_of_another_shape_costs_a_cold_start(
    config: Recommender,
    versions: Versions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    why: str | None,
) -> None:
    encoder = Encoder(SHAPE, {"tab": pa.array(["a"])}, {})
    save(tmp_path / "checkpoint", encoder, empty_model(encoder))
    monkeypatch.setattr(Registry, "checkpoint", lambda self, version: tmp_path / "checkpoint")
    begin = Start(versions.add(Tiny.day(2)))
    found, folder = checked(begin, versions.registry, SHAPE.model_copy(update=change))
    if why is None:
        assert (found, folder) == (begin, tmp_path / "checkpoint")
    else:
        assert folder is None
        assert found.words.startswith("no (version")
        assert why in found.words
