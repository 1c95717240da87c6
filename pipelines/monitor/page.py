"""The report as one HTML file, in the dress of the page about a day's data (`pipelines.profile`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import jinja2
from markupsafe import Markup

from pipelines.config import Recommender
from pipelines.monitor.checks import Check, Group, Judged, counted
from pipelines.monitor.drifts import Drifts
from pipelines.profile import charts, text
from pipelines.profile.drift import LARGE, REST, Spread
from pipelines.registry import Version

_PICTURED, _BINS, _SEGMENTS = 6, 12, 20
_TITLES: dict[Group, str] = {
    "freshness": "Freshness",
    "volume": "Volume",
    "calibration": "Calibration of the day's predictions",
    "served": "Calibration of what was served",
    "score_drift": "Drift of scores",
    "drift": "Drift of features",
    "experts": "Experts",
}
_NOTES: dict[Group, str] = {
    "freshness": "Days behind.",
    "volume": "The day beside the median of the days before.",
    "calibration": "Predicted over observed, of the model on the day's rows as they were shown.",
    "served": "Predicted over observed, of yesterday's published scores on the pairs that were shown today. They were "
    "made for the YAML's context, so this is not 1 where people saw other places.",
    "score_drift": "What the model says of the day's rows, against the days that it learned from.",
    "drift": "What the model reads, against the days that it learned from.",
    "experts": "Which routed experts the day's rows chose.",
}


@dataclass(frozen=True)
class Section:
    """The checks of a group: of all rows, and those of segments, worst first; `more` of these are not shown."""

    title: str
    note: str
    overall: Sequence[Check]
    segments: Sequence[Check]
    more: int
    bars: bool


def headline(judged: Judged) -> str:
    """The verdict, a sentence in Markdown."""
    numbers = counted(judged.checks)
    if judged.retrain:
        return f"**A training is due**: {numbers['retrain']} of {len(judged.checks)} checks say so."
    if judged.reasons:
        return f"**A training would be due, but the day's data comes first**: {'; '.join(judged.held_back)}."
    if judged.found:
        warned = f"{numbers['warn']} of {len(judged.checks)} checks"
        return f"**Worth a look**: {warned} warn; no training is due."
    return f"**All is well**: none of {len(judged.checks)} checks is off."


def render(config: Recommender, as_of: date, version: Version | None, judged: Judged, drifts: Drifts | None) -> str:
    """The page. All that comes from data is escaped."""
    loaders = [jinja2.PackageLoader(f"pipelines.{name}", "templates") for name in ("monitor", "profile")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": text.count}
    return environment.get_template("monitor.html.j2").render(
        name=config.name,
        as_of=as_of,
        version=version,
        judged=judged,
        headline=headline(judged).replace("**", ""),
        sections=[section for group in _TITLES if (section := _section(judged.checks, group))],
        bar=_bar,
        pictures=[(one, _picture(one)) for one in (drifts.overall[:_PICTURED] if drifts else ())],
    )


def _section(checks: Sequence[Check], group: Group) -> Section | None:
    of_group = [check for check in checks if check.group == group]
    overall = [check for check in of_group if check.segment is None]
    segments = sorted(
        (check for check in of_group if check.segment is not None),
        key=lambda one: (one.verdict == "ok", not one.is_sure, -(one.off if one.off is not None else one.value or 0.0)),
    )
    if not of_group:
        return None
    shown, more = segments[:_SEGMENTS], max(len(segments) - _SEGMENTS, 0)
    return Section(_TITLES[group], _NOTES[group], overall, shown, more, group in ("drift", "score_drift"))


def _bar(check: Check) -> Markup:
    colour = {"ok": "c1", "warn": "moderate", "retrain": "large"}[check.verdict]
    return charts.bar(check.value or 0.0, 2 * LARGE, colour)


def _picture(spread: Spread) -> Markup:
    """The bins that moved most, in the order of the values."""
    shares = [(one.name, one.now / max(spread.now, 1), one.before / max(spread.before, 1)) for one in spread.bins]
    kept = sorted(shares, key=lambda one: -abs(one[1] - one[2]))[:_BINS]
    return charts.pairs(f"Values of {spread.column.name}", [one for one in shares if one in kept], REST)
