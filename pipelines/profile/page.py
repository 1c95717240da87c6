"""From what was measured to one HTML file: numbers into words, cards and pictures, then the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import jinja2
from markupsafe import Markup

from pipelines.config import Recommender, TaskSource
from pipelines.leaks import SAMPLE, Alone
from pipelines.profile import charts, text
from pipelines.profile.charts import Series
from pipelines.profile.drift import LARGE, MODERATE, REST, TOP, Spread
from pipelines.profile.rates import Rate, Rates, has_segments
from pipelines.profile.span import Span
from pipelines.profile.volumes import DayVolume, Heavy, Reason

_PICTURED, _FEW, _BINS, _SEGMENTS = 9, 3, 12, 20
_SURE = 30
"""Rows from which on a segment's interval may set the scale for all."""


@dataclass(frozen=True)
class Findings:
    """All that was measured of a span of days; `volumes` has the days before, too."""

    volumes: list[DayVolume]
    different: tuple[int, int]
    hours: tuple[list[float], list[float]]
    heavy_users: list[Heavy]
    heavy_items: list[Heavy]
    reasons: list[Reason]
    rates: Rates
    spreads: list[Spread]
    alone: list[Alone]


@dataclass(frozen=True)
class Card:
    """A headline number, how it differs from the days before, and a line of detail."""

    name: str
    value: str
    change: str
    note: str = ""


@dataclass(frozen=True)
class SegmentTable:
    """A task's rate by segment: name, now, before, and a picture; `more` segments are not shown."""

    task: str
    lines: list[tuple[str, Rate, Rate, Markup]]
    more: int


