"""The page about a day: what it counts, that it needs nothing but itself, and that data cannot become markup."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.profile import drift, profile, rates, volumes
from pipelines.profile.rates import Rate
from pipelines.profile.relations import Relations, relations
from pipelines.profile.span import Span
from pipelines.tables import Tables
from recsys_moe.errors import UserError
from tests.pipelines.conftest import Tiny

_VOID = {"meta", "br", "link", "img", "input"}


class Tags(HTMLParser):
    """What a browser sees: the tags, the text, and whether every tag is closed in its turn."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(content)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += " ".join(data.split()) + " "


def ingested(tiny: Any, days: int, **changes: Any) -> Recommender:
    """A recommender whose first days are in."""
    config: Recommender = tiny(**changes)
    for number in range(days):
        ingest(config, tiny.day(number))
    return config


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A recommender whose first three days are in, and only looked at."""
    tiny = Tiny(tmp_path_factory.mktemp("three"))
    ingested(tiny, 3)
    return tiny


def page_of(result: dict[str, Any]) -> Tags:
    return Tags(Path(result["path"]).read_text(encoding="utf-8"))


def known(config: Any, first: Any = None, last: Any = None) -> Any:
    """The relations of a span."""
    tables = Tables(config.storage)
    return relations(config, tables, Span.of(tables, first, last))


def log_of(tiny: Any, numbers: range) -> pd.DataFrame:
    lines = [[*line.split(","), number] for number in numbers for line in tiny.rows(number)]
    return pd.DataFrame(lines, columns=["user", "item", "at", "tab", "clicked", "liked", "day"])


def test_a_page_about_the_newest_day(tiny: Any) -> None:
    config = ingested(tiny, 4)
    result = profile(config, None, None)
    assert result["path"] == str(config.workspace / "profile" / "2026-01-04.html")
    assert (result["from"], result["as_of"], result["accepted"]) == ("2026-01-04", "2026-01-04", 30)
    page = page_of(result)
    assert "compared with 2026-01-01 to 2026-01-03 (3 days)" in page.text
    rate = (log_of(tiny, range(3, 4))["clicked"] == "1").mean()
    assert f"click rate {100 * rate:.1f} %" in page.text
    assert page.tags.count("figure") >= 4


def test_the_page_needs_nothing_but_itself(three: Tiny) -> None:
    content = Path(profile(three(), None, None)["path"]).read_text(encoding="utf-8")
    assert not re.search(r"https?:|src=|@import|url\(|<link|<script", content)
    assert "prefers-color-scheme: dark" in content
    assert 'name="viewport"' in content


def test_data_cannot_become_markup(tiny: Any) -> None:
    evil = "<script>alert(1)</script>"
    for number in range(2):
        tiny.log(number, [f'{evil},<b>,{tiny.at(number, n)},"><img>,{n % 2},{evil}' for n in range(40)])
    tiny.write("users.csv", f"user,band\n{evil},{evil}\n")
    config = ingested(tiny, 2, contract={"max_rejected": 1.0}, tasks=[{"name": "click", "label": "clicked"}])
    page = page_of(profile(config, None, None))
    assert not {"script", "img", "b"} & set(page.tags)
    assert evil in page.text


def test_what_was_set_aside_is_grouped_and_shown(tiny: Any) -> None:
    bad = [f"u1,i1,{tiny.at(1)},home,{value},0" for value in ("<script>", "seven: 7")]
    tiny.log(1, [*tiny.rows(1), *bad, "u1,,1,home,0,0"])
    config = ingested(tiny, 2, contract={"max_rejected": 1.0})
    with known(config) as found:
        reasons = volumes.reasons(found)
    assert [(one.text, one.rows, one.source) for one in reasons] == [
        ("clicked is no number", 2, "interactions"),
        ("item is null", 1, "interactions"),
    ]
    assert (reasons[0].file, reasons[0].example) == ("2026-01-02.csv", "clicked is no number: <script>")
    page = page_of(profile(config, None, None))
    assert "script" not in page.tags
    assert "2026-01-02.csv, row 3" in page.text


def test_volumes_add_up(tiny: Any) -> None:
    tiny.log(0, [*tiny.rows(0), tiny.rows(0)[0], "u1,,1,home,0,0"])
    config = ingested(tiny, 2, contract={"max_rejected": 1.0})
    with known(config) as found:
        first, second = volumes.by_day(found)
    rows = log_of(tiny, range(1))
    assert (first.accepted, first.rejected, first.late) == (30, 1, 0)
    assert (first.users, first.items) == (rows["user"].nunique(), rows["item"].nunique())
    assert first.read == first.accepted + first.rejected + (first.duplicates or 0)
    assert second.read == 30


def test_duplicates_are_told_where_ingest_wrote_them_down(tiny: Any) -> None:
    config = ingested(tiny, 1)
    row = {"read": 35, "accepted": 30, "rejected": 2, "duplicates": 3, "late": 0, "files": 1, "bytes": 10}
    Tables(config.storage).replace_day("ingested", tiny.day(0), pa.table({name: [n] for name, n in row.items()}))
    with known(config) as found:
        (day,) = volumes.by_day(found)
    assert (day.read, day.rejected, day.duplicates) == (35, 2, 3)


def test_hours_are_local(tiny: Any) -> None:
    columns = {"user": "user", "item": "item", "timestamp": {"name": "at"}, "timezone": "Asia/Tokyo"}
    tiny.log(0, [f"u{n},i0,{tiny.at(0, n)},home,1,0" for n in range(4)])
    with known(ingested(tiny, 1, columns=columns)) as found:
        now, before = volumes.by_hour(found)
    assert now == [1.0 if hour == 9 else 0.0 for hour in range(24)]
    assert before == [0.0] * 24


def test_the_heaviest_come_first(three: Tiny) -> None:
    with known(three(), three.day(0), three.day(0)) as found:
        heavy = volumes.heaviest(found, "user")
    counts = log_of(three, range(1))["user"].value_counts()
    assert [one.rows for one in heavy] == list(counts)
    assert heavy[0].share == pytest.approx(counts.iloc[0] / 30)


@pytest.mark.parametrize(
    ("by", "column"),
    [
        ("tab", lambda rows: rows["tab"]),
        ({"cross": {"columns": ["tab", "band"], "parent": "tab"}}, lambda rows: rows["tab"] + ":" + rows["band"]),
        (
            {"bucket": {"column": "price", "bins": [1.5, 3]}},
            lambda rows: rows["item"].map(
                {"i0": "under 1.5", "i1": "1.5..3", "i2": "1.5..3", "i3": "from 3", "i4": "from 3"}
            ),
        ),
    ],
)
def test_rates_by_segment(tiny: Any, by: Any, column: Any) -> None:
    rows = log_of(tiny, range(2))
    rows["band"] = np.where(rows["user"].isin(["u1", "u3"]), "old", "young")
    rows["segment"], rows["click"] = column(rows), rows["clicked"].astype(float)
    config = ingested(tiny, 2, segments={"by": by, "min_rows": 1})
    with known(config, tiny.day(0), tiny.day(1)) as found:
        measured = rates.rates(found)
    for segment, expected in rows.groupby("segment")["click"]:
        rate = measured.over("click", (tiny.day(0), tiny.day(1)), str(segment))
        assert (rate.rows, rate.total) == (len(expected), expected.sum())
    assert sum(measured.segments((tiny.day(0),)).values()) == 30
    liked = rows[rows["clicked"] == "1"]["liked"].astype(float)
    assert measured.over("like", (tiny.day(0), tiny.day(1))) == Rate(len(liked), liked.sum())


def test_segments_by_behaviour_are_left_to_the_training(tiny: Any) -> None:
    config = ingested(tiny, 1, segments={"by": {"behavioural": {"k": 2}}, "min_rows": 1})
    assert "Segments by behaviour are found by a training" in page_of(profile(config, None, None)).text


def test_wilsons_interval() -> None:
    """Half of ten, and none of ten, as tables have them."""
    assert Rate(10, 5).interval == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert Rate(10, 0).interval == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert Rate().mean is None


def spread_of(found: Relations, name: str) -> drift.Spread:
    return next(one for one in drift.spreads(found) if one.column.name == name)


def psi(now: pd.Series, before: pd.Series) -> float:
    """By the definition, with half a row more in each bin."""
    bins = sorted(set(now) | set(before))
    p = np.array([(now == one).sum() + 0.5 for one in bins]) / (len(now) + 0.5 * len(bins))
    q = np.array([(before == one).sum() + 0.5 for one in bins]) / (len(before) + 0.5 * len(bins))
    return float(((p - q) * np.log(p / q)).sum())


@pytest.mark.parametrize("column", ["tab", "user", "band"])
def test_drift_of_categories_is_the_index(three: Tiny, column: str) -> None:
    rows = log_of(three, range(3))
    rows["band"] = np.where(rows["user"].isin(["u1", "u3"]), "old", "young")
    with known(three()) as found:
        spread = spread_of(found, column)
    now, before = rows[rows["day"] == 2][column], rows[rows["day"] < 2][column]
    assert spread.psi == pytest.approx(psi(now, before))
    assert (spread.now, spread.before) == (30, 60)


def test_values_past_the_most_frequent_are_one(tiny: Any) -> None:
    for number in range(2):
        tiny.log(number, [f"u{n},i{n // 2},{tiny.at(number, n)},home,1,0" for n in range(80)])
    with known(ingested(tiny, 2)) as found:
        spread = spread_of(found, "user")
    assert len(spread.bins) == drift.TOP + 1
    assert spread.bins[-1] == drift.Bin(drift.REST, 60, 60)
    assert spread.psi == pytest.approx(0.0)


def test_numbers_are_cut_in_tenths_of_the_days_before(tiny: Any) -> None:
    items = "".join(f"i{n},{n},t,\n" for n in range(100))
    tiny.write("items.csv", "item,price,tags,born\n" + items)
    tiny.log(0, [f"u1,i{n},{tiny.at(0, n)},home,1,0" for n in range(100)])
    tiny.log(1, [f"u1,i{n % 10},{tiny.at(1, n)},home,1,0" for n in range(50)])
    with known(ingested(tiny, 2)) as found:
        spread = spread_of(found, "price")
    assert [one.before for one in spread.bins] == [10] * 10
    assert [one.now for one in spread.bins] == [50, *[0] * 9]
    assert spread.bins[0].name == "0 to 9"
    p, q = np.array([50.5, *[0.5] * 9]) / 55, np.array([10.5] * 10) / 105
    assert spread.psi == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
    assert spread.reading == "large"


def test_days_since_a_date_and_what_is_missing(tiny: Any) -> None:
    tiny.write("items.csv", "item,price,tags,born\ni0,1,a|b,2025-12-31\ni1,2,a,\n")
    for number in range(2):
        tiny.log(number, [f"u1,i{n % 4},{tiny.at(number, n)},home,1,0" for n in range(8)])
    with known(ingested(tiny, 2)) as found:
        spreads = {one.column.name: one for one in drift.spreads(found)}
    assert [(one.name, one.now, one.before) for one in spreads["age"].bins] == [
        ("1", 0, 2),
        ("2", 2, 0),
        (drift.MISSING, 6, 6),
    ]
    assert (spreads["age"].missing_now, spreads["price"].missing_now) == (0.75, 0.5)
    tags = {one.name: one.now for one in spreads["tags"].bins}
    assert tags == {"a": 4, "b": 2, drift.MISSING: 4}


def test_users_are_those_of_each_day(tiny: Any) -> None:
    """A user who moved to another band counts for the band of the day."""
    config = tiny()
    for number, band in enumerate(("young", "old")):
        tiny.write("users.csv", "user,band\n" + "".join(f"u{n},{band}\n" for n in range(5)))
        ingest(config, tiny.day(number))
    with known(config) as found:
        bins = spread_of(found, "band").bins
    assert {one.name: (one.now, one.before) for one in bins} == {"old": (30, 0), "young": (0, 30)}


def test_a_few_rows_are_not_called_a_change(tiny: Any) -> None:
    spread = drift.Spread(None, tuple(drift.Bin(str(n), n % 2, 1) for n in range(10)), 0.0, 0.0)  # type: ignore[arg-type]
    assert spread.psi > drift.MODERATE
    assert spread.reading == "steady"
    assert math.isfinite(spread.psi)


def test_without_days_before_nothing_is_compared(tiny: Any) -> None:
    page = page_of(profile(ingested(tiny, 1), None, None))
    assert "There are no days before to compare with." in page.text


def test_a_feature_that_tells_the_label_is_marked(tiny: Any) -> None:
    lines = [f"{line},{float(line.split(',')[4]) + n / 1000}" for n, line in enumerate(tiny.rows(0, 100))]
    tiny.log(0, lines, header="user,item,at,tab,clicked,liked,dwell")
    result = profile(ingested(tiny, 1, features={"categorical": ["user", "hour"], "numeric": ["dwell"]}), None, None)
    assert result["warnings"] == ["dwell alone ranks click with an AUC of 1.000"]
    assert "a leak?" in page_of(result).text


def test_a_number_as_a_task_has_a_mean(tiny: Any) -> None:
    tasks = [{"name": "click", "label": "clicked"}, {"name": "at_all", "label": "liked", "kind": "regression"}]
    page = page_of(profile(ingested(tiny, 2, tasks=tasks), None, None))
    assert "mean at_all" in page.text


def test_a_range_has_a_page_of_its_own(three: Tiny, tmp_path: Path) -> None:
    result = profile(three(), three.day(1), three.day(5), tmp_path / "a" / "page.html")
    assert (result["path"], result["accepted"]) == (str(tmp_path / "a" / "page.html"), 60)
    assert "2 days of the log" in page_of(result).text
    assert profile(three(), three.day(1), three.day(2))["path"].endswith("2026-01-02_2026-01-03.html")


def test_days_that_are_not_there_are_named(tiny: Any, three: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no day yet; run `recsys-moe ingest` first"):
        profile(tiny(), None, None)
    with pytest.raises(UserError, match=r"2026-01-05: has no rows; run `recsys-moe ingest --as-of 2026-01-05` first"):
        profile(three(), None, tiny.day(4))
    with pytest.raises(UserError, match="2026-01-04 to 2026-01-05: have no rows"):
        profile(three(), tiny.day(3), tiny.day(4))
    with pytest.raises(UserError, match="--from 2026-01-02 is after --as-of 2026-01-01"):
        profile(three(), tiny.day(1), tiny.day(0))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*--out"):
        profile(three(), None, None, tmp_path / "file" / "page.html")
