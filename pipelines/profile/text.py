"""Numbers as a person reads them."""

from __future__ import annotations


def count(value: float) -> str:
    """`12,345`."""
    return f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share as `12.3 %`, small ones with another figure; a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    size = abs(100 * value)
    decimals = 0 if size == 0 or size >= 99.95 else 1 if size >= 1 else 2
    return f"{100 * value:.{decimals}f} %"


def change(now: float | None, before: float | None) -> str:
    """How much more or less than before, as `+4.0 %`; nothing where there is nothing to compare with."""
    if now is None or not before:
        return ""
    return f"{100 * (now / before - 1):+.1f} %"


def points(now: float | None, before: float | None) -> str:
    """The difference of two shares, as `+1.25 pp` (percentage points)."""
    if now is None or before is None:
        return ""
    return f"{100 * (now - before):+.2f} pp"


def shortened(text: str, length: int) -> str:
    """The text, with `…` for its end where it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def short(value: float) -> str:
    """A count in few characters: 950, 12k, 3.5M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def number(value: float | None) -> str:
    """Four figures of a number; a dash for None."""
    return "\N{EN DASH}" if value is None else f"{value:,.4g}"