def render(config: Recommender, span: Span, found: Findings) -> str:
    """The page. All that comes from data is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.profile", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": text.count, "percent": text.percent, "number": text.number, "points": text.points}
    return environment.get_template("page.html.j2").render(
        config=config,
        span=span,
        found=found,
        cards=[*_volume_cards(span, found), *_label_cards(config, span, found)],
        volumes=_volume_chart(span, found.volumes),
        hours=_hour_chart(span, found.hours),
        label_charts=[_label_chart(span, task, found.rates) for task in config.tasks],
        segments=_segment_tables(config, span, found.rates),
        segments_by=config.segments.title if config.segments else None,
        has_segments=has_segments(config),
        missing=_missing(found.spreads),
        drifts=[(one, charts.bar(one.psi, max(LARGE, found.spreads[0].psi), one.reading)) for one in found.spreads],
        drift_charts=[(one, _drift_chart(one)) for one in _pictured(found.spreads)] if span.before else [],
        limits={"moderate": MODERATE, "large": LARGE, "top": TOP, "sample": SAMPLE},
        alone=[(one, charts.bar(one.auc - 0.5, 0.5)) for one in found.alone],
        heavy=[(name, rows, charts.bar) for name, rows in (("user", found.heavy_users), ("item", found.heavy_items))],
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _volume_cards(span: Span, found: Findings) -> list[Card]:
    """Rows of all days together; the change is that of the mean day."""
    now = [day for day in found.volumes if day.day in span.days]
    before = [day for day in found.volumes if day.day not in span.days]

    def changed(what: str) -> str:
        return text.change(*(_mean([getattr(day, what) for day in days]) for days in (now, before)))

    def share(what: str) -> Card:
        known = [(day, getattr(day, what)) for day in now if getattr(day, what) is not None]
        known_before = [(day, getattr(day, what)) for day in before if getattr(day, what) is not None]
        shares = [
            sum(value for _, value in days) / max(sum(day.read for day, _ in days), 1) if days else None
            for days in (known, known_before)
        ]
        total = text.count(sum(value for _, value in known)) if known else text.percent(None)
        return Card(what, total, text.points(*shares), f"{text.percent(shares[0])} of the rows read")

    read = Card(
        "rows read", text.count(sum(day.read for day in now)), changed("read"), "accepted + rejected + duplicates"
    )
    users, items = found.different
    return [
        read,
        share("accepted"),
        share("rejected"),
        share("duplicates"),
        share("late"),
        Card("users", text.count(users), changed("users"), "different ones"),
        Card("items", text.count(items), changed("items"), "different ones"),
    ]


def _label_cards(config: Recommender, span: Span, found: Findings) -> list[Card]:
    cards = []
    for task in config.tasks:
        now, before = found.rates.over(task.name, span.days), found.rates.over(task.name, span.before)
        rows = f"of {text.count(now.rows)} rows that have the label"
        if task.kind == "binary":
            cards.append(Card(f"{task.name} rate", text.percent(now.mean), text.points(now.mean, before.mean), rows))
        else:
            cards.append(Card(f"mean {task.name}", text.number(now.mean), text.change(now.mean, before.mean), rows))
    return cards


def _labels(days: Sequence[date]) -> list[str]:
    return [f"{day.day} {day:%b}" for day in days]


def _volume_chart(span: Span, volumes: list[DayVolume]) -> Markup:
    series = [
        Series("accepted", [day.accepted for day in volumes], "c1"),
        Series("duplicates", [day.duplicates for day in volumes], "c2"),
        Series("rejected", [day.rejected for day in volumes], "bad"),
    ]
    return charts.stacked("Rows by day", _labels([day.day for day in volumes]), series, past=len(span.before))


def _hour_chart(span: Span, hours: tuple[list[float], list[float]]) -> Markup:
    now, before = hours
    series = [Series("of the rows", now, "c1")]
    series += [Series("of the rows before", before, "past")] if span.before else []
    return charts.lines("Share of rows by hour of the day", [f"{hour}h" for hour in range(24)], series)


def _label_chart(span: Span, task: TaskSource, rates: Rates) -> Markup:
    by_day = rates.by_day(task.name)
    known = [by_day.get(day, Rate()) for day in span.every]
    values = [rate.mean for rate in known]
    if task.kind == "binary":
        band = [rate.interval if rate.rows else None for rate in known]
        return charts.lines(f"{task.name} rate", _labels(span.every), [Series(task.name, values, "c1")], band)
    return charts.lines(f"Mean {task.name}", _labels(span.every), [Series(task.name, values, "c1")], shown=text.number)


def _segment_tables(config: Recommender, span: Span, rates: Rates) -> list[SegmentTable]:
    """A table a binary task: a line a segment, largest first."""
    if not has_segments(config):
        return []
    names = list(rates.segments(span.days))
    tables = []
    for task in (task.name for task in config.tasks if task.kind == "binary"):
        pairs = [(rates.over(task, span.days, name), rates.over(task, span.before, name)) for name in names[:_SEGMENTS]]
        top = max((now.interval[1] for now, _ in pairs if now.rows >= _SURE), default=1.0)
        lines = [
            (name, now, before, _interval(now, before, top)) for name, (now, before) in zip(names, pairs, strict=False)
        ]
        tables.append(SegmentTable(task, lines, len(names) - len(lines)))
    return tables


def _interval(now: Rate, before: Rate, top: float) -> Markup:
    """A rate's picture; none where it is not known. `top` is the largest that is known well, others are cut there."""
    if now.mean is None:
        return Markup("")
    low, high = now.interval
    return charts.interval(min(low, top), min(now.mean, top), min(high, top), before.mean, top)


def _missing(spreads: list[Spread]) -> list[tuple[Spread, Markup]]:
    """Columns that miss values, largest change first."""
    known = [one for one in spreads if (one.missing_now or 0) + (one.missing_before or 0) > 0]
    known.sort(key=lambda one: (-abs((one.missing_now or 0) - (one.missing_before or 0)), one.column.name))
    return [(one, charts.bar(one.missing_now or 0, 1.0)) for one in known]


def _pictured(spreads: list[Spread]) -> list[Spread]:
    """The columns that changed, as many as are good to look at; where none did, those nearest to it."""
    changed = [one for one in spreads if one.reading != "steady"]
    return changed[:_PICTURED] if len(changed) > _FEW else spreads[:_FEW]


def _drift_chart(spread: Spread) -> Markup:
    """The bins that moved most, in the order of the values."""
    shares = [(one.name, one.now / max(spread.now, 1), one.before / max(spread.before, 1)) for one in spread.bins]
    kept = sorted(shares, key=lambda one: -abs(one[1] - one[2]))[:_BINS]
    return charts.pairs(f"Values of {spread.column.name}", [one for one in shares if one in kept], REST)
