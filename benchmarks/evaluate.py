"""What the metrics of an evaluation cost: seconds, and memory by rows.

Made rows stream to columns on disk as an evaluation's do, untimed: two tasks (one happens to a twentieth of the
rows), 1,000,000 users of whom a few are much more active than the others, 8 segments of unequal size, scores that a
model could have given. Then all metrics of each task are computed, over all rows and in each segment. Each number of
rows has a process of its own, whose peak is the high-water mark of its resident set.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.predictions import Groups, Ids, OnDisk, measure, measure_groups
from pipelines.tables import BLOCK_ROWS
from recsys_moe.errors import UserError
from recsys_moe.mixing import mixed

log = logging.getLogger(__name__)

USERS, FEW_ROWS = 1_000_000, 2_000_000
SEGMENTS = tuple(f"segment {number}" for number in range(8))
RATES = {"click": 0.2, "like": 0.05}
_SHARES = np.cumsum([0.35, 0.25, 0.15, 0.1, 0.07, 0.05, 0.02, 0.01])


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much, and where."""
    parser.add_argument("--rows", type=int, default=20_000_000, help="rows, besides 2,000,000 (20,000,000)")
    parser.add_argument("--folder", type=Path, help="where its files are for a while (the system's temporary folder)")


def run(rows: int = 20_000_000, folder: Path | None = None) -> dict[str, Any]:
    """Measure `rows` rows, and beside them 2,000,000 or, where that is fewer, as many.

    Raises:
        UserError: there is no row.
    """
    if rows < 1:
        raise UserError(f"--rows {rows}: give at least one")
    few = min(rows, FEW_ROWS)
    rate, peak = _alone(rows, folder)
    few_rate, few_peak = (rate, peak) if few == rows else _alone(few, folder)
    return {
        "rows": rows,
        "rows_per_second": rate,
        "peak_mb": peak,
        "few_rows": few,
        "few_rows_per_second": few_rate,
        "few_peak_mb": few_peak,
    }


def table(result: Mapping[str, Any]) -> str:
    """The numbers, a line for each number of rows."""
    return "\n".join(
        f"{result[f'{of}rows']:,} rows: {result[f'{of}rows_per_second']:,.0f} rows a second and task, "
        f"{result[f'{of}peak_mb']:,.0f} MB at the peak"
        for of in ("", "few_")
    )


def _alone(rows: int, folder: Path | None) -> tuple[float, float]:
    """Rows a second and task, and peak memory in MB, of a fresh process."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        return pool.submit(measured, rows, Path(scratch)).result()


def measured(rows: int, scratch: Path) -> tuple[float, float]:
    """The same, of this process."""
    kinds = {"user": "u8", "segment": "u1"} | {f"{task}_{what}": "f4" for task in RATES for what in ("label", "said")}
    columns = OnDisk.write(scratch, kinds, _blocks(rows))
    users = OnDisk.write(scratch, {"user": "i4"}, _coded(columns["user"]))
    log.info("made %d rows", rows)
    start = time.perf_counter()
    groups, user = Groups.of(SEGMENTS, columns["segment"]), users["user"]
    for task in RATES:
        label, said = columns[f"{task}_label"], columns[f"{task}_said"]
        found = measure("binary", label, said, user)
        measure_groups("binary", label, said, user, groups)
        log.info("%s: %s", task, {name: round(value, 4) for name, value in found.items()})
    seconds = time.perf_counter() - start
    return rows * len(RATES) / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _coded(hashes: NDArray[np.uint64]) -> Iterator[dict[str, NDArray[np.int32]]]:
    blocks = [hashes[start : start + BLOCK_ROWS] for start in range(0, len(hashes), BLOCK_ROWS)]
    return ({"user": codes} for codes in Ids.of(blocks).codes(blocks))


def _blocks(rows: int) -> Iterator[dict[str, NDArray[Any]]]:
    draw = np.random.default_rng(0)
    for start in range(0, rows, BLOCK_ROWS):
        count = min(BLOCK_ROWS, rows - start)
        user = (USERS * draw.random(count) ** 2).astype(np.uint64)
        block = {"user": mixed(user + np.uint64(1)), "segment": np.searchsorted(_SHARES, draw.random(count))}
        for task, rate in RATES.items():
            block |= {f"{task}_{what}": values for what, values in _task(draw, rate, count).items()}
        yield block


def _task(draw: np.random.Generator, rate: float, rows: int) -> dict[str, NDArray[Any]]:
    odds = np.log(rate / (1 - rate)) + draw.normal(size=rows)
    said = 1 / (1 + np.exp(-odds))
    return {"label": draw.random(rows) < said, "said": said}
