"""The simulated marketplace: repeatable, dirty as an export is, and worth learning."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines import marketplace
from pipelines.config import Recommender, Simulation, load
from pipelines.simulate import simulate, truth_path
from recsys_moe.errors import UserError

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
SMALL = {"users": 300, "items": 80, "rows_per_day": 2000, "days": 3}
KEY = ["user_id", "item_id", "time_ms"]


def recommender(folder: Path, changes: dict[str, Any] | None = None, **simulation: Any) -> Recommender:
    """The demo's YAML in a folder of its own, smaller, with top-level keys changed."""
    raw = yaml.safe_load(DEMO.read_text())
    raw["simulation"] = {**raw["simulation"], **SMALL, **simulation}
    path = folder / "configs" / "demo.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**raw, **(changes or {})}))
    return load(path)


def read_log(config: Recommender, ds: date) -> pd.DataFrame:
    return pd.read_csv(config.source.interactions.path_for(ds), dtype=str, keep_default_na=False)


def sound_rows(config: Recommender, ds: date) -> pd.DataFrame:
    """The rows that a reader should accept, with numbers as numbers."""
    rows = read_log(config, ds)
    sound = (rows.user_id != "") & (rows.item_id != "") & (rows.time_ms != "n/a") & rows.is_click.isin(["0", "1"])
    numbers = ["time_ms", "position", "is_click", "is_like", "is_purchase"]
    return rows[sound].drop_duplicates(KEY).astype(dict.fromkeys(numbers, "int64"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recommender, dict[str, Any]]:
    config = recommender(tmp_path_factory.mktemp("small"))
    return config, simulate(config)


def test_same_seed_writes_the_same_bytes(tmp_path: Path, small: tuple[Recommender, dict[str, Any]]) -> None:
    again = recommender(tmp_path)
    simulate(again)
    assert contents(Path(again.storage)) == contents(Path(small[0].storage))


def test_another_seed_writes_another_world(tmp_path: Path, small: tuple[Recommender, dict[str, Any]]) -> None:
    other = recommender(tmp_path, seed=1)
    simulate(other)
    mine, theirs = contents(Path(small[0].storage)), contents(Path(other.storage))
    assert mine.keys() == theirs.keys()
    assert all(mine[name] != theirs[name] for name in mine)


def test_more_days_change_no_earlier_day(tmp_path: Path, small: tuple[Recommender, dict[str, Any]]) -> None:
    longer = recommender(tmp_path, days=5)
    simulate(longer)
    before, after = contents(Path(small[0].storage)), contents(Path(longer.storage))
    items = "source/items.csv"
    assert after[items].startswith(before.pop(items))
    assert {name: after[name] for name in before} == before


def test_report_agrees_with_the_files(small: tuple[Recommender, dict[str, Any]]) -> None:
    config, report = small
    assert report["days"] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    logs = [read_log(config, date.fromisoformat(ds)) for ds in report["days"]]
    assert report["rows"] == sum(map(len, logs))
    assert report["items"] == len(pd.read_csv(config.source.items[0].path)) == 82
    assert report["users"] == len(pd.read_csv(config.source.users[0].path)) == 300
    assert all(Path(path).is_file() for path in report["files"])
    assert not list(Path(config.storage).rglob(".*")), "no unfinished file is left"


def test_each_kind_of_dirt_is_there(small: tuple[Recommender, dict[str, Any]]) -> None:
    config, report = small
    rows = pd.concat([read_log(config, date.fromisoformat(ds)) for ds in report["days"]])
    found = {
        "null_user": (rows.user_id == "").sum(),
        "null_item": (rows.item_id == "").sum(),
        "bad_timestamp": (~rows.time_ms.str.isdigit()).sum(),
        "bad_label": (~rows.is_click.isin(["0", "1"])).sum(),
        "duplicate": rows.duplicated().sum(),
    }
    assert found == {kind: report["dirt"][kind] for kind in found}
    assert min(found.values()) >= 3


def test_a_few_rows_come_a_day_late(small: tuple[Recommender, dict[str, Any]]) -> None:
    config, report = small
    days_late: list[int] = []
    for ds in report["days"]:
        local = pd.to_datetime(sound_rows(config, date.fromisoformat(ds)).time_ms, unit="ms", utc=True)
        happened = local.dt.tz_convert(config.columns.timezone).dt.tz_localize(None).dt.normalize()
        days_late += (pd.Timestamp(ds) - happened).dt.days.tolist()
    assert set(days_late) == {0, 1}
    assert sum(days_late) == report["dirt"]["late"]
    assert 0.002 < np.mean(days_late) < 0.01


def test_items_are_shown_only_after_their_upload(small: tuple[Recommender, dict[str, Any]]) -> None:
    config, _ = small
    items = pd.read_csv(config.source.items[0].path, parse_dates=["uploaded"]).set_index("item_id")
    ds = date(2026, 1, 3)
    rows = sound_rows(config, ds)
    happened = pd.to_datetime(rows.time_ms, unit="ms", utc=True).dt.tz_convert(config.columns.timezone)
    uploaded = items.uploaded[rows.item_id].dt.tz_localize(config.columns.timezone)
    assert (happened.to_numpy() >= uploaded.to_numpy()).all()
    assert uploaded.max().date() == date(2026, 1, 2), "new items come every day"


def test_truth_joins_sound_rows_one_to_one(small: tuple[Recommender, dict[str, Any]]) -> None:
    config, report = small
    for ds in map(date.fromisoformat, report["days"]):
        truth, rows = pd.read_parquet(truth_path(config, ds)), sound_rows(config, ds)
        joined = rows.merge(truth, on=KEY, how="outer", validate="one_to_one", indicator=True)
        assert (joined._merge == "both").all()
        assert len(joined) == SMALL["rows_per_day"]
        event_time = pd.to_datetime(joined.time_ms, unit="ms", utc=True)
        assert (joined.event_time == event_time).all()
        np.testing.assert_allclose(joined.p_click_purchase, joined.p_click * joined.p_purchase)


def test_a_purchase_needs_a_click(small: tuple[Recommender, dict[str, Any]]) -> None:
    rows = sound_rows(small[0], date(2026, 1, 2))
    assert not ((rows.is_purchase == 1) & (rows.is_click == 0)).any()


@pytest.mark.parametrize("unit", ["s", "us", "iso"])
def test_times_are_written_in_the_unit_of_the_yaml(tmp_path: Path, unit: str) -> None:
    columns = {"user": "user_id", "item": "item_id", "timestamp": {"name": "at", "unit": unit}, "timezone": "UTC"}
    config = recommender(tmp_path, {"columns": columns}, days=1)
    simulate(config)
    truth = pd.read_parquet(truth_path(config, date(2026, 1, 1)))
    times = pd.to_datetime(truth["at"], utc=True, **({} if unit == "iso" else {"unit": unit}))
    assert (times == truth.event_time).all()
    assert not truth.duplicated(["user_id", "item_id", "at"]).any()
    written = set(read_log(config, date(2026, 1, 1))["at"])
    assert set(truth["at"].astype(str)) <= written


@pytest.mark.parametrize(("start", "hours"), [(date(2026, 3, 29), 23), (date(2026, 10, 25), 25)])
def test_days_when_the_clock_changes_keep_to_their_day(tmp_path: Path, start: date, hours: int) -> None:
    config = recommender(tmp_path, start=start, days=1)
    simulate(config)
    times = pd.read_parquet(truth_path(config, start)).event_time
    midnight = pd.Timestamp(start, tz=config.columns.timezone)
    punctual = times[times >= midnight]
    assert len(punctual) > 0.98 * len(times)
    assert punctual.max() < midnight + pd.Timedelta(hours=hours)


@pytest.mark.parametrize("seed", range(5))
def test_tastes_differ_in_kind(seed: int) -> None:
    tastes = marketplace.open_market(Simulation(users=50, items=50, days=1, seed=seed)).tastes
    for table in (tastes.click, tastes.purchase, tastes.novelty, tastes.price):
        assert (table.max(axis=0) > 0.5).all()
        assert (table.min(axis=0) < -0.5).all()
    alike = np.corrcoef(tastes.click)
    assert alike.min() < -0.3, "some segments are opposites"


def test_probabilities_follow_the_segments_taste() -> None:
    """The same item at the same moment: the segment that loves its topics clicks more often than one that does not."""
    size = Simulation(users=400, items=60, rows_per_day=20_000, days=1)
    market = marketplace.open_market(size)
    shown = marketplace.show(market, size, 0, size.rows_per_day)
    chance = marketplace.probabilities(market, shown)["click"]
    liking = (market.tastes.click[market.users.segment[shown.user]] * market.items.topics[shown.item]).sum(axis=1)
    assert chance[liking > 1].mean() > 2.5 * chance[liking < -1].mean()


def test_earlier_places_draw_more_clicks_and_few_items_most_views() -> None:
    size = Simulation(users=400, items=200, rows_per_day=20_000, days=1)
    market = marketplace.open_market(size)
    shown = marketplace.show(market, size, 0, size.rows_per_day)
    chance = marketplace.probabilities(market, shown)["click"]
    assert chance[shown.position == 1].mean() > 1.5 * chance[shown.position == 10].mean()
    views = np.sort(np.bincount(shown.item, minlength=200))[::-1]
    assert views[:20].sum() > 0.3 * views.sum()


def test_a_request_shows_distinct_items() -> None:
    size = Simulation(users=100, items=300, rows_per_day=5_000, days=1)
    shown = marketplace.show(marketplace.open_market(size), size, 0, size.rows_per_day)
    slates = shown.item.reshape(-1, marketplace.SLATE)
    assert all(len(set(slate)) == marketplace.SLATE for slate in slates.tolist())


class World(NamedTuple):
    config: Recommender
    train: pd.DataFrame
    test: pd.DataFrame


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Rows with their truth: the days before the last, and the last."""
    config = recommender(tmp_path_factory.mktemp("world"), users=2000, items=300, rows_per_day=12_000, days=6)
    days = [date.fromisoformat(ds) for ds in simulate(config)["days"]]
    parts = [sound_rows(config, ds).merge(pd.read_parquet(truth_path(config, ds)), on=KEY) for ds in days]
    return World(config, pd.concat(parts[:-1]), parts[-1])


def popularity(train: pd.DataFrame, rows: pd.DataFrame) -> NDArray[np.float64]:
    """[rows] the item's smoothed click rate on earlier days."""
    mean = train.is_click.mean()
    by_item = train.groupby("item_id").is_click.agg(["sum", "count"])
    rate = (by_item["sum"] + 20 * mean) / (by_item["count"] + 20)
    return rate.reindex(rows.item_id).fillna(mean).to_numpy()


def test_clicks_are_worth_learning(world: World) -> None:
    train, test = world.train, world.test
    assert 0.57 < roc_auc_score(test.is_click, popularity(train, test)) < 0.66
    assert 0.77 < roc_auc_score(test.is_click, test.p_click) < 0.83


def crossed(config: Recommender, rows: pd.DataFrame) -> NDArray[np.float64]:
    """Raw columns, and segment × topic, segment × age and segment × price, as a linear model needs them."""
    users = pd.read_csv(config.source.users[0].path).set_index("user_id").loc[rows.user_id]
    items = pd.read_csv(config.source.items[0].path, parse_dates=["uploaded"]).set_index("item_id").loc[rows.item_id]
    topics = items.topics.str.get_dummies("|").to_numpy()
    segment = pd.get_dummies(users.age_band + users.country.fillna("?")).to_numpy(float)
    age = np.log1p(
        (rows.event_time.dt.tz_localize(None).to_numpy() - items.uploaded.to_numpy()) / np.timedelta64(1, "D")
    )
    wants = np.column_stack([topics / topics.sum(axis=1, keepdims=True), age, np.log(items.price.fillna(20.0)), topics])
    moment = pd.get_dummies(rows[["surface", "position"]].astype(str)).to_numpy(float)
    return np.column_stack([(segment[:, :, None] * wants[:, None, :]).reshape(len(rows), -1), wants, segment, moment])


def test_a_plain_model_comes_close_to_the_best(world: World) -> None:
    """Well over four fifths of the way from popularity to the truth, from 60,000 rows and without ids."""
    train, test = world.train, world.test
    rows = pd.concat([train, test])
    inputs = np.column_stack([crossed(world.config, rows), popularity(train, rows)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    model.fit(inputs[: len(train)], train.is_click)
    reached = roc_auc_score(test.is_click, model.predict_proba(inputs[len(train) :])[:, 1])
    base, best = roc_auc_score(test.is_click, popularity(train, test)), roc_auc_score(test.is_click, test.p_click)
    assert reached > base + 0.85 * (best - base)


def test_rates_are_those_of_a_marketplace(world: World) -> None:
    train = world.train
    assert 0.2 < train.is_click.mean() < 0.3
    assert 0.04 < train.is_like.mean() < 0.1
    assert 0.08 < train.is_purchase[train.is_click == 1].mean() < 0.14


def test_the_truth_is_calibrated(world: World) -> None:
    train = world.train
    deciles = pd.qcut(train.p_click, 10, labels=False)
    observed, expected = train.is_click.groupby(deciles).mean(), train.p_click.groupby(deciles).mean()
    assert (observed - expected).abs().max() < 0.03


def test_what_draws_clicks_sells_less(world: World) -> None:
    by_item = world.train.groupby("item_id")[["p_click", "p_purchase"]].mean()
    assert by_item.corr().loc["p_click", "p_purchase"] < -0.1


def test_rows_that_end_inside_a_request_are_cut(tmp_path: Path) -> None:
    config = recommender(tmp_path, rows_per_day=7, days=2)
    simulate(config)
    assert len(pd.read_parquet(truth_path(config, date(2026, 1, 2)))) == 7


def test_simulating_again_replaces_the_files(tmp_path: Path) -> None:
    config = recommender(tmp_path, days=1)
    simulate(config)
    first = contents(Path(config.storage))
    shutil.copy(config.source.users[0].path, config.source.items[0].path)
    simulate(config)
    assert contents(Path(config.storage)) == first


def demo(**changes: Any) -> dict[str, Any]:
    """A part of the demo's YAML, to be changed by a test."""
    raw: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    return {key: {**raw[key], **change} for key, change in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"simulation": None}, "simulation: missing"),
        (demo(source={"users": []}), "source: simulate writes one file of users"),
        (demo(source={"interactions": {"path": "../var/log.csv"}}), r"source.interactions.path: .*\{ds\}"),
        (demo(source={"items": {"path": "../var/{ds}.csv"}}), r"source.items.path: .*only there"),
        (demo(source={"items": {"path": "../var/items.parquet"}}), "source.items.path: simulate writes plain .csv"),
        (demo(source={"users": {"path": "../var/users.csv.gz"}}), "source.users.path: simulate writes plain .csv"),
        (demo(features={"separator": ","}), "features.separator: ','"),
        (
            demo(features={"categorical": ["user_id", "shoe_size"]}) | {"scoring": {}},
            "features: .'shoe_size'. are not simulated",
        ),
        ({"tasks": [{"name": "share", "label": "is_share"}], "evaluation": {}, "scoring": {}}, "tasks: .'share'."),
        ({"tasks": [{"name": "click", "label": "like"}], "evaluation": {}, "scoring": {}}, "columns: .'like'. would"),
    ],
)
def test_what_it_cannot_make_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = recommender(tmp_path, changes)
    with pytest.raises(UserError, match=message):
        simulate(config)
    assert not Path(config.storage).exists(), "nothing is written before all is checked"
