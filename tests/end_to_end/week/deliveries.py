"""Ten days of a small marketplace, made beforehand, and how their files are brought to where a recommender looks."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml

from pipelines import config as recommenders
from pipelines.config import Recommender
from pipelines.simulate import simulate
from tests.end_to_end.loop import small_demo

NAME = "week"
START = date(2026, 1, 1)
HISTORY = [START + timedelta(days=number) for number in range(3)]
NIGHTS = [START + timedelta(days=number) for number in range(3, 10)]
_EARLY = 0.6


def recommender(folder: Path, project_root: Path, log: str = "{ds}.csv.gz") -> Path:
    """The YAML of a small recommender whose files are delivered to `folder`/delivered."""
    path = small_demo(folder, project_root, NAME)
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["source"] = {
        "interactions": {"path": f"../delivered/log/{log}"},
        "users": {"path": "../delivered/users.csv"},
        "items": {"path": "../delivered/items.csv"},
    }
    raw["simulation"] |= {"rows_per_day": 2500, "days": len(HISTORY) + len(NIGHTS), "start": START}
    raw["model"]["embedding_dim"] = 8
    raw["model"]["experts"] |= {"routed": 4, "hidden": [16, 8]}
    raw["evaluation"]["baselines"] = {"models": ["popularity"], "max_rows": 2000}
    raw["evaluation"]["gate"] = {"task": "click", "metric": "auc", "delta": 0.05, "calibration": None}
    raw["scoring"] |= {"top_n": 10, "users_per_shard": 150}
    del raw["tuning"]
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def simulated(folder: Path, project_root: Path) -> Path:
    """The days' files as the marketplace makes them. Returns the folder where they lie."""
    simulate(recommenders.load(recommender(folder, project_root, "{ds}.csv")))
    return folder / "delivered"


@dataclass(frozen=True)
class Deliveries:
    """Brings files from where they were made to where the recommender of `folder` looks."""

    made: Path
    folder: Path

    @property
    def config(self) -> Recommender:
        """The recommender."""
        return recommenders.load(self.folder / "configs" / f"{NAME}.yaml")

    def bring_users_and_items(self) -> None:
        """Files without a date."""
        (self.folder / "delivered" / "log").mkdir(parents=True)
        for name in ("users.csv", "items.csv"):
            shutil.copy2(self.made / name, self.folder / "delivered" / name)

    def bring(self, day: date) -> None:
        """A day's log, whole."""
        self._put(day, gzip.compress(self._rows(day), mtime=0))

    def bring_too_early(self, day: date) -> None:
        """A day's log before all of its rows were in it."""
        lines = self._rows(day).splitlines(keepends=True)
        self._put(day, gzip.compress(b"".join(lines[: int(len(lines) * _EARLY)]), mtime=0))

    def bring_empty(self, day: date) -> None:
        """A file of no bytes."""
        self._put(day, b"")

    def bring_corrupt(self, day: date) -> None:
        """A file that a broken copy cut short."""
        whole = gzip.compress(self._rows(day), mtime=0)
        self._put(day, whole[: len(whole) // 2])

    def _rows(self, day: date) -> bytes:
        return (self.made / "log" / f"{day}.csv").read_bytes()

    def _put(self, day: date, content: bytes) -> None:
        """In one step, as whoever delivers files should."""
        path = self.folder / "delivered" / "log" / f"{day}.csv.gz"
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(content)
        unfinished.replace(path)
