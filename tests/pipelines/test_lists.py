"""Lists over all items, on a tiny recommender: against lists and metrics made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines import sql
from pipelines.baselines import Popularity, Sample
from pipelines.catalog import model_config
from pipelines.config import Recommender
from pipelines.entities import entity_rows, moments
from pipelines.ingest import ingest
from pipelines.lists import Asked, lists
from pipelines.prepare import prepare, sides_of
from pipelines.split import Split, batches_of
from pipelines.tables import Tables
from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import Feature
from recsys_moe.encoding import Encoder, Scaler
from recsys_moe.errors import UserError
from tests.pipelines.conftest import CONFIG, Tiny

SCORING = CONFIG["scoring"] | {"weights": {"click": 1, "like": 3}}
LAST = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    """Days 0 to 3 are prepared; the last is the test day."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RECSYS_MOE_STORAGE_ROOT", raising=False)
        tiny = Tiny(tmp_path_factory.mktemp("lists"))
        for number in range(LAST):
            tiny.log(number, tiny.rows(number, 6))  # so few that not everything is seen by the last day
        config = tiny()
        for number in range(LAST + 1):
            ingest(config, tiny.day(number))
            prepare(config, tiny.day(number))
        yield tiny


def parts(config: Recommender, world: Tiny) -> tuple[Tables, Split, Ranker]:
    """The tables, the split, and a model of random weights."""
    tables = Tables(config.storage)
    split = Split.of(config, tables.days("examples"), world.day(LAST))
    shape = model_config(config, sides_of(config, tables))
    torch.manual_seed(1)
    encoder = Encoder.fit(shape, batches_of(split.rows(tables, "train")))
    return tables, split, Ranker(encoder, empty_model(encoder).eval().requires_grad_(False))


def grid(config: Recommender, world: Tiny) -> pa.Table:
    """All users with all items, the evening before the last day."""
    moment = moments(config, world.day(LAST - 1))["default"]
    with sql.connect() as connection:
        users = entity_rows(connection, config, Tables(config.storage), moment, "user")
        items = entity_rows(connection, config, Tables(config.storage), moment, "item")
    user, item = np.repeat(np.arange(len(users)), len(items)), np.tile(np.arange(len(items)), len(users))
    left, right = users.take(pa.array(user)), items.take(pa.array(item))
    return pa.table({name: rows[name] for rows in (left, right) for name in rows.column_names})


def by_hand(config: Recommender, world: Tiny, said: dict[str, np.ndarray], k: int) -> dict[str, list[str]]:
    """The best items of every user, by the weighted sum of what is said of the grid."""
    rows = grid(config, world).select(["user", "item"]).to_pandas().astype(str)
    rows["score"] = said["click"] + 3 * said["like"]
    if config.scoring.exclude_seen:
        seen = Tables(config.storage).dataset("interactions").to_table().to_pandas()
        seen = seen[seen.ds < world.day(LAST)]
        rows = rows[~(rows.user + rows.item).isin(seen.user.astype(str) + seen.item.astype(str))]
    ranked = rows.sort_values(["score", "item"], ascending=[False, True]).groupby("user").head(k)
    return {user: of.item.tolist() for user, of in ranked.groupby("user")}


def named(asked: Asked, made: np.ndarray) -> dict[str, list[str]]:
    users, items = asked.users["user"].to_pylist(), asked.items["item"].to_pylist()
    lists = [[items[item] for item in row if item >= 0] for row in made]
    return {user: of for user, of in zip(users, lists, strict=True) if of}


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_lists_are_the_best_of_all_items(world: Tiny, exclude_seen: bool) -> None:
    config = world(scoring=SCORING | {"exclude_seen": exclude_seen}, evaluation={"lists": {"k": 3}})
    tables, split, ranker = parts(config, world)
    asked = Asked.of(config, tables, split, None)
    rows = grid(config, world)
    predicted = ranker.predict(rows)
    said = {"click": predicted[:, 0], "like": predicted[:, 1]}
    assert named(asked, asked.lists_of(ranker)) == by_hand(config, world, said, 3)
    popularity = Popularity.of(Sample.of(config, tables, split, ranker))
    assert named(asked, asked.popular(popularity)) == by_hand(config, world, popularity.predict(rows), 3)


