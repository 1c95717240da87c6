"""Small pictures as inline SVG: drawn 360 units wide, so that their text reads on a phone; colours are the page's.

Everything that comes from data is escaped by `Markup.format` and `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipelines.profile.text import count, percent, short, shortened

WIDTH = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 20
_HEIGHT = 170
_LABELS = 6
_COARSE, _FINE = (1, 2, 5, 10), (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
"""What steps between lines may begin with: coarse where they do not start at 0, so that all of them are short."""


@dataclass(frozen=True)
class Series:
    """Values with a name, in the colour of a CSS class (`c1`, `c2`, … or `past`); None leaves a gap."""

    name: str
    values: Sequence[float | None]
    colour: str


@dataclass(frozen=True)
class _Scale:
    """Values from `low` to `high` as heights in a chart, both short numbers."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> _Scale:
        """Holds all values; starts at 0 where they are spread, near the lowest where they are close together."""
        found = list(values)
        low, high = min(found, default=0.0), max(found, default=0.0)
        if low >= 0 and (low < 0.6 * high or high == 0):
            return cls(0.0, 2 * _nice(high / 2, _FINE))
        step = _nice((high - low) / 2 or high / 10, _COARSE)
        start = step * math.floor(low / step)
        return cls(start, start + 2 * step * max(1, math.ceil((high - start) / (2 * step) - 1e-9)))

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - self.low) / ((self.high - self.low) or 1.0)


def stacked(title: str, labels: Sequence[str], series: Sequence[Series], past: int = 0) -> Markup:
    """Columns of counts on top of each other; the first `past` of them are pale."""
    totals = [sum(one.values[place] or 0 for one in series) for place in range(len(labels))]
    scale = _Scale.of([0.0, *totals])
    step = (WIDTH - _LEFT - _RIGHT) / max(len(labels), 1)
    bars = []
    for place, label in enumerate(labels):
        below = 0.0
        for one in series:
            value = one.values[place] or 0.0
            if value:
                y = scale.y(below + value)
                bars.append(
                    Markup(
                        '<rect class="{}{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                        "<title>{}: {} {}</title></rect>"
                    ).format(
                        one.colour,
                        " pale" if place < past else "",
                        _LEFT + (place + 0.12) * step,
                        y,
                        0.76 * step,
                        scale.y(below) - y,
                        label,
                        count(value),
                        one.name,
                    )
                )
            below += value
    frame = _axes(scale, labels, [_LEFT + (place + 0.5) * step for place in range(len(labels))], short)
    return _svg(title, frame + Markup("").join(bars))


def lines(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    band: Sequence[tuple[float, float] | None] = (),
    shown: Callable[[float], str] = percent,
) -> Markup:
    """Lines over `labels`, and a band around the first of them; `shown` writes their values."""
    values = [value for one in series for value in one.values if value is not None]
    scale = _Scale.of([*values, *(edge for pair in band if pair for edge in pair)])
    room = WIDTH - _LEFT - _RIGHT
    xs = [_LEFT + room * (place + 0.5) / len(labels) for place in range(len(labels))]
    parts = [_band(xs, band, scale, series[0].colour)] if band else []
    for one in series:
        points = [
            (x, scale.y(v), v, label) for x, v, label in zip(xs, one.values, labels, strict=True) if v is not None
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
        parts.append(Markup('<polyline class="line {}" points="{}"/>').format(one.colour, path))
        parts += [
            Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.5"><title>{}: {} {}</title></circle>').format(
                one.colour, x, y, label, shown(value), one.name
            )
            for x, y, value, label in points
        ]
    return _svg(title, _axes(scale, labels, xs, shown) + Markup("").join(parts))


def _band(xs: Sequence[float], band: Sequence[tuple[float, float] | None], scale: _Scale, colour: str) -> Markup:
    known = [(x, pair) for x, pair in zip(xs, band, strict=True) if pair]
    outline = [(x, pair[1]) for x, pair in known] + [(x, pair[0]) for x, pair in reversed(known)]
    points = " ".join(f"{x:.1f},{scale.y(value):.1f}" for x, value in outline)
    return Markup('<polygon class="band {}" points="{}"/>').format(colour, points)


