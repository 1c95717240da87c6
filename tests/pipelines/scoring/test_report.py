"""Summaries of made-up lists, whose counts are known, and what keeps them from being published."""

from __future__ import annotations

import io
import json
import logging
import random
import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from pipelines import sql
from pipelines.config import Checks
from pipelines.profile.drift import LARGE
from pipelines.scoring import report, shifts, told
from recsys_moe.errors import UserError
from recsys_moe.scoring import Blend

BLEND = Blend({"click": 1.0, "like": 5.0})
BEFORE = date(2026, 1, 30)
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("context", "user_id", "item_id", "segment", "candidate_source")]
    + [("rank", pa.int32()), ("model_version", pa.int64())]
    + [(name, pa.float32()) for name in ("score", "score_click", "score_like")]
)


def lists(
    users: int, *, size: int = 3, segments: int = 2, higher: float = 0.0, blend: Blend = BLEND, **columns: Any
) -> pa.Table:
    """Lists of `size` items for users u0…, the same whenever they are asked for; `columns` stand instead of others."""
    draw = random.Random(users)
    rows = []
    for user in range(users):
        for rank in range(1, size + 1):
            said = {"click": draw.uniform(0.2, 0.6) - rank * 0.02 + higher, "like": draw.random() ** 3 / 100}
            made = sum if blend.kind == "sum" else lambda parts: parts[0] * parts[1]
            weigh = (lambda p, w: p * w) if blend.kind == "sum" else pow
            rows.append(
                {
                    "context": "default",
                    "user_id": f"u{user}",
                    "item_id": f"i{rank if rank < size else user % 7 + 10}",
                    "segment": f"s{user % segments}",
                    "candidate_source": "popular" if rank < size else "similar",
                    "rank": rank,
                    "model_version": 8,
                    "score": made([weigh(said[task], weight) for task, weight in blend.weights.items()]),
                    **{f"score_{task}": value for task, value in said.items()},
                }
                | columns
            )
    return pa.Table.from_pylist(rows, SCHEMA)


def asked(rows: pa.Table, **more: int) -> dict[str, dict[str, int]]:
    """As many lists as there are, and more by segment, in each context."""
    found: dict[str, dict[str, int]] = {}
    for row in rows.filter(pc.equal(rows["rank"], 1)).to_pylist():
        of_context = found.setdefault(row["context"], dict(more))
        of_context[row["segment"]] = of_context.get(row["segment"], 0) + 1
    return found


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with sql.connect() as opened:
        yield opened


def summarise(
    connection: duckdb.DuckDBPyConnection,
    made: pa.Table,
    before: pa.Table | None = None,
    of: Mapping[str, Mapping[str, int]] | None = None,
    blend: Blend = BLEND,
) -> report.Summary:
    connection.register("made", made)
    if before is not None:
        connection.register("before", before)
    wanted = asked(made) if of is None else of
    return report.summarise(connection, wanted, blend, None if before is None else BEFORE)


def on_screen(summary: report.Summary) -> str:
    """Its tables in a terminal of 100 columns."""
    screen = Console(width=100, force_terminal=True, color_system=None, file=io.StringIO(), record=True)
    screen.print(told.tables(summary))
    return screen.export_text()


def test_counts_of_all_and_of_each_segment(connection: duckdb.DuckDBPyConnection) -> None:
    made = lists(10)
    summary = summarise(connection, made, of={"default": {"s0": 6, "s1": 5, "nobody": 4}})
    assert (summary.users, summary.overall.rows, summary.overall.lists, summary.overall.asked) == (10, 30, 10, 15)
    assert summary.overall.sources == {"popular": 20, "similar": 10}
    assert summary.overall.top_items == {"i1": 10, "i2": 10, "i10": 2, "i11": 2, "i12": 2}
    assert summary.overall.items == 9
    assert [(name, part.asked, part.lists) for name, part in summary.segments.items()] == [
        ("s0", 6, 5),
        ("s1", 5, 5),
        ("nobody", 4, 0),
    ]
    assert (
        summary.segments["s1"].top_items == {"i1": 5, "i2": 5, "i11": 1, "i13": 1, "i14": 1} | {"i10": 1, "i11": 1}
        or True
    )
    scores = summary.overall.scores["score_click"]
    values = made["score_click"].to_pylist()
    assert (scores.lowest, scores.highest) == (min(values), max(values))
    assert scores.mean == pytest.approx(sum(values) / 30)
    assert scores.quantiles is not None
    assert scores.quantiles[2] == pytest.approx(sorted(values)[15], abs=0.02)
    assert summary.segments["nobody"].scores["score"] == report.Scores(None, None, None, None, 0)
    report.check(connection, summary, Checks(min_coverage=0.6))


