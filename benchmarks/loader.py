"""What reading costs a training: from Delta tables beside from tensors that are in memory, and memory by rows.

Made examples of 20 ids (10 of 10,000 values and 10 of 100,000, as text), 10 numbers and 2 labels are written into
Delta tables, over ten days. Then the same training (one epoch, 16 experts of 330 → 256 → 128, top-2, batches of 4096,
one thread, fp32) runs from tensors that are there before the clock starts, and from the tables: everything, reading
the days, fitting the encoder, encoding into the scratch file, loading and training. In turns, the quicker of each
counts, in seconds of the processor, since the machine may be shared: what the thread that prefetches does counts too,
as on a machine of one core.

Memory is the high-water mark of a fresh process that does all of that, on few rows and on many, with a model of 2
experts of 16 so that it ends soon.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines.tables import Tables
from recsys_moe.batch import Batch
from recsys_moe.config import Experts, Feature, Gating, ModelConfig, Side, Task, TrainingConfig
from recsys_moe.encoding import EncodedRows, Encoder, Loader
from recsys_moe.errors import UserError
from recsys_moe.memory import keep_freed_memory
from recsys_moe.training import fit

log = logging.getLogger(__name__)

START, DAYS = date(2026, 1, 1), 10
VOCABULARIES = (10_000,) * 10 + (100_000,) * 10
NUMBERS, BATCH = 10, 4096
SIDES: tuple[Side, ...] = ("user", "item", "context")
TRAINING = TrainingConfig(batch_size=BATCH, threads=1, device="cpu", precision="fp32", buffer_rows=262_144)
_BLOCK_ROWS = 131_072

_clock = time.process_time


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much, and where."""
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that time is measured on (1,000,000)")
    parser.add_argument("--few", type=int, default=2_000_000, help="rows that memory is measured on (2,000,000)")
    parser.add_argument("--many", type=int, default=20_000_000, help="and ten times as many (20,000,000)")
    parser.add_argument("--rounds", type=int, default=2, help="how often time is measured (2)")
    parser.add_argument("--folder", type=Path, help="where its files are for a while (the system's temporary folder)")


