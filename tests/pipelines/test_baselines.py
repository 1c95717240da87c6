"""Baselines on a small world of two tastes: `old` users click on even items, `young` ones on odd ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipelines.baselines import Baseline, Boosting, Network, Popularity, Sample, boosting, fitted
from pipelines.baselines.popularity import SMOOTHING
from pipelines.catalog import model_config
from pipelines.config import Recommender
from pipelines.config.steps import BASELINES
from pipelines.ingest import ingest
from pipelines.prepare import prepare, sides_of
from pipelines.split import Split, batches_of
from pipelines.tables import Tables
from recsys_moe import metrics
from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.compute import multiplications
from recsys_moe.config import Task
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError
from tests.pipelines.conftest import Tiny

USERS, ITEMS, ROWS = 40, 6, 600
SETTINGS: dict[str, Any] = {
    "segments": {"by": "band", "min_rows": 1},
    "training": {"batch_size": 32, "learning_rate": 0.03, "embedding_learning_rate": 0.2, "threads": 1},
}


class Taste(Tiny):
    """Four days of it, prepared."""

    DAYS = 4

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        users = "".join(f"u{n},{'old' if n % 2 else 'young'}\n" for n in range(USERS))
        items = "".join(f"i{n},1,t{n % 3},2025-12-01\n" for n in range(ITEMS))
        self.write("users.csv", "user,band\n" + users)
        self.write("items.csv", "item,price,tags,born\n" + items)

    def rows(self, number: int, count: int = ROWS) -> list[str]:
        draw, lines = random.Random(number), []
        for second in range(count):
            user, item = draw.randrange(USERS), draw.randrange(ITEMS - (number < 3))  # on the last day an item is new
            click = int(draw.random() < (0.8 if user % 2 != item % 2 else 0.2))
            like = int(click and draw.random() < 0.5)
            lines.append(f"u{user},i{item},{self.at(number, second)},home,{click},{like}")
        return lines


@pytest.fixture(scope="module")
def taste(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taste]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RECSYS_MOE_STORAGE_ROOT", raising=False)
        world = Taste(tmp_path_factory.mktemp("taste"))
        config = world(**SETTINGS)
        for number in range(world.DAYS):
            ingest(config, world.day(number))
            prepare(config, world.day(number))
        yield world


@pytest.fixture(scope="module")
def config(taste: Taste) -> Recommender:
    return taste(**SETTINGS)


def sample_of(config: Recommender, taste: Taste, **shape: Any) -> Sample:
    """What baselines are fitted to, beside a model that nobody has trained."""
    tables = Tables(config.storage)
    split = Split.of(config, tables.days("examples"), taste.day(3))
    own = model_config(config, sides_of(config, tables)).model_copy(update=shape)
    encoder = Encoder.fit(own, batches_of(split.rows_to_learn(tables, "train", "validation")))
    return Sample.of(config, tables, split, Ranker(encoder, empty_model(encoder)))


@pytest.fixture(scope="module")
def sample(config: Recommender, taste: Taste) -> Sample:
    return sample_of(config, taste)


@pytest.fixture(scope="module")
def test_rows(config: Recommender, taste: Taste) -> pa.Table:
    return Tables(config.storage).read_day("examples", taste.day(3))


def clicks(rows: pa.Table) -> np.ndarray:
    return rows.column("label_click").to_numpy()


@pytest.fixture(scope="module")
def found(config: Recommender, taste: Taste, sample: Sample) -> dict[str, Baseline]:
    tables = Tables(config.storage)
    return fitted(config, tables, Split.of(config, tables.days("examples"), taste.day(3)), sample.beside)


@pytest.mark.parametrize("name", BASELINES)
def test_each_learns_the_tastes(name: str, found: dict[str, Baseline], sample: Sample, test_rows: pa.Table) -> None:
    """Who knows the tastes has an AUC of 0.8; who knows how often a user or an item is clicked on, of 0.5."""
    baseline = found[name]
    assert baseline.name == name
    assert 0.62 < metrics.auc(clicks(test_rows), baseline.predict(test_rows)["click"]) < 0.84
    for task, said in baseline.predict(sample.learned).items():
        assert metrics.calibration(sample.labels[task], said) == pytest.approx(1.0, abs=0.2)


def test_popularity_is_the_smoothed_rate_of_item_in_segment(sample: Sample, test_rows: pa.Table) -> None:
    popularity = Popularity.of(sample)
    seen = sample.learned.select(["item", "band", "label_click"]).to_pandas().astype({"item": str, "band": str})
    prior = seen.label_click.mean()
    item = seen.groupby("item").label_click.agg(["sum", "count"])
    item_rate = (item["sum"] + SMOOTHING * prior) / (item["count"] + SMOOTHING)
    pair = seen.groupby(["item", "band"]).label_click.agg(["sum", "count"])
    general = pair.index.get_level_values("item").map(item_rate)
    pair_rate = (pair["sum"] + SMOOTHING * general) / (pair["count"] + SMOOTHING)
    items, bands = ["i3", "i3", "i3", "i5", "nobody's"], ["old", "young", "teen", "old", "old"]
    asked = pd.DataFrame({"item": items, "band": bands})
    wanted = [pair_rate["i3", "old"], pair_rate["i3", "young"], item_rate["i3"], prior, prior]
    said = popularity.predict(pa.Table.from_pandas(asked))["click"]
    assert said == pytest.approx(wanted, abs=1e-12)
    assert pair_rate["i3", "young"] > 0.6 > 0.4 > pair_rate["i3", "old"]


def test_a_like_without_a_click_is_no_like(sample: Sample) -> None:
    rows = sample.learned.to_pandas()
    assert rows.label_like.isna().any()
    assert sample.labels["like"] == pytest.approx(rows.label_like.fillna(0.0))


def test_a_sample_has_whole_users_and_grows(taste: Taste) -> None:
    def sampled(rows: int) -> pd.DataFrame:
        config = taste(**SETTINGS, evaluation={"baselines": {"max_rows": rows}})
        found = sample_of(config, taste)
        assert found.learned.num_rows <= rows
        return pa.concat_tables([found.train, found.validation]).to_pandas()

    few, more, everyone = (sampled(rows) for rows in (500, 1000, 3 * ROWS))
    assert 0 < len(few) < len(more) < len(everyone) == 3 * ROWS
    assert set(few.user) < set(more.user) < set(everyone.user)
    for rows in (few, more):
        assert len(rows) == everyone.user.isin(rows.user).sum()


def test_a_sample_of_nobody_is_refused(taste: Taste) -> None:
    with pytest.raises(UserError, match=r"^evaluation\.baselines\.max_rows: 2 rows are fewer than the [1-9]\d* of a"):
        sample_of(taste(**SETTINGS, evaluation={"baselines": {"max_rows": 2}}), taste)


def test_without_refit_the_validation_day_is_not_learned_from(taste: Taste) -> None:
    found = sample_of(taste(**SETTINGS, evaluation={"refit": False}), taste)
    assert (found.learned.num_rows, found.validation.num_rows) == (2 * ROWS, ROWS)


def test_rates_are_those_of_all_rows_where_negatives_are_left_out(taste: Taste, sample: Sample) -> None:
    few = sample_of(taste(**SETTINGS, sampling={"keep_negatives": {"task": "click", "share": 0.25}}), taste)
    assert clicks(few.learned).mean() > 0.7
    for baseline in (Popularity.of(few), Network.shared_bottom(few), Boosting.of(few)):  # 1.6 without a correction
        for task, said in baseline.predict(sample.learned).items():
            assert metrics.calibration(sample.labels[task], said) == pytest.approx(1.0, abs=0.3)


def test_a_task_with_one_answer_has_a_number_instead_of_trees(sample: Sample) -> None:
    never = pa.array(np.zeros(sample.train.num_rows, np.float32))
    at = sample.train.column_names.index("label_click")
    train = sample.train.set_column(at, "label_click", never)
    found = Boosting.of(replace(sample, train=train, validation=train.slice(0, 0)))
    assert (found.trees["click"], found.predict(train)["click"].max()) == (0.0, 0.0)


def test_a_regression_is_predicted_by_its_value(config: Recommender, taste: Taste) -> None:
    sample = sample_of(config, taste, tasks=(Task(name="click", kind="regression"),))
    for baseline in (Popularity.of(sample), Boosting.of(sample)):
        error = baseline.predict(sample.learned)["click"] - sample.labels["click"]
        assert np.mean(error**2) < 0.2 < np.var(sample.labels["click"])


def test_what_cannot_be_fitted_is_left_out(taste: Taste, sample: Sample, caplog: pytest.LogCaptureFixture) -> None:
    config = taste(
        **SETTINGS | {"training": {"batch_size": 32, "learning_rate": 1e30, "threads": 1}},
        evaluation={"baselines": {"models": ["shared_bottom", "popularity"]}},
    )
    tables = Tables(config.storage)
    split = Split.of(config, tables.days("examples"), taste.day(3))
    assert [*fitted(config, tables, split, sample.beside)] == ["popularity"]
    assert "baseline shared_bottom is left out: " in caplog.text


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"models": ["mean"]}, "evaluation.baselines.models.0: .*'popularity', 'shared_bottom', 'dense' or 'boosting'"),
        ({"models": ["dense", "dense"]}, "evaluation.baselines.models: .*names a baseline twice"),
        ({"max_rows": 0}, "evaluation.baselines.max_rows: .*greater than 0"),
    ],
)
def test_a_wrong_block_is_said(tiny: Tiny, written: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny(evaluation={"baselines": written})


def test_no_models_read_no_rows(tiny: Tiny, sample: Sample) -> None:
    config = tiny(evaluation={"baselines": {"models": []}})
    split = Split(config, tiny.day(3), ())
    assert fitted(config, Tables(config.storage), split, sample.beside) == {}


def test_epochs_are_chosen_on_the_validation_day(taste: Taste, test_rows: pa.Table) -> None:
    """Where that day likes the opposite, to learn least is best: as with one epoch from the start."""

    def said(epochs: int) -> list[float]:
        training = SETTINGS["training"] | {"epochs": epochs}
        evaluation = {"refit": False, "baselines": {"max_rows": 400}}
        config = taste(**SETTINGS | {"training": training}, evaluation=evaluation)
        sample = sample_of(config, taste, tasks=(Task(name="click"),))
        at, opposite = sample.validation.column_names.index("label_click"), pa.array(1 - clicks(sample.validation))
        validation = sample.validation.set_column(at, "label_click", opposite)
        return Network.shared_bottom(replace(sample, validation=validation)).predict(test_rows)["click"].tolist()

    assert said(3) == said(1)


def test_one_expert_as_small_as_ours_or_as_much_work(found: dict[str, Baseline], sample: Sample) -> None:
    own = multiplications(sample.beside.config, sample.beside.model.input_dim)
    networks = [network for network in found.values() if isinstance(network, Network)]
    shared, dense = (multiplications(one.ranker.config, one.ranker.model.input_dim) for one in networks)
    assert shared < own <= dense < 1.2 * own


def test_one_positive_among_many_rows_has_a_number_instead_of_trees() -> None:
    labels = np.zeros(10_001)  # from so many rows on, the booster holds some of each answer out
    labels[7] = 1.0
    inputs = np.random.default_rng(0).normal(size=(len(labels), 2)).astype(np.float32)
    assert boosting._fitted(Task(name="like"), inputs, labels, np.ones(len(labels))) == pytest.approx(1 / 10_001)
    value = Task(name="price", kind="regression")
    assert not isinstance(boosting._fitted(value, inputs[:50], labels[:50], np.ones(50)), float)


def test_trees_without_a_feature_to_read_are_left_out(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boosting, "_inputs", lambda encoder, table: np.zeros((table.num_rows, 0), np.float32))
    with pytest.raises(UserError, match="no feature is a number"):
        Boosting.of(sample)
