"""A small recommender on simulated days, and its steps called as a person would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipelines import config as recommenders
from pipelines.cli import app
from pipelines.config import Recommender
from pipelines.registry import Run

FIRST_NIGHT, SECOND_NIGHT = date(2026, 1, 4), date(2026, 1, 5)


@dataclass(frozen=True)
class Played:
    """A recommender's YAML, and what the steps returned on each night."""

    path: Path
    nights: dict[date, dict[str, Any]]

    @property
    def folder(self) -> Path:
        """Where recommenders lie that share this one's MLflow."""
        return self.path.parent.parent

    @property
    def config(self) -> Recommender:
        return recommenders.load(self.path)


def small_demo(folder: Path, project_root: Path, name: str = "small") -> Path:
    """The demo's YAML with little of everything; those of one folder share its MLflow."""
    raw = yaml.safe_load((project_root / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    raw |= {"name": name, "storage": f"../var/{name}"}
    raw["simulation"] |= {"users": 300, "items": 150, "rows_per_day": 4000, "days": 5}
    raw["training"] |= {"epochs": 1, "batch_size": 512, "threads": 1}
    raw["segments"]["min_rows"] = 200
    raw["scoring"]["candidates"] = {"source": "all"}
    raw.setdefault("evaluation", {})["baselines"] = {"models": ["popularity", "boosting"], "max_rows": 2000}
    raw["evaluation"]["lists"] = {"max_users": 50}
    path = folder / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


@contextmanager
def without_pictures() -> Iterator[None]:
    """Where no test looks at them: a quarter of a night goes into drawing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "picture", lambda *_: None)
        yield


def call(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `recsys-moe …`, in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def call_step(*arguments: str | Path) -> dict[str, Any]:
    """The result of a step that must succeed."""
    code, stdout, stderr = call(*arguments)
    assert code == 0, stderr
    result: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return result