def pairs(title: str, bins: Sequence[tuple[str, float, float]], rest: str) -> Markup:
    """Shares of the days over those of the days before, a pair of lying bars for each (name, now, before).

    The one called `rest` does not set the scale.
    """
    # The rest of many values is large and says little: its bar is cut, so that the others can be seen.
    top = max([share for name, *shares in bins if name != rest for share in shares], default=0.0) or 1.0
    left, row = 132, 21
    room = WIDTH - left - 46
    parts = []
    for place, (name, now, before) in enumerate(bins):
        y = place * row
        parts.append(
            Markup(
                '<text x="{}" y="{:.1f}" class="end">{}<title>{}</title></text>'
                '<rect class="c1" x="{}" y="{:.1f}" width="{:.1f}" height="8"/>'
                '<rect class="past" x="{}" y="{:.1f}" width="{:.1f}" height="5"/>'
                '<text x="{:.1f}" y="{:.1f}">{}<title>{} before</title></text>'
            ).format(
                left - 6,
                y + 12,
                shortened(name, 22),
                name,
                left,
                y + 2,
                room * min(now / top, 1),
                left,
                y + 11,
                room * min(before / top, 1),
                left + 5 + room * min(max(now, before) / top, 1),
                y + 12,
                percent(now),
                percent(before),
            )
        )
    return _svg(title, Markup("").join(parts), height=max(len(bins), 1) * row + 2)


def interval(low: float, mean: float, high: float, before: float | None, top: float) -> Markup:
    """One rate with its interval, and a tick where it was before, on a line from 0 to `top`: for a row of a table."""
    room = 116.0 / (top or 1.0)
    tick = (
        Markup('<rect class="past" x="{:.1f}" y="1" width="2" height="14"/>').format(1 + room * before)
        if before is not None
        else ""
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 120 16" aria-hidden="true"><line class="axis" x1="2" x2="118" y1="8" y2="8"/>'
        '{}<rect class="c1 pale" x="{:.1f}" y="5" width="{:.1f}" height="6"/>'
        '<circle class="c1" cx="{:.1f}" cy="8" r="3.5"/></svg>'
    ).format(tick, 2 + room * low, max(room * (high - low), 1.0), 2 + room * mean)


def bar(share: float, top: float, colour: str = "c1") -> Markup:
    """One lying bar, `share` of a line that is `top` long: for a row of a table."""
    return Markup(
        '<svg class="spark" viewBox="0 0 120 16" aria-hidden="true">'
        '<rect class="{}" x="0" y="3" width="{:.1f}" height="10"/></svg>'
    ).format(colour, 120 * min(share / (top or 1.0), 1.0))


def _svg(title: str, content: Markup, height: int = _HEIGHT) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>').format(
        WIDTH, height, title, title, content
    )


def _axes(scale: _Scale, labels: Sequence[str], xs: Sequence[float], shown: Callable[[float], str]) -> Markup:
    """Lines across at the low end, half and the top with their values, and as many labels below as fit."""
    parts = []
    for value in (scale.low, (scale.low + scale.high) / 2, scale.high):
        y = scale.y(value)
        parts.append(
            Markup(
                '<line class="axis" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text class="end" x="{}" y="{:.1f}">{}</text>'
            ).format(_LEFT, WIDTH - _RIGHT, y, y, _LEFT - 5, y + 3.5, shown(value))
        )
    every = max(1, math.ceil(len(labels) / _LABELS))
    for place in range(len(labels) - 1, -1, -every):
        parts.append(
            Markup('<text class="middle" x="{:.1f}" y="{}">{}</text>').format(xs[place], _HEIGHT - 5, labels[place])
        )
    return Markup("").join(parts)


def _nice(value: float, steps: Sequence[float]) -> float:
    """The next of `steps` times a power of ten; 1 where the value is not above 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in steps if step * power >= value * 0.999)
