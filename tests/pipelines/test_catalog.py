"""Which column comes from which file, whose property it is, and the features that follow."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipelines import catalog
from pipelines.catalog import Sides
from recsys_moe.errors import UserError

USER_COLUMNS, ITEM_COLUMNS = ["band"], ["price", "tags", "born"]


def test_columns_are_found_where_they_are(tiny: Any) -> None:
    files = catalog.locate(tiny(), tiny.day(0))
    assert files.interactions == ("user", "item", "at", "clicked", "liked", "tab")
    assert files.users == (("user", "band"),)
    assert files.items == (("item", "tags", "price", "born"),)


def test_the_log_comes_first_then_users_then_items(tiny: Any) -> None:
    tiny.write("users.csv", "user,band,tab,tags\nu0,old,home,x\n")
    files = catalog.locate(tiny(), tiny.day(0))
    assert "tab" in files.interactions
    assert files.users == (("user", "band", "tags"),)
    assert files.items == (("item", "price", "born"),)


def test_several_files_share_the_work(tiny: Any) -> None:
    tiny.write("more.csv", "user,city,band\nu0,Rome,new\n")
    features = {"categorical": ["user", "band", "city"]}
    users = [{"path": "../data/users.csv"}, {"path": "../data/more.csv"}]
    source = {"interactions": {"path": "../data/log/{ds}.csv"}, "users": users}
    assert catalog.locate(tiny(source=source, features=features), tiny.day(0)).users == (
        ("user", "band"),
        ("user", "city"),
    )


def test_an_hour_of_the_users_file_is_not_the_events(tiny: Any) -> None:
    """`hour` and `weekday` are the log's, or made from the time."""
    tiny.write("users.csv", "user,band,hour\nu0,old,favourite\n")
    features = {"categorical": ["user", "band", "hour", "weekday"]}
    assert catalog.locate(tiny(features=features), tiny.day(0)).users == (("user", "band"),)


def test_columns_of_the_contract_are_read_from_where_they_are(tiny: Any) -> None:
    rules = {
        "liked": {"type": "boolean"},
        "place": {"nullable": False},
        "city": {},
        "band": {},
        "stock": {"type": "number", "min": 0},
    }
    tiny.log(0, [], header="user,item,at,tab,clicked,liked,place")
    tiny.write("users.csv", "user,band,city,place\nu0,old,Rome,x\n")
    tiny.write("items.csv", "item,price,tags,born,stock\ni0,1,a,2025-12-01,3\n")
    files = catalog.locate(tiny(contract={"columns": rules}), tiny.day(0))
    assert files.interactions == ("user", "item", "at", "clicked", "liked", "tab", "place")
    assert files.users == (("user", "band", "city"),)
    assert files.items == (("item", "tags", "price", "born", "stock"),)


def test_a_column_of_the_contract_that_is_nowhere_is_named(tiny: Any) -> None:
    message = r"contract\.columns: \['city'\] are columns of no source"
    with pytest.raises(UserError, match=message):
        catalog.locate(tiny(contract={"columns": {"city": {}}}), tiny.day(0))


def test_columns_of_patterns_and_of_queries(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITE", "sqlite://")
    query = {"sql": "SELECT 'u0' AS user, 'old' AS band", "connection": "LITE"}
    source = {"interactions": {"path": "../data/log/{ds}*.c?v"}, "users": query}
    files = catalog.locate(tiny(source=source, features={"categorical": ["user", "tab", "band"]}), tiny.day(0))
    assert files.interactions == ("user", "item", "at", "clicked", "liked", "tab")
    assert files.users == (("user", "band"),)


def test_a_query_without_its_key_is_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITE", "sqlite://")
    query = {"sql": "SELECT 'old' AS band", "connection": "LITE"}
    source = {"interactions": {"path": "../data/log/{ds}.csv"}, "users": query}
    with pytest.raises(UserError, match=r"sql at \$LITE: has no column 'user' to join by; it has 'band'"):
        catalog.locate(tiny(source=source), tiny.day(0))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("log/2026-01-01.csv", "user;item;at;tab;clicked;liked\n", "has no column 'user'; .*is its delimiter right"),
        ("log/2026-01-01.csv", "user,item,at,tab,clicked\n", "has no column 'liked'; it has 'user', 'item'"),
        ("log/2026-01-01.csv", "user,item,at,clicked,liked\n", r"features: \['tab'\] are columns of no source"),
        ("users.csv", "id,band\n", "users.csv: has no column 'user' to join by"),
        ("items.csv", "item\tprice\n", "items.csv: has no column 'item' .*is its delimiter right"),
    ],
)
def test_what_is_missing_is_named(tiny: Any, file: str, content: str, message: str) -> None:
    tiny.write(file, content)
    with pytest.raises(UserError, match=message) as caught:
        catalog.locate(tiny(), tiny.day(0))
    assert "\n" not in str(caught.value)


def test_a_log_without_a_json_object_has_no_columns(tiny: Any) -> None:
    tiny.write("log.jsonl", "user,item\n")
    with pytest.raises(UserError, match=r"log\.jsonl: none of its lines is a JSON object"):
        catalog.locate(tiny(source={"interactions": {"path": "../data/log.jsonl"}}), tiny.day(0))


def test_sides_and_features_follow_from_the_files(tiny: Any) -> None:
    config = tiny()
    sides = Sides.of(config, USER_COLUMNS, ITEM_COLUMNS)
    features = {feature.name: feature for feature in catalog.model_features(config, sides)}
    side = {name: feature.side for name, feature in features.items()}
    assert [side[name] for name in ("user", "band", "item", "tags", "price", "age", "tab")] == [
        *("user", "user", "item", "item", "item", "item", "context")
    ]
    assert side["user_x_tab_3d_rows"] == side["user_1d_click_rate"] == "user"
    assert side["item_3d_like_rate"] == "item"
    assert features["user_x_tab_3d_rows"].from_keys == ("user", "tab")
    assert features["age"].from_keys == ("born",)
    assert len(features) == 7 + 3 * 2 * 3


def test_a_key_of_the_moment_alone_is_the_moments(tiny: Any) -> None:
    config = tiny(features={"categorical": ["tab"], "history": {"keys": ["tab"]}})
    history = catalog.model_features(config, Sides.of(config, [], []))[1:]
    assert {feature.side for feature in history} == {"context"}


def test_a_key_of_user_and_item_is_refused(tiny: Any) -> None:
    config = tiny(features={"categorical": ["tab"], "history": {"keys": [["user", "price"]]}})
    with pytest.raises(UserError, match=re.escape("['user', 'price'] mixes a user's column with an item's")):
        catalog.model_features(config, Sides.of(config, [], ["price"]))


def test_a_segment_of_items_is_refused(tiny: Any) -> None:
    config = tiny(segments={"by": "price"}, features={"categorical": ["tab", "user", "item"]})
    with pytest.raises(UserError, match="'price' is an item's column; segments are of users or of the moment"):
        catalog.model_config(config, Sides.of(config, [], ["price"]))
