"""What it takes to score everybody: candidates, scoring, the best 20, publication, as `recsys-moe score` does it.

The demo's recommender, with more users: a made marketplace is ingested, prepared and trained on, untimed. Then
`recsys-moe score` runs as anybody would run it, for many users and for a tenth of them, each from a marketplace of that
size. Its memory is that of all its processes together, looked at several times a second: what they share counts once
(the sum of their proportional set sizes).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil
import yaml

from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]
START, DAYS, ITEMS, CANDIDATES, TOP_N = date(2026, 1, 1), 3, 10_000, 200, 20
_SECONDS_BETWEEN_LOOKS = 0.3


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much, and where."""
    parser.add_argument("--users", type=int, default=1_000_000, help="users, besides a tenth of them (1,000,000)")
    parser.add_argument("--rows", type=int, default=500_000, help="rows of each of the three days' logs (500,000)")
    parser.add_argument("--processes", type=int, default=2, help="that score at once (2)")
    parser.add_argument("--folder", type=Path, help="where marketplaces are kept, and found again by the next run")


def run(users: int = 1_000_000, rows: int = 500_000, processes: int = 2, folder: Path | None = None) -> dict[str, Any]:
    """Measure both numbers of users.

    Raises:
        UserError: there are fewer than ten users, or no rows or processes; there is no such folder.
    """
    if users < 10 or min(rows, processes) < 1:
        raise UserError("--users must be at least 10, --rows and --processes at least 1")
    if folder is not None and not folder.is_dir():
        raise UserError(f"--folder: {folder} is no folder")
    found = {"users": users, "candidates": CANDIDATES, "top_n": TOP_N, "processes": processes}
    for name, count in (("few_", users // 10), ("", users)):
        with _marketplace(folder, count, rows) as place:
            config = prepared(place, count, rows, processes)
            found |= {f"{name}{key}": value for key, value in measured(config, count).items()}
    return found | {"memory_growth": found["peak_mb"] / found["few_peak_mb"]}


def table(result: Mapping[str, Any]) -> str:
    """The numbers, a line for each number of users."""
    lines = [_line(result, of) for of in ("", "few_")]
    return "\n".join([*lines, f"memory: {result['memory_growth']:.2f} times that of a tenth of the users"])


def _line(result: Mapping[str, Any], of: str) -> str:
    users, seconds, peak = (result[of + what] for what in ("users", "seconds", "peak_mb"))
    rates = f"{result[of + 'users_per_second']:,.0f} users and {result[of + 'pairs_per_second']:,.0f} pairs a second"
    return f"{users:,} users: {seconds:,.0f} s, {rates}, {peak:,.0f} MB at the peak"


@contextmanager
def _marketplace(folder: Path | None, users: int, rows: int) -> Iterator[Path]:
    """A place for one of this size: a temporary one, or one that stays."""
    if folder is not None:
        place = folder / f"{users}-users-{rows}-rows"
        place.mkdir(parents=True, exist_ok=True)
        yield place
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def prepared(folder: Path, users: int, rows: int, processes: int) -> Path:
    """The YAML of a recommender whose days are ingested and prepared, and that has one version."""
    config, done = _written(folder, users, rows, processes), folder / "prepared"
    if done.exists():
        return config
    call("simulate", config)
    for number in range(DAYS):
        for step in ("ingest", "prepare"):
            call(step, config, START + timedelta(days=number))
    call("train", config, START + timedelta(days=DAYS - 1))
    done.touch()
    log.info("%d users: simulated, prepared, trained", users)
    return config


def _written(folder: Path, users: int, rows: int, processes: int) -> Path:
    """The demo's YAML, with more users."""
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    raw |= {"name": "everybody", "storage": "../storage"}
    for source in raw["source"].values():
        source["path"] = f"../source/{Path(source['path']).name}"
    raw["training"] |= {"batch_size": 4096}
    raw["simulation"] |= {"users": users, "items": ITEMS, "rows_per_day": rows, "days": DAYS, "start": START}
    raw["scoring"] |= {"candidates": {"source": "popular", "limit": CANDIDATES}, "top_n": TOP_N}
    raw["scoring"] |= {"processes": processes, "exclude_seen": True}
    del raw["schedule"]
    config = folder / "configs" / "everybody.yaml"
    config.parent.mkdir(exist_ok=True)
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return config


def measured(config: Path, users: int) -> dict[str, Any]:
    """Seconds, rates and the peak of memory of one scoring."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        as_of = START + timedelta(days=DAYS - 1)
        process = subprocess.Popen(
            command("score", config, as_of, "--model-version", "1"), stdout=out, stderr=errors, env=_environment(config)
        )
        peak = _peak_bytes(process)
        seconds = time.perf_counter() - start
        out.seek(0), errors.seek(0)
        if process.returncode:
            raise RuntimeError(errors.read()[-2000:])
        said = json.loads(out.read().splitlines()[-1])
    assert said["users"] == users, f"{said['users']} of {users} users have lists"
    return {
        "users": users,
        "seconds": seconds,
        "users_per_second": users / seconds,
        "pairs_per_second": users * CANDIDATES / seconds,
        "peak_mb": peak / 2**20,
        "rows": said["rows"],
    }


def _peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """What a process and its children took at most, until it has ended."""
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        taken = 0
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            for one in [watched, *watched.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    taken += one.memory_full_info().pss
        peak = max(peak, taken)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return peak


def call(step: str, config: Path, as_of: date | None = None) -> None:
    """Run a step to its end."""
    done = subprocess.run(
        command(step, config, as_of), env=_environment(config), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{step}: {done.stderr[-2000:]}")


def command(step: str, config: Path, as_of: date | None, *options: str) -> list[str]:
    """The command line of a step."""
    day = ["--as-of", as_of.isoformat()] if as_of else []
    return [sys.executable, "-m", "pipelines.cli", step, "--config", str(config), *day, *options]


def _environment(config: Path) -> dict[str, str]:
    """One thread a process, and an MLflow of its own."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{config.parent.parent}/mlflow.db",
        "PYTHONPATH": str(ROOT),
    }
