"""A summary of scores for a person: tables where one watches, a few lines in a log."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from pipelines.profile.drift import LARGE, MODERATE
from pipelines.profile.text import count, percent, shortened
from pipelines.progress import console
from pipelines.scoring.report import QUANTILES, Part, Scores, Summary

log = logging.getLogger(__name__)

_NAME, _BAR = 24, 30

_LOW, _HALF, _HIGH = 0, len(QUANTILES) // 2, len(QUANTILES) - 1


def tell(summary: Summary) -> None:
    """Show a summary on stderr."""
    if console.is_terminal:
        console.print(tables(summary))
        return
    for line in lines(summary):
        log.info("%s", line)


def lines(summary: Summary) -> Iterator[str]:
    """The summary in few words."""
    part = summary.overall
    yield (
        f"lists: {count(part.lists)} of {count(part.asked)} ({percent(part.coverage)}), {count(part.rows)} rows of "
        f"{count(part.items)} items"
    )
    if lacking := [f"{name} ({percent(p.coverage)})" for name, p in _worst(summary.segments) if p.lists < p.asked]:
        yield f"lists lack most in {', '.join(lacking[:3])}"
    for name, (asked, made) in _contexts(summary):
        yield f"context {name}: {count(made)} of {count(asked)} ({percent(made / max(asked, 1))})"
    for column, found in part.scores.items():
        if found.quantiles:
            yield f"{column}: {', '.join(_spread(found))}{_shift(summary, column)}"
    yield f"sources: {', '.join(f'{name} {percent(rows / part.rows)}' for name, rows in part.sources.items())}"
    top = [f"{shortened(item, _NAME)} {percent(n / part.lists)}" for item, n in part.top_items.items()]
    yield f"in most lists: {', '.join(top)}"
    if summary.compared and summary.compared.why_not:
        yield f"not compared with {summary.compared.ds}: {summary.compared.why_not}"


def _contexts(summary: Summary) -> list[tuple[str, tuple[int, int]]]:
    """How many lists were asked for and are there, by context; nothing where there is one only."""
    found = [(name, summary.of_context(name)) for name in summary.asked]
    return found if len(found) > 1 else []


def _worst(segments: Mapping[str, Part]) -> list[tuple[str, Part]]:
    return sorted(segments.items(), key=lambda one: one[1].lists - one[1].asked)


def _spread(scores: Scores) -> Iterator[str]:
    assert scores.quantiles is not None
    for name, place in (("5 %", _LOW), ("median", _HALF), ("95 %", _HIGH)):
        yield f"{name} {_number(scores.quantiles[place])}"


def _shift(summary: Summary, column: str) -> str:
    """The index beside the last published day, as words; nothing where it was not compared."""
    found = _psi(summary, column)
    return f", shift since {summary.compared.ds} {found}" if summary.compared and found else ""


def _psi(summary: Summary, column: str) -> str:
    shifts = summary.compared.shifts if summary.compared else ()
    return next((f"{shift.psi:.2f}" for shift in shifts if shift.column == column), "")


def tables(summary: Summary) -> Group:
    """The summary as tables of at most 100 columns."""
    sources = [_sources(summary)] if len(summary.overall.sources) > 1 else []
    return Group(_lists(summary), *sources, _scores(summary), _items(summary.overall))


def _lists(summary: Summary) -> Table:
    rest = summary.num_segments - len(summary.segments)
    caption = f"and {count(rest)} smaller segments" if summary.segments and rest else None
    table = _table("Lists", "segment", "asked for", "there are", "", "score 5 %", "median", "95 %", caption=caption)
    table.add_column("in most lists", no_wrap=True)
    for name, part in _rows(summary):
        top, lists = next(iter(part.top_items.items()), ("", 0))
        share = f"{percent(lists / part.lists)}  {escape(shortened(top, _NAME))}" if top else ""
        quantiles = part.scores["score"].quantiles
        spread = [_number(quantiles[at] if quantiles else None) for at in (_LOW, _HALF, _HIGH)]
        covered = percent(part.coverage)
        lacking = covered if part.lists == part.asked else f"[yellow]{covered}[/]"
        table.add_row(name, count(part.asked), count(part.lists), lacking, *spread, share)
    for name, (asked, made) in _contexts(summary):
        table.add_row(f"[dim]context[/] {escape(name)}", count(asked), count(made), percent(made / max(asked, 1)))
    return table


def _sources(summary: Summary) -> Table:
    names = list(summary.overall.sources)
    table = _table("Where the items come from", "segment", *names)
    for name, part in _rows(summary):
        table.add_row(name, *(percent(part.sources.get(one, 0) / part.rows) if part.rows else "" for one in names))
    return table


def _scores(summary: Summary) -> Table:
    compared = summary.compared
    heads = ["lowest", *(f"{100 * at:g} %" for at in QUANTILES), "highest", "mean"]
    shift, caption = [], None
    if compared and compared.why_not:
        caption = f"not compared with {compared.ds}: {compared.why_not}"
    elif compared:
        shift = ["shift"]
        caption = f"shift: population stability index since {compared.ds}; from {MODERATE} moderate, from {LARGE} large"
    table = _table("Scores", "", *heads, *shift, caption=caption)
    for column, found in summary.overall.scores.items():
        values = [found.lowest, *(found.quantiles or [None] * len(QUANTILES)), found.highest, found.mean]
        table.add_row(escape(column), *map(_number, values), *([_psi(summary, column)] if shift else []))
    return table


def _items(part: Part) -> Table:
    table = _table(f"In most lists, of {count(part.items)} items", "item", "lists", "share")
    table.add_column("")
    for item, lists in part.top_items.items():
        share = lists / part.lists
        table.add_row(escape(shortened(item, _NAME)), count(lists), percent(share), "█" * round(_BAR * share))
    return table


def _rows(summary: Summary) -> Iterator[tuple[str, Part]]:
    yield "[bold]all", summary.overall
    for name, part in summary.segments.items():
        yield escape(shortened(name, _NAME)), part


def _number(value: float | None) -> str:
    """Three figures; a dash for None."""
    return "\N{EN DASH}" if value is None else f"{value:,.3g}"


def _table(title: str, first: str, *others: str, caption: str | None = None) -> Table:
    table = Table(
        title=f"\n{title}",
        caption=caption,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        header_style="dim",
        box=None,
        padding=(0, 1),
    )
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