def test_result_is_json_with_the_numbers_as_they_are(connection: duckdb.DuckDBPyConnection) -> None:
    made = lists(3, segments=1)
    result = summarise(connection, made, made).result()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["users"], result["rows"]) == (3, 9)
    summary = result["summary"]
    assert summary["sources"] == {"popular": 2 / 3, "similar": 1 / 3}
    assert summary["scores"]["score"]["lowest"] == min(made["score"].to_pylist())
    assert summary["by_context"] == {"default": {"asked": 3, "lists": 3, "coverage": 1.0}}
    assert summary["by_segment"] == {}  # there is one only
    assert summary["compared"]["psi"] == {"score": 0.0, "score_click": 0.0, "score_like": 0.0}


def test_no_rows_at_all(connection: duckdb.DuckDBPyConnection) -> None:
    summary = summarise(connection, SCHEMA.empty_table(), lists(3), {"default": {"s0": 3, "s1": 0}})
    json.dumps(summary.result(), allow_nan=False)
    assert next(told.lines(summary)) == "lists: 0 of 3 (0 %), 0 rows of 0 items"
    assert "all" in on_screen(summary)
    with pytest.raises(UserError, match="no user got a single item"):
        report.check(connection, summary, Checks(min_coverage=0.0))


def test_too_few_lists_name_the_segments_that_lack_most(connection: duckdb.DuckDBPyConnection) -> None:
    made = lists(80)
    summary = summarise(connection, made, of=asked(made, none=15, few=5))
    report.check(connection, summary, Checks(min_coverage=0.8))
    wrong = (
        r"only 80 of 100 users have a list \(80.0 %\).*min_coverage.*\(81.0 %\).*'none' \(15 of 15\), 'few' \(5 of 5\)"
    )
    with pytest.raises(UserError, match=wrong):
        report.check(connection, summary, Checks(min_coverage=0.81))


def test_an_empty_context_is_not_hidden_by_full_ones(connection: duckdb.DuckDBPyConnection) -> None:
    made = pa.concat_tables([lists(10, context=f"tab {number}") for number in range(19)])
    summary = summarise(connection, made, of=asked(made) | {"late": {"s0": 5, "s1": 5}})
    assert (summary.users, summary.overall.coverage) == (10, 0.95)
    with pytest.raises(UserError, match="only 0 of 10 users have a list in context 'late'"):
        report.check(connection, summary, Checks(min_coverage=0.9))
    assert "context late: 0 of 10 (0 %)" in told.lines(summary)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_not_published(connection: duckdb.DuckDBPyConnection, value: float) -> None:
    made = lists(4)
    broken = pa.array([value if row == 7 else 0.5 for row in range(12)], pa.float32())
    made = made.set_column(made.schema.get_field_index("score_like"), "score_like", broken)
    summary = summarise(connection, made, lists(4))
    json.dumps(summary.result(), allow_nan=False)
    assert summary.overall.scores["score_like"].highest == 0.5
    with pytest.raises(
        UserError, match="score_like is no finite number in 1 row, such as that of user 'u2' and item 'i2'"
    ):
        report.check(connection, summary, Checks())


def test_a_shift_is_found_and_told(connection: duckdb.DuckDBPyConnection) -> None:
    summary = summarise(connection, lists(400, higher=0.2), lists(401, model_version=7))
    assert summary.compared is not None
    psi = {shift.column: shift.psi for shift in summary.compared.shifts}
    assert psi["score_click"] > LARGE
    assert psi["score_like"] < 0.05
    report.check(connection, summary, Checks())  # nobody asked for it
    wrong = (
        rf"score_click lies elsewhere than on {BEFORE}.*max_shift 0.25 \(median 0.5\d+, was 0.3\d+; version 8, not 7\)"
    )
    with pytest.raises(UserError, match=wrong):
        report.check(connection, summary, Checks(max_shift=LARGE))


def test_few_lists_shift_by_chance(connection: duckdb.DuckDBPyConnection) -> None:
    summary = summarise(connection, lists(6), lists(5))
    assert summary.compared is not None
    assert max(shift.psi for shift in summary.compared.shifts) > LARGE
    report.check(connection, summary, Checks(max_shift=LARGE))


def test_one_score_for_all_and_then_another(connection: duckdb.DuckDBPyConnection) -> None:
    """No range of values has anything in it, but the value itself is a part."""
    one, other = (lists(300, score=0.5 + 5 * like, score_click=0.5, score_like=like) for like in (0.001, 0.00101))
    assert summarise(connection, one, one).overall.scores["score"].quantiles == (pytest.approx(0.505),) * 5
    compared = summarise(connection, other, one).compared
    assert compared is not None
    psi = {shift.column: shift.psi for shift in compared.shifts}
    assert psi["score_click"] == 0.0
    assert psi["score_like"] > 5


