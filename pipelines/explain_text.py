"""An explanation in words and bars, 80 columns wide, for a person without a manual."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

WIDTH = 80
_NAME, _CELL, _BAR = 20, 20, 13
_TASKS_A_TABLE = (WIDTH - _NAME) // _CELL
_EXPERTS, _FEATURES = 12, 5
"""How many are shown; --json has more."""
_SOURCES = {
    "direct": "",
    "parent": ": the user's own segment has too few rows, so this wider one stands in",
    "unknown": ": the user's segment was not in training, or has too few rows",
}


def as_text(result: dict[str, Any]) -> str:
    """The result of `pipelines.explain.explain` for a terminal."""
    tasks = result["tasks"]
    lines = [*_header(result), ""]
    for start in range(0, len(tasks), _TASKS_A_TABLE):
        lines += [*_experts(tasks[start : start + _TASKS_A_TABLE]), ""]
    if any(task["moved"] for task in tasks):
        lines += [*_moves(result), "", *_legend(result)]
    else:
        lines += _wrapped("There is one expert only, so the gate has nothing to decide.")
    return "\n".join(line.rstrip() for line in lines)


def _header(result: dict[str, Any]) -> Iterator[str]:
    count = len(result["items"])
    what = f"item {result['item']}" if result["item"] else f"the user's best {count} items, on average"
    champion = " (champion)" if result["champion"] else ""
    yield from _wrapped(f"User {result['user']}, {what}, by model version {result['model_version']}{champion}")
    context = dict(result["context"])
    name = context.pop("name")
    values = ", ".join(f"{key} = {value}" for key, value in context.items())
    named = f" in context {name!r}" if name != "default" else ""
    asked = f", asked{named}" + (f" with {values}" if values else "") if named or values else ""
    yield from _wrapped(f"Known through {result['as_of']}{asked}")
    if result["segment"] is not None:
        yield from _wrapped(f"Segment {result['segment']}{_SOURCES[result['segment_source']]}")


def _experts(tasks: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A row an expert, a column a task; the heaviest first."""
    weights = [task["experts"] for task in tasks]
    names = sorted(weights[0], key=lambda name: -sum(of[name] for of in weights))
    shown = [name for name in names[:_EXPERTS] if any(of[name] > 0 for of in weights)]
    highest = max(of[name] for of in weights for name in shown)
    yield _row("", [task["task"] for task in tasks])
    yield _row("Predicted", [_predicted(task) for task in tasks])
    yield "Experts that spoke, by weight"
    for name in shown:
        yield _row(f"  {name}", [_weight(of[name], highest) for of in weights])
    if rest := names[len(shown) :]:
        yield _row(f"  {len(rest)} others", [_percent(sum(of[name] for name in rest)) for of in weights])


def _row(name: str, cells: Sequence[str]) -> str:
    return _fit(name, _NAME) + "".join(_fit(cell, _CELL) for cell in cells)


def _predicted(task: dict[str, Any]) -> str:
    value = task["prediction"]
    return f"{value:.4g}" if task["kind"] == "regression" else f"{value:.1%}"


def _weight(weight: float, highest: float) -> str:
    return f"{_percent(weight)} {'#' * round(_BAR * weight / highest)}"


def _percent(weight: float) -> str:
    return f"{weight:4.0%}" if weight else "   -"


def _moves(result: dict[str, Any]) -> Iterator[str]:
    """For each task a line a feature: how much, of what value, for or against whom."""
    yield "What moved the gates most"
    highest = max(abs(move["added"]) for task in result["tasks"] for move in task["moved"]) or 1.0
    for task in result["tasks"]:
        yield task["task"]
        for move in task["moved"][:_FEATURES]:
            bar = "#" * max(1, round(6 * abs(move["added"]) / highest))
            side = f"{'for' if move['added'] > 0 else 'against'} {move['expert']}"
            yield f"  {move['added']:+.2f} {bar:6} {_fit(_value(move), 39)}{_fit(side, 26)}"


def _value(move: dict[str, Any]) -> str:
    if "value" not in move:
        return str(move["feature"])
    value = move["value"]
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    elif isinstance(value, float):
        value = f"{value:.3g}"
    return f"{move['feature']} = {'(missing)' if value in (None, '') else value}"


def _legend(result: dict[str, Any]) -> Iterator[str]:
    means = (
        "+0.69 doubles its weight beside theirs, -0.69 halves it"
        if result["score"] == "softmax"
        else "above 0 it is heard more"
    )
    average = "" if result["item"] else " Features of items count with their mean over the list."
    yield from _wrapped(
        "A signed number says how far a value, compared with an average row's, moved that expert against the mean of "
        f"the others: {means}.{average}"
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)


def _fit(text: str, width: int) -> str:
    """Exactly `width` cells; what is too long ends with a mark."""
    if cell_len(text) > width - 1:
        text = set_cell_size(text, width - 2) + "~"
    return set_cell_size(text, width)
