"""Two versions on the same rows, for a person: `recsys-moe compare A B`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines import gate
from pipelines.config import Recommender
from pipelines.evaluation import plain
from pipelines.paired import Contender, Pair
from pipelines.registry import Registry
from recsys_moe.errors import UserError

_WIDTH = 130
"""Of the table where no terminal says its own."""
_STYLE = {"better": "green", "worse": "red", "blocks": "bold red"}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:nth-child(-n+2), td:nth-child(-n+2), td:last-child, th:last-child { text-align: left; }
.better { color: #005f87; font-weight: 600; } .worse, .blocks { color: #b34700; font-weight: 600; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ subtitle }}</p>
<table>
<thead><tr>{% for name in columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for cells in lines %}
<tr>{% for cell in cells %}<td{% if loop.last %} class="{{ cell }}"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table>
</body>
</html>
"""


def compare(config: Recommender, first: int, second: int, as_of: date, out: Path | None = None) -> dict[str, Any]:
    """Measure version `second` against `first` by the gate's metrics, on test days of `as_of` after both.

    Args:
        config: the recommender.
        first: a version's number.
        second: another's.
        as_of: the day whose training holds out the rows.
        out: an HTML file to write, too.

    Raises:
        NotComparableError: there are no such rows.
        UserError: there is no such version, it cannot be read, or `out` cannot be written.
    """
    registry = Registry(config)
    contenders = [Contender.of(registry, registry.version(number)) for number in (first, second)]
    rows = Pair.of(config, as_of, *contenders).rows()
    found = gate.compare(config.evaluation.gate, config.primary_task, rows)
    result = {
        "step": "compare",
        "name": config.name,
        "as_of": as_of.isoformat(),
        "versions": [first, second],
        "rows": len(rows.users),
        "users": len(set(rows.users.tolist())),
        "calibration": dict(found.calibration),
        "table": [plain(asdict(line)) for line in found.table],
    }
    if out is not None:
        _write(out, _page(result))
        result["out"] = str(out)
    return result


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table."""
    console = console or Console()
    if not console.is_terminal:
        console.width = _WIDTH
    title, subtitle = _titles(result)
    table = Table(title=title, caption=subtitle)
    for number, name in enumerate(_columns(result)):
        left = number < 2 or name == "verdict"
        table.add_column(name, justify="left" if left else "right", no_wrap="interval" in name)
    for line in result["table"]:
        *cells, verdict = _cells(line)
        table.add_row(*(Text(cell) for cell in cells), Text(verdict, style=_STYLE.get(verdict, "")))
    console.print(table)


def _titles(result: Mapping[str, Any]) -> tuple[str, str]:
    first, second = result["versions"]
    rows = f"{result['rows']:,} rows of {result['users']:,} users, the test days of {result['as_of']} after both"
    return (
        f"{result['name']}: version {second} against version {first}",
        f"{rows}. Intervals are of 95 %, over draws of users.",
    )


def _columns(result: Mapping[str, Any]) -> list[str]:
    first, second = result["versions"]
    values = [f"version {first}", f"version {second}", "difference", "95 % interval", "p (Holm)"]
    return ["metric", "segment", "rows", "positives", *values, "verdict"]


def _cells(line: Mapping[str, Any]) -> list[str]:
    low, high = (_number(line[end], "+.4f") for end in ("low", "high"))
    return [
        line["metric"],
        line["segment"],
        _number(line["rows"], ",d"),
        _number(line["positives"], ",d"),
        _number(line["champion"], ".4f"),
        _number(line["challenger"], ".4f"),
        _number(line["difference"], "+.4f"),
        f"{low} to {high}",
        _number(line["p"], ".3f"),
        line["verdict"],
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _page(result: Mapping[str, Any]) -> str:
    title, subtitle = _titles(result)
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_PAGE)
    lines = [_cells(line) for line in result["table"]]
    return page.render(title=title, subtitle=subtitle, columns=_columns(result), lines=lines)


def _write(out: Path, page: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