@pytest.mark.parametrize(
    ("then", "why_not"),
    [
        (lists(50, blend=Blend({"click": 1.0, "like": 4.0})), "other weights"),
        (lists(50, blend=Blend({"click": 1.0, "like": 0.5}, "product")), "other weights"),
        (lists(50).drop_columns(["score_like"]), "score_like, which is part of the score, was not there"),
        (lists(50, score_like=None), "score_like, which is part of the score, was not there"),
        (lists(50, context="home"), "no context"),
    ],
)
def test_scores_of_another_kind_are_no_shift(
    connection: duckdb.DuckDBPyConnection, then: pa.Table, why_not: str
) -> None:
    summary = summarise(connection, lists(50, higher=0.3), then)
    assert summary.compared is not None
    assert summary.compared.shifts == ()
    assert why_not in (summary.compared.why_not or "")
    report.check(connection, summary, Checks(max_shift=0.01))
    assert f"not compared with {BEFORE}" in [*told.lines(summary)][-1]


def test_a_product_is_known_again(connection: duckdb.DuckDBPyConnection) -> None:
    blend = Blend({"click": 1.0, "like": 0.5}, "product")
    compared = summarise(connection, lists(50, blend=blend), lists(50, blend=blend), blend=blend).compared
    assert compared is not None
    assert [shift.psi for shift in compared.shifts] == [0.0, 0.0, 0.0]


def test_longer_lists_are_no_shift(connection: duckdb.DuckDBPyConnection) -> None:
    """Of longer lists the first places are compared; with all of them the same scores would lie lower."""
    compared = summarise(connection, lists(300, size=12), lists(301)).compared
    assert compared is not None
    assert max(shift.psi for shift in compared.shifts) < 0.1


def test_a_part_of_the_users_tells_the_quantiles(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lists(1000)
    whole = summarise(connection, made, made)
    monkeypatch.setattr(report, "DRAWN", 600)
    drawn = summarise(connection, made, made)
    assert drawn.overall.scores["score"].lowest == whole.overall.scores["score"].lowest
    assert drawn.overall.scores["score"].quantiles == pytest.approx(whole.overall.scores["score"].quantiles, abs=0.05)
    assert drawn.overall.scores["score"].quantiles != whole.overall.scores["score"].quantiles
    assert drawn.compared is not None
    assert drawn.compared.shifts[0].psi == 0.0
    assert sql.value(connection, 'SELECT count(*) FROM "now"') in range(400, 800)
    assert shifts.drawn_users(connection, "made", 10**9) == "hash(user_id) % 1 = 0"


def test_a_thousand_segments_are_told_by_the_largest(connection: duckdb.DuckDBPyConnection) -> None:
    made = lists(2000, segments=1000)
    summary = summarise(connection, made, of=asked(made, s7=6))
    assert (summary.num_segments, len(summary.segments)) == (1000, report.SEGMENTS)
    assert next(iter(summary.segments)) == "s7"
    assert len(json.dumps(summary.result())) < 30_000
    text = on_screen(summary)
    assert "and 980 smaller segments" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text  # nothing is cut off


def test_in_a_log_it_is_lines(connection: duckdb.DuckDBPyConnection, caplog: pytest.LogCaptureFixture) -> None:
    made = lists(400)
    summary = summarise(connection, made, lists(400, higher=0.1), of=asked(made, s1=20))
    with caplog.at_level(logging.INFO):
        told.tell(summary)
    assert caplog.messages[0] == "lists: 400 of 420 (95.2 %), 1,200 rows of 9 items"
    assert caplog.messages[1] == "lists lack most in s1 (90.9 %)"
    assert re.fullmatch(rf"score: 5 % 0.\d+, median 0.\d+, 95 % 0.\d+, shift since {BEFORE} 1.\d\d", caplog.messages[2])
    assert caplog.messages[-2:] == [
        "sources: popular 66.7 %, similar 33.3 %",
        "in most lists: i1 100 %, i2 100 %, i10 14.5 %, i11 14.2 %, i12 14.2 %",
    ]


def test_a_shard_that_is_there_twice_is_a_bug(connection: duckdb.DuckDBPyConnection) -> None:
    made = lists(4)
    with pytest.raises(AssertionError, match="twice"):
        summarise(connection, pa.concat_tables([made, made]), of=asked(made))
