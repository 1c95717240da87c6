"""The demo's last screen: what was read, how good the model is, who was scored, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.config import Recommender
from pipelines.local.services import REPOSITORY, Layout
from pipelines.tables import Tables

Results = Mapping[tuple[str, date], Mapping[str, Any]]

_console = Console()
_BAR_WIDTH = 40
_UNKNOWN = "-"


def show_summary(config: Recommender, results: Results, layout: Layout) -> None:
    """Print the summary of all that the steps returned, by step and day."""
    _console.print(_rows_read(results))
    evaluated, promoted, scored = (_newest(results, step) for step in ("evaluate", "promote", "score"))
    _console.print(_quality(evaluated))
    _console.print(_loads(evaluated))
    for day, result in sorted((day, result) for (step, day), result in results.items() if step == "promote"):
        _console.print(f"{day}: version {_text(result, 'version')}: {_text(result, 'decision')}", highlight=False)
        for reason in _value(result, "reasons") or ():
            _console.print(f"  [dim]{escape(reason)}", highlight=False)
    _console.print(f"[bold]Champion[/] version {_text(promoted, 'champion')}", highlight=False)
    _console.print(
        f"[bold]Scored[/] {_text(scored, 'users')} users, {_text(scored, 'rows')} rows, by version "
        f"{_text(scored, 'model_version')}",
        highlight=False,
    )
    _console.print(_top_list(config, date.fromisoformat(_text(scored, "ds"))))
    _console.print(_places(config, layout))


def _newest(results: Results, step: str) -> Mapping[str, Any]:
    return results[step, max(day for name, day in results if name == step)]


def _value(result: Any, *path: str) -> Any:
    """A value deep inside a result, or None: a step may leave out what it does not know."""
    for key in path:
        result = result.get(key) if isinstance(result, Mapping) else None
    return result


def _text(result: Any, *path: str) -> str:
    value = _value(result, *path)
    if value is None:
        return _UNKNOWN
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _rows_read(results: Results) -> Table:
    counts = ("read", "accepted", "rejected", "duplicates")
    table = _table("Rows by day", "day", *counts)
    ingested = {day: result for (step, day), result in sorted(results.items()) if step == "ingest"}
    for day, result in ingested.items():
        table.add_row(str(day), *(_text(result, count) for count in counts))
    sums = {count: sum(_value(result, count) or 0 for result in ingested.values()) for count in counts}
    table.add_row("[bold]all", *(f"[bold]{_text(sums, count)}" for count in counts))
    return table


def _quality(evaluated: Mapping[str, Any]) -> Table:
    others = ("popularity", "shared_bottom", "dense", "boosting")
    titles = ("task", *(name.replace("_", " ") for name in others), "model", "best attainable")
    table = _table("AUC on the test day", *titles)
    for task in _value(evaluated, "tasks") or {}:
        known = [*(f"{name}_auc" for name in others), "auc", "best_auc"]
        table.add_row(task, *(_text(evaluated, "tasks", task, key) for key in known))
    return table


def _loads(evaluated: Mapping[str, Any]) -> Table:
    table = _table("Load per routed expert", "expert", "share", "")
    shares = _value(evaluated, "load") or []
    for number, share in enumerate(shares):
        bar = "█" * round(_BAR_WIDTH * share / max(shares))
        table.add_row(str(number), f"{share:.1%}", bar)
    table.columns[-1].justify = "left"
    return table


def _top_list(config: Recommender, ds: date) -> Table:
    """The first user's best items."""
    rows = Tables(config.storage).read_day("scores", ds)
    user = rows["user_id"].combine_chunks().sort()[0] if len(rows) else pa.scalar(None)
    mine = [row for row in rows.to_pylist() if row["user_id"] == user.as_py()]
    tasks = [f"score_{task.name}" for task in config.tasks]
    table = _table(f"The best for user {user}", "rank", "item_id", "score", *tasks)
    for row in sorted(mine, key=lambda row: row["rank"])[:5]:
        table.add_row(*(_text(row, column) for column in ("rank", "item_id", "score", *tasks)))
    return table


def _places(config: Recommender, layout: Layout) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]Tables", _short(config.workspace / "tables"))
    table.add_row("[bold]Models and runs", f"{_short(layout.mlflow)}    to look at them: make up")
    table.add_row("[bold]Logs", f"{_short(layout.task_logs)} (tasks), {_short(layout.logs)} (services)")
    table.add_row("[bold]Config", _short(layout.configs / f"{config.name}.yaml"))
    return table


def _short(path: Path) -> str:
    return str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, padding=(0, 1))
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