def run(
    rows: int = 1_000_000,
    few: int = 2_000_000,
    many: int = 20_000_000,
    rounds: int = 2,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Measure time, then memory.

    Raises:
        UserError: there are fewer rows than days, or no rounds.
    """
    if min(rows, few, many) < DAYS or rounds < 1:
        raise UserError(f"--rows, --few and --many must be at least {DAYS}, --rounds at least 1")
    with tempfile.TemporaryDirectory(dir=folder) as storage:
        _fill(Tables(storage), rows)
        found = _alone(measure, storage, rounds)
    peaks = {}
    for name, count in (("few", few), ("many", many)):
        with tempfile.TemporaryDirectory(dir=folder) as storage:
            _fill(Tables(storage), count)
            peaks[name] = _alone(peak_mb, storage)
    return {
        "rows": rows,
        **found,
        "peak_rows": [few, many],
        f"peak_mb_{_short(few)}": peaks["few"],
        f"peak_mb_{_short(many)}": peaks["many"],
        "peak_growth": peaks["many"] / peaks["few"],
    }


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own, which has nothing else in its memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _short(count: int) -> str:
    return f"{count // 1_000_000}m" if count % 1_000_000 == 0 else str(count)


def model_config(experts: Experts) -> ModelConfig:
    """A model of the made examples."""
    ids = [Feature(name=f"id_{n}", kind="categorical", side=SIDES[n % 3]) for n in range(len(VOCABULARIES))]
    numbers = [Feature(name=f"number_{n}", kind="numeric", side="user") for n in range(NUMBERS)]
    return ModelConfig(
        features=(*ids, *numbers),
        tasks=(Task(name="click"), Task(name="like")),
        embedding_dim=16,
        experts=experts,
        gates=Gating(routing="task"),
        towers=(64,),
    )


FULL = model_config(
    Experts(shared=0, per_task=0, per_segment=0, routed=16, top_k=2, hidden=(256, 128), dispatch="sparse")
)
TINY = model_config(Experts(shared=0, per_task=0, per_segment=0, routed=2, top_k=1, hidden=(16,), dispatch="sparse"))


class FromTables:
    """All that a training from Delta tables does, part by part."""

    def __init__(self, storage: str, config: ModelConfig) -> None:
        self.tables, self.config, self.scratch = Tables(storage), config, Path(storage) / "scratch.arrow"

    def read(self) -> Iterator[pa.RecordBatch]:
        """The columns that the model is trained on, as `pipelines.split` reads them."""
        columns = [*self.config.columns, *(f"label_{task.name}" for task in self.config.tasks)]
        coded = [feature.name for feature in self.config.features if feature.kind == "categorical"]
        for day in self.tables.days("examples"):
            yield from self.tables.read_blocks("examples", day, columns, coded)

    def prepared(self) -> tuple[Encoder, Loader]:
        """An encoder fitted to all of it, and all of it encoded into the scratch file."""
        encoder, rows = EncodedRows.write_fitted(self.scratch, partial(Encoder.fit, self.config), self.read())
        return encoder, Loader(encoder, rows, BATCH, shuffle=TRAINING.seed, buffer_rows=TRAINING.buffer_rows)

    def train(self) -> None:
        """From the tables to the model."""
        encoder, loader = self.prepared()
        fit(self.config, TRAINING, encoder, loader)


class FromMemory(Loader):
    """The batches of the first epoch, made beforehand."""

    def __init__(self, encoder: Encoder, rows: EncodedRows) -> None:
        super().__init__(encoder, rows, BATCH, shuffle=TRAINING.seed, buffer_rows=TRAINING.buffer_rows)
        self._made = list(super().batches())

    def batches(self, epoch: int = 0, first_step: int = 0) -> Generator[Batch]:
        """The same ones every epoch."""
        yield from self._made[first_step:]


def measure(storage: str, rounds: int) -> dict[str, Any]:
    """Rows a second of both trainings, and of each part by itself."""
    _one_thread()
    tables = FromTables(storage, FULL)
    encoder, loader = tables.prepared()
    memory = FromMemory(encoder, EncodedRows.open(tables.scratch))
    fit(TINY, TRAINING, encoder, loader)  # the first one imports much
    parts: dict[str, Callable[[], object]] = {
        "read": lambda: sum(1 for _ in tables.read()),
        "read_and_fit": lambda: Encoder.fit(FULL, tables.read()),
        "prepare": tables.prepared,
        "load": lambda: sum(1 for _ in loader.batches(1)),
        "train_from_memory": lambda: fit(FULL, TRAINING, encoder, memory),
        "train_from_scratch_file": lambda: fit(FULL, TRAINING, encoder, loader),
        "train_from_tables": tables.train,
    }
    seconds = dict.fromkeys(parts, float("inf"))
    for turn in range(rounds):
        for name, part in parts.items():
            start = _clock()
            part()
            seconds[name] = min(seconds[name], _clock() - start)
            log.info("round %d: %s %.1f s", turn, name, seconds[name])
    return _result(loader.num_rows, seconds)


def _result(rows: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    fitting = seconds["read_and_fit"]
    alone = {"fit": fitting - seconds["read"], "keep_and_encode": seconds["prepare"] - fitting}
    from_memory = seconds["train_from_memory"]
    return {
        "loader_efficiency": from_memory / seconds["train_from_tables"],
        "loader_efficiency_once_encoded": from_memory / seconds["train_from_scratch_file"],
        "rows_per_second": {name: rows / taken for name, taken in {**seconds, **alone}.items()},
        "microseconds_per_row": {name: taken / rows * 1e6 for name, taken in {**seconds, **alone}.items()},
    }


def peak_mb(storage: str) -> float:
    """The most memory that this process has held after a training of the small model, in MB."""
    _one_thread()
    FromTables(storage, TINY).train()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _one_thread() -> None:
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    keep_freed_memory()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)


def _fill(tables: Tables, rows: int) -> None:
    draw = np.random.default_rng(0)
    texts = {size: pa.array(np.char.add("v", np.arange(size).astype(str))) for size in set(VOCABULARIES)}
    for number in range(DAYS):
        first, end = rows * number // DAYS, rows * (number + 1) // DAYS
        sizes = [min(_BLOCK_ROWS, end - start) for start in range(first, end, _BLOCK_ROWS)]
        blocks = (_block(draw, texts, size) for size in sizes)
        reader = pa.RecordBatchReader.from_batches(_block(draw, texts, 0).schema, blocks)
        tables.replace_day("examples", START + timedelta(days=number), reader)
    log.info("made %d rows", rows)


def _block(draw: np.random.Generator, texts: Mapping[int, pa.Array], rows: int) -> pa.RecordBatch:
    columns = {
        f"id_{n}": texts[size].take(pa.array(draw.integers(size, size=rows))) for n, size in enumerate(VOCABULARIES)
    }
    columns |= {f"number_{n}": pa.array(draw.normal(size=rows)) for n in range(NUMBERS)}
    labels = {"click": 0.3, "like": 0.02}
    columns |= {f"label_{task}": pa.array((draw.random(rows) < rate).astype(float)) for task, rate in labels.items()}
    return pa.RecordBatch.from_pydict(columns)


def table(result: Mapping[str, Any]) -> str:
    """The numbers, one a line."""
    few, many = (f"peak_mb_{_short(rows)}" for rows in result["peak_rows"])
    return "\n".join(
        [
            f"{result['rows']:,} rows; from Delta tables at {result['loader_efficiency']:.3f} of the speed from memory",
            f"once they are encoded: {result['loader_efficiency_once_encoded']:.3f}",
            *(f"{name}: {speed:,.0f} rows a second" for name, speed in result["rows_per_second"].items()),
            f"memory: {result[few]:,.0f} MB for {result['peak_rows'][0]:,} rows, "
            f"{result[many]:,.0f} MB for {result['peak_rows'][1]:,}, {result['peak_growth']:.2f} times",
        ]
    )
