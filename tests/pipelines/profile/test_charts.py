"""Pictures are sound XML, have a name for those who cannot see them, and escape what they are given."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from pipelines.profile import charts, text
from pipelines.profile.charts import Series

EVIL = '"><script>&'


def drawn(picture: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(picture)


@pytest.mark.parametrize(
    "picture",
    [
        charts.stacked(EVIL, [EVIL, "2"], [Series(EVIL, [1, None], "c1"), Series("b", [2, 3], "c2")], past=1),
        charts.lines(EVIL, [EVIL, "2"], [Series(EVIL, [0.1, None], "c1")], [(0.0, 0.2), None]),
        charts.lines("nothing known", ["1"], [Series("a", [None], "c1")]),
        charts.pairs(EVIL, [(EVIL, 0.1, 0.2)], rest="others"),
        charts.pairs("nothing", [], rest="others"),
    ],
)
def test_pictures_are_sound_and_named(picture: Markup) -> None:
    root = drawn(picture)
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext("title")
    assert not list(root.iter("script"))


def test_columns_stand_on_each_other() -> None:
    root = drawn(charts.stacked("rows", ["1"], [Series("a", [30], "c1"), Series("b", [10], "c2")]))
    low, high = root.iter("rect")
    assert float(low.get("height", 0)) == pytest.approx(3 * float(high.get("height", 0)), abs=0.2)
    assert float(high.get("y", 0)) + float(high.get("height", 0)) == pytest.approx(float(low.get("y", 0)), abs=0.2)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([0.0, 37.0], 0, 40),
        ([0.44, 0.47], 0.44, 0.48),
        ([0.01, 0.03], 0, 0.03),
        ([21000.0, 1.0], 0, 30000),
        ([0.5, 0.5], 0.5, 0.6),
        ([], 0, 2),
    ],
)
def test_scales_are_short_numbers(values: list[float], low: float, high: float) -> None:
    scale = charts._Scale.of(values)
    assert (scale.low, scale.high) == pytest.approx((low, high))


def test_the_rest_does_not_set_the_scale() -> None:
    root = drawn(charts.pairs("shares", [("a", 0.1, 0.05), ("others", 0.9, 0.95)], rest="others"))
    widths = [float(bar.get("width", 0)) for bar in root.iter("rect")]
    assert widths[0] == widths[2] == widths[3] == 2 * widths[1]


def test_numbers_in_words() -> None:
    assert [text.percent(share) for share in (0.1234, 0.00123, 1.0, 0.0, None)] == [
        "12.3 %",
        "0.12 %",
        "100 %",
        "0 %",
        "\N{EN DASH}",
    ]
    assert (text.count(1234567), text.short(12000), text.number(0.123456)) == ("1,234,567", "12k", "0.1235")
    assert (text.change(110, 100), text.change(1, 0), text.points(0.5, 0.45)) == ("+10.0 %", "", "+5.00 pp")
    assert text.shortened("abcdef", 4) == "abc…"
