"""Features that know the future are refused, and those that give an answer away are named; noise is neither."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines import leaks
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.registry import Registry
from pipelines.split import Split
from pipelines.tables import Tables
from pipelines.train import train
from recsys_moe.config import Feature
from recsys_moe.errors import UserError
from tests.pipelines.conftest import Tiny

ROWS = 4000
EVERY = {"split": {"by": "random", "validation": 0.1, "test": 0.1, "seed": 1}}


def examples(tiny: Any, days: int = 3, **changes: Any) -> tuple[Any, Tables, Split]:
    """A recommender whose first days are prepared, its tables, and the split that a training would have."""
    config = tiny(**changes)
    for number in range(days):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    tables = Tables(config.storage)
    return config, tables, Split.of(config, tables.days("examples"), tiny.day(days - 1))


def alone(kind: str, values: Any, label: np.ndarray, users: np.ndarray | None = None) -> float:
    """The AUC of one feature by itself."""
    users = np.arange(len(label)) % 500 if users is None else users
    rows = pa.table({"f": values, "label_click": label, "user": users.astype(str)})
    feature = Feature(name="f", kind=kind, side="context", from_keys=("f",))  # type: ignore[arg-type]
    (found,) = leaks.rank_alone(rows, [feature], {"click": "label_click"}, "user")
    assert (found.task, found.feature) == ("click", "f")
    return found.auc


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A recommender whose days are prepared and only looked at."""
    tiny = Tiny(tmp_path_factory.mktemp("plain"))
    examples(tiny, evaluation=EVERY)
    return tiny


def asked(plain: Tiny, **limits: float) -> tuple[Any, Tables, Split]:
    """What to look at, with other limits."""
    config = plain(evaluation=EVERY, leaks=limits)
    tables = Tables(config.storage)
    return config, tables, Split.of(config, tables.days("examples"), plain.day(2))


@pytest.fixture
def label() -> np.ndarray:
    return (np.random.default_rng(0).random(ROWS) < 0.3).astype(float)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_ranks_up_or_down(label: np.ndarray, sign: int) -> None:
    noise = np.random.default_rng(1).random(ROWS)
    assert alone("numeric", pa.array(sign * (label + 0.5 * noise)), label) == 1.0
    assert alone("numeric", pa.array(noise), label) == pytest.approx(0.5, abs=0.03)


def test_that_a_number_is_missing_may_tell_all(label: np.ndarray) -> None:
    """The price paid, say, which only purchases have."""
    paid = pa.array(np.random.default_rng(1).random(ROWS), mask=label == 0)
    assert alone("numeric", paid, label) == 1.0


def test_a_category_that_tells_is_seen(label: np.ndarray) -> None:
    assert alone("categorical", pa.array(np.where(label > 0, "sold", "open")), label) == 1.0
    only_sold = pa.array([f"order {n}" if sold else None for n, sold in enumerate(label)])
    assert alone("categorical", only_sold, label) == 1.0


@pytest.mark.parametrize("distinct", [10, 1000, ROWS])
def test_ids_that_are_noise_tell_nothing(label: np.ndarray, distinct: int) -> None:
    ids = np.random.default_rng(2).integers(distinct, size=ROWS).astype(str)
    assert alone("categorical", pa.array(ids), label) == pytest.approx(0.5, abs=0.05)


def test_ids_seen_once_tell_nothing(label: np.ndarray) -> None:
    assert alone("categorical", pa.array(np.arange(ROWS).astype(str)), label) == 0.5


def test_users_who_always_or_never_click_are_no_leak() -> None:
    users = np.arange(ROWS) % 100
    label = (users < 30).astype(float)
    assert alone("categorical", pa.array(users.astype(str)), label, users) == 0.5


def test_a_value_in_a_list_that_tells_is_seen(label: np.ndarray) -> None:
    draw = np.random.default_rng(3)
    noise = [[str(draw.integers(50))] for _ in range(ROWS)]
    told = [[*values, "sold"] if sold else values for values, sold in zip(noise, label, strict=True)]
    assert alone("multivalued", pa.array(told), label) > 0.99
    assert alone("multivalued", pa.array(noise), label) == pytest.approx(0.5, abs=0.05)
    assert alone("multivalued", pa.array([None] * ROWS, pa.list_(pa.string())), label) == 0.5


