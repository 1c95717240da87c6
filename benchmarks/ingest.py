"""What ingest costs beside a bare conversion of the same file by Arrow, and how its memory grows with the rows.

Bound by bytes: a bare conversion parses text and encodes Parquet. Ingest does both too, checks every value, drops
duplicates and publishes. All are measured in processes of their own, in turns, and the quickest of each counts.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, date, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import yaml

log = logging.getLogger(__name__)

DAY = date(2026, 1, 1)
_BLOCK = 200_000
_COLUMNS = ["user_id", "item_id", "time_ms", "surface", "position", "device", "price", "is_click", "is_like"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Sizes, and where the files go."""
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of the file that is timed (2,000,000)")
    parser.add_argument("--many", type=int, default=10, help="how many times larger the one for memory is (10)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (3)")
    parser.add_argument("--folder", type=Path, default=Path("var/benchmarks"), help="for the files (var/benchmarks)")


def run(rows: int, many: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds, rates and peaks; `ratio_*` is ingest's rows a second over the bare conversion's."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        place = Path(scratch)
        for kind in ("csv", "parquet"):
            write(place / f"small.{kind}", rows)
        result: dict[str, Any] = {"rows": rows}
        for kind in ("csv", "parquet"):
            bare, ours, peak = _in_turns(place / f"small.{kind}", rounds)
            log.info("%s: bare %.2f s, ingest %.2f s", kind, bare, ours)
            result |= {
                f"bare_{kind}_rows_per_second": round(rows / bare),
                f"{kind}_rows_per_second": round(rows / ours),
            }
            result |= {f"ratio_{kind}": round(bare / ours, 3), f"peak_mb_2m_{kind}": round(peak)}
        write(place / "large.csv", rows * many)
        _, large = _alone(ingest, place / "large.csv")
    small = result.pop("peak_mb_2m_csv")
    return result | {"peak_mb_2m": small, "peak_mb_20m": round(large), "peak_ratio": round(large / small, 3)}


def table(result: Mapping[str, Any]) -> str:
    """The numbers, one a line."""
    width = max(map(len, result))
    return "\n".join(f"{name:{width}}  {value:>12,}" for name, value in result.items())


def _in_turns(path: Path, rounds: int) -> tuple[float, float, float]:
    """The quickest seconds of the bare conversion and of ingest, and ingest's peak in MB."""
    bare, ours = [], []
    for _ in range(rounds):
        bare.append(_alone(convert, path))
        ours.append(_alone(ingest, path))
    return min(bare)[0], min(ours)[0], max(peak for _, peak in ours)


def _alone(work: Callable[[Path], float], path: Path) -> tuple[float, float]:
    """Seconds of some work in a fresh process, and that process's peak in MB."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return pool.submit(_measured, work, path).result()


def _measured(work: Callable[[Path], float], path: Path) -> tuple[float, float]:
    seconds = work(path)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return seconds, peak / 1000


def convert(path: Path) -> float:
    """Seconds of the bare conversion of a file to Parquet, streamed."""
    target = path.with_suffix(".bare")
    started = time.perf_counter()
    if path.suffix == ".csv":
        source = pyarrow.csv.open_csv(path)
        schema, batches = source.schema, iter(source)
    else:
        file = pyarrow.parquet.ParquetFile(path)
        schema, batches = file.schema_arrow, file.iter_batches()
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def ingest(path: Path) -> float:
    """Seconds of ingest of a file into new tables."""
    from pipelines.config import load
    from pipelines.ingest import ingest as step

    config = load(_recommender(path))
    shutil.rmtree(config.storage, ignore_errors=True)
    started = time.perf_counter()
    result = step(config, DAY)
    seconds = time.perf_counter() - started
    assert result["read"] == result["accepted"] + result["rejected"] + result["duplicates"]
    return seconds


def _recommender(path: Path) -> Path:
    """A YAML for a file."""
    content = {
        "name": "benchmark",
        "storage": "storage",
        "source": {"interactions": {"path": path.name}},
        "columns": {"user": "user_id", "item": "item_id", "timestamp": {"name": "time_ms", "unit": "ms"}},
        "tasks": [{"name": "click", "label": "is_click"}, {"name": "like", "label": "is_like"}],
        "features": {"categorical": ["user_id", "item_id", "surface", "device", "position"], "numeric": ["price"]},
    }
    # A pattern with a day in it: the log of one day, and not an export that is to be split.
    daily = path.with_name(f"{path.stem}-{DAY}{path.suffix}")
    daily.unlink(missing_ok=True)
    daily.hardlink_to(path)
    content["source"] = {"interactions": {"path": f"{path.stem}-{{ds}}{path.suffix}"}}
    file = path.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def write(path: Path, rows: int) -> None:
    """A log of so many rows, written a block at a time."""
    if path.suffix == ".csv":
        with pyarrow.csv.CSVWriter(path, _block(0, 1, 1).schema) as csv:
            for block in _blocks(rows):
                csv.write_table(block)
        return
    with pyarrow.parquet.ParquetWriter(path, _block(0, 1, 1).schema) as parquet:
        for block in _blocks(rows):
            parquet.write_table(block)


def _blocks(rows: int) -> Iterator[pa.Table]:
    for start in range(0, rows, _BLOCK):
        yield _block(start, min(_BLOCK, rows - start), rows)


def _block(start: int, count: int, rows: int) -> pa.Table:
    """Some rows of a log: skewed ids, times in order, 1 % repeats of the row before, 5 in 10,000 with a bad label."""
    draw = np.random.default_rng(start)
    midnight = int(datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC).timestamp() * 1000)
    day = np.minimum((np.arange(start, start + count) / rows * 86_400_000).astype(np.int64), 86_399_999)
    click = (draw.random(count) < 0.2).astype(np.int64)
    columns = {
        "user_id": draw.integers(0, 1_000_000, count),
        "item_id": draw.zipf(1.3, count) % 100_000,
        "time_ms": midnight + day,
        "surface": np.array(["home", "search", "detail", "cart"])[draw.integers(0, 4, count)],
        "position": draw.integers(1, 30, count),
        "device": np.array(["ios", "android", "web"])[draw.integers(0, 3, count)],
        "price": np.round(draw.random(count) * 100, 2),
        "is_click": np.where(draw.random(count) < 0.0005, 2, click),
        "is_like": (draw.random(count) < 0.05).astype(np.int64),
    }
    source = np.arange(count)
    source[1:] -= draw.random(count - 1) < 0.01
    return pa.table({name: columns[name][source] for name in _COLUMNS})