def test_what_users_did_on_the_day_is_what_counts(world: Tiny) -> None:
    config = world(scoring=SCORING | {"exclude_seen": True}, evaluation={"lists": {"k": 2, "diversity_by": "item"}})
    tables, split, ranker = parts(config, world)
    popularity = Popularity.of(Sample.of(config, tables, split, ranker))
    found = lists(config, tables, split, {"model": ranker, "champion": ranker}, popularity)
    assert [*found] == ["model", "champion", "popularity"]
    assert found["model"] == found["champion"]
    asked = Asked.of(config, tables, split, None)
    shown = named(asked, asked.lists_of(ranker))
    day = tables.read_day("examples", world.day(LAST)).to_pandas()
    seen = tables.dataset("interactions").to_table().to_pandas()
    seen = {*seen[seen.ds < world.day(LAST)][["user", "item"]].itertuples(index=False, name=None)}
    for task in ("click", "like"):
        pairs = {*day[day[f"label_{task}"] == 1][["user", "item"]].itertuples(index=False, name=None)} - seen
        liked = {user: {item for who, item in pairs if who == user} for user, _ in pairs}
        recalls = [len({*shown[user]} & items) / len(items) for user, items in liked.items()]
        assert found["model"][task]["users"] == len(liked) > 0
        assert found["model"][task]["recall@2"] == pytest.approx(np.mean(recalls))
        assert 0 < found["model"][task]["ndcg@2"] <= 1


def test_there_are_as_many_users_as_the_yaml_allows_for(world: Tiny) -> None:
    def users(**written: int) -> list[str]:
        config = world(evaluation={"lists": written})
        tables, split, _ = parts(config, world)
        return Asked.of(config, tables, split, None).users["user"].to_pylist()

    everyone, three, two = users(), users(max_users=3), users(max_pairs=14)
    assert (len(everyone), len(three), len(two)) == (5, 3, 2)
    assert {*two} < {*three} < {*everyone}


def test_lists_that_cannot_be_made_are_left_out(world: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    config = world(scoring=None)
    tables, split, ranker = parts(config, world)
    assert lists(config, tables, split, {"model": ranker}) == {}
    assert "lists are not measured: scoring.context: the model reads ['tab']" in caplog.text

    config = world(tasks=[{"name": "click", "label": "clicked", "kind": "regression"}])
    assert lists(config, tables, split, {"model": ranker}) == {}
    assert "lists are not measured: no task is a yes or no" in caplog.text

    config = world(segments=None)
    features = (*ranker.config.features, Feature(name="gone", kind="numeric", side="user"))
    shape = ranker.config.model_copy(update={"features": features})
    encoder = Encoder(shape, ranker.encoder.vocabularies, ranker.encoder.scalers | {"gone": Scaler()})
    other = Ranker(encoder, empty_model(encoder))
    assert [*lists(config, tables, split, {"model": ranker, "champion": other})] == ["model"]
    assert "lists of champion are not measured: the rows have no column 'gone'" in caplog.text


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"diversity_by": "price"}, r"evaluation\.lists\.diversity_by: 'price' is no categorical feature; there is"),
        ({"k": 0}, r"evaluation\.lists\.k: .*greater than 0"),
        ({"top": 5}, r"evaluation\.lists\.top"),
    ],
)
def test_a_wrong_block_is_said(tiny: Tiny, written: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny(evaluation={"lists": written})


def test_kinds_of_items_are_a_column_of_items(world: Tiny) -> None:
    config = world(evaluation={"lists": {"diversity_by": "band"}})
    tables, split, ranker = parts(config, world)
    with pytest.raises(
        UserError, match=r"diversity_by: 'band' is no categorical feature of items; there is \['item'\]"
    ):
        lists(config, tables, split, {"model": ranker})