def test_rows_without_a_label_are_not_looked_at(label: np.ndarray) -> None:
    numbers = pa.array(label)
    label = np.where(np.arange(ROWS) % 2, label, np.nan)
    assert alone("numeric", numbers, label) == 1.0


def test_too_few_positives_say_nothing() -> None:
    label = (np.arange(ROWS) < 19).astype(float)
    rows = pa.table({"f": label, "label_click": label, "user": label.astype(str)})
    feature = Feature(name="f", kind="numeric", side="context", from_keys=("f",))
    assert leaks.rank_alone(rows, [feature], {"click": "label_click"}, "user") == []


def test_a_feature_that_gives_the_answer_away_is_named(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        lines = [f"{line},{float(line.split(',')[4]) + n / 100}" for n, line in enumerate(tiny.rows(number))]
        tiny.log(number, lines, header="user,item,at,tab,clicked,liked,dwell")
    features = {"categorical": ["user", "item", "tab"], "numeric": ["dwell"]}
    with caplog.at_level("WARNING"):
        (warning,) = leaks.check(*examples(tiny, features=features, evaluation=EVERY))
    assert warning.startswith("dwell alone ranks click with an AUC of 1.000, above leaks.warn_auc 0.95")
    assert warning in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_says_so_each_time_it_is_asked_for(tiny: Any) -> None:
    """Also where the run that is there already is taken."""
    for number in range(3):
        lines = [f"{line},{float(line.split(',')[4]) + n / 100}" for n, line in enumerate(tiny.rows(number))]
        tiny.log(number, lines, header="user,item,at,tab,clicked,liked,dwell")
    features = {"categorical": ["user", "item", "tab"], "numeric": ["dwell"]}
    config, _, _ = examples(tiny, features=features, evaluation=EVERY)
    first, again = train(config, tiny.day(2)), train(config, tiny.day(2))
    assert first["warnings"] == again["warnings"]
    assert first["warnings"][0].startswith("dwell alone ranks click")
    tags = Registry(config).client.get_run(first["run_id"]).data.tags
    assert tags["leaks"] == first["warnings"][0]


def test_a_limit_can_be_set(plain: Tiny) -> None:
    assert leaks.check(*asked(plain)) == []
    assert leaks.check(*asked(plain, warn_auc=0.501))


def test_of_many_rows_a_sample_is_looked_at(plain: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SAMPLE", 60)
    found = leaks.suspicious(*asked(plain, warn_auc=0.501))
    assert found
    assert 40 <= found[0].rows <= 60


def born(tiny: Any, after: int) -> None:
    """Items of which so many were born after every event."""
    days = ["2027-01-01" if n < after else "2025-12-01" for n in range(5)]
    items = "".join(f"i{n},{n}.5,sport|t{n},{day}\n" for n, day in enumerate(days))
    tiny.write("items.csv", "item,price,tags,born\n" + items)


def test_a_date_after_the_event_is_refused_where_the_limit_does_not_allow_it(tiny: Any) -> None:
    born(tiny, 1)
    found = examples(tiny, evaluation=EVERY)
    with pytest.raises(UserError) as caught:
        leaks.refuse_future(*found)
    said = str(caught.value)
    assert said.startswith("features.numeric.age: born lies after the event's day in ")
    assert "(2027-01-01 for an event on 2026-01-01, say)" in said
    assert "more than leaks.max_future 5.0%" in said
    assert "\n" not in said
    leaks.refuse_future(tiny(evaluation=EVERY, leaks={"max_future": 0.5}), *found[1:])


def test_the_day_of_the_event_itself_is_not_the_future(tiny: Any) -> None:
    tiny.write("items.csv", "item,price,tags,born\n" + "".join(f"i{n},1,t,2026-01-01\n" for n in range(5)))
    leaks.refuse_future(*examples(tiny, days=1, evaluation=EVERY, leaks={"max_future": 0}))


def test_dates_that_are_all_missing_are_no_leak(tiny: Any) -> None:
    tiny.write("items.csv", "item,price,tags,born\n" + "".join(f"i{n},1,t,\n" for n in range(5)))
    leaks.refuse_future(*examples(tiny, days=1, evaluation=EVERY))
