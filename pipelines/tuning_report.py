"""What a search for settings found, in words: a table, a description for its run, and YAML to paste."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipelines.config import Recommender, Value
from pipelines.study import Trial

_SHOWN = 5


def table(best_first: Sequence[Trial], importances: Mapping[str, float], metric: str, shown: int = _SHOWN) -> str:
    """The best trials and their settings in columns, the most important setting first; its share in the last line."""
    paths = list(importances) or list(best_first[0].values)
    lines = [["trial", metric, *_short(paths)]]
    lines += [[str(t.number), f"{t.value:.5f}", *(spelled(t.values[p]) for p in paths)] for t in best_first[:shown]]
    if importances:
        lines.append(["importance", "", *(f"{importances[path]:.0%}" for path in paths)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def snippet(config: Recommender, best: Trial, found: str) -> str:
    """The blocks of the YAML that the search has changed, whole, to stand in place of those that it has."""
    tuned = config.tuned(best.values)
    blocks = {"model": tuned.model, "training": tuned.training}
    searched = {path.partition(".")[0] for path in best.values}
    raw = {
        name: block.model_dump(mode="json", exclude_unset=True) for name, block in blocks.items() if name in searched
    }
    return f"# {found}\n{yaml.safe_dump(raw, sort_keys=False, default_flow_style=None, width=110)}"


def description(text: str, yaml_text: str, found: str, importances: Mapping[str, float], compare: str) -> str:
    """Markdown for the run's page. The UI folds it after a few lines, so it begins with the answer."""
    shares = ", ".join(f"`{path}` {share:.0%}" for path, share in importances.items())
    return (
        f"**Which setting matters?** {shares or 'Too few trials are complete to say.'}\n\n"
        f"**Best:** {found}. [Compare the complete trials]({compare}), or see `pictures/` below Artifacts.\n\n"
        f"```\n{text}\n```\n\nTo take the best, put this in place of the YAML's blocks (`best.yaml`):\n\n"
        f"```yaml\n{yaml_text}```\n"
    )


def spelled(value: Value) -> str:
    """A value in a few characters."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(paths: Sequence[str]) -> list[str]:
    """The last part of each path, or the last two where that does not tell it from the others."""
    last = [path.rpartition(".")[2] for path in paths]
    return [
        name if last.count(name) == 1 else ".".join(path.split(".")[-2:])
        for name, path in zip(last, paths, strict=True)
    ]


def as_json(values: Mapping[str, Value]) -> dict[str, Any]:
    """Values as the result of the step holds them."""
    return {path: list(value) if isinstance(value, tuple) else value for path, value in values.items()}
