"""Rows of a source, a chunk at a time: those that hold, those that do not, and those that repeat another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from tempfile import mkdtemp

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import contract, sql
from pipelines.config import Recommender, Timestamp
from pipelines.contract import Rule
from pipelines.ingest.cleaning import Cleaner
from pipelines.ingest.duplicates import SeenHashes
from pipelines.ingest.rejects import Reasons, rejected_rows
from pipelines.sources import ROW_NUMBER, Chunk, gathered

_TIME = pa.timestamp("us", "UTC")
_NAME = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class Terms:
    """What the rows of a source are judged by.

    Attributes:
        source: what the table `rejected` calls it.
        rules: what a row must keep.
        key: what makes a row the same as another.
        stamp: the column of the event's time; None where rows are no events.
        numbers: the columns that are kept as numbers; all others are text.
        looked_at: the columns whose numbers the rules look at.
        repeats_are_rejected: whether a row that repeats another is set aside with a reason, or dropped and counted.
    """

    source: str
    rules: tuple[Rule, ...]
    key: tuple[str, ...]
    stamp: Timestamp | None = None
    numbers: tuple[str, ...] = ()
    looked_at: tuple[str, ...] = ()
    repeats_are_rejected: bool = False

    def only_numbers(self, config: Recommender) -> set[str]:
        """The columns that nothing looks at as text: what makes a key may be of other types in other files."""
        return set(self.numbers) - set(self.key) - set(config.contract.columns)


@dataclass
class Counts:
    """What became of the rows that were read; `late` of the accepted ones happened on an earlier day."""

    read: int = 0
    accepted: int = 0
    rejected: int = 0
    duplicates: int = 0
    late: int = 0
    reasons: Reasons = field(default_factory=Reasons)

    @property
    def numbers(self) -> dict[str, int]:
        """The counts by name."""
        return {name: getattr(self, name) for name in ("read", "accepted", "rejected", "duplicates", "late")}

    def add(self, other: Counts) -> None:
        """Count another source's rows, too; the reasons are not added up."""
        for name, count in other.numbers.items():
            setattr(self, name, getattr(self, name) + count)


@dataclass(frozen=True)
class Judged:
    """A chunk's rows: cleaned where they hold, as `rejects.SCHEMA` where they do not."""

    accepted: pa.RecordBatch
    rejected: pa.Table


class Judge:
    """Judges the chunks of a source, in order, and remembers the keys that it saw (`SeenHashes`).

    Args:
        connection: computes; its time zone is the recommender's.
        config: the recommender.
        ds: the day that the rows were delivered for.
        terms: what they are judged by.
        scratch: a folder for what does not fit in memory; its owner removes it.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, config: Recommender, ds: date, terms: Terms, scratch: Path
    ) -> None:
        self._connection, self._ds, self._terms = connection, ds, terms
        self._timezone = config.columns.timezone
        self._cleaner = Cleaner(connection, config, terms.only_numbers(config))
        self._seen = SeenHashes(Path(mkdtemp(dir=scratch)))
        self.counts = Counts()

    def schema(self, columns: Iterable[str]) -> pa.Schema:
        """Of accepted rows, where the chunks have these columns."""
        terms = self._terms
        left = {*terms.numbers, *([terms.stamp.name] if terms.stamp else [])}
        fields = [pa.field(column, pa.string()) for column in sorted(set(columns)) if column not in left]
        fields.append(pa.field(ROW_NUMBER, pa.int64()))
        if terms.stamp is not None:
            fields += [pa.field("event_time", _TIME), pa.field("event_day", pa.date32())]
        fields += [pa.field(column, pa.float64()) for column in terms.numbers]
        return pa.schema([*fields, pa.field("source_file", _NAME)])

    def judge(self, chunks: Iterable[Chunk]) -> Iterator[Judged]:
        """Judge each chunk. `counts` are complete when the last one was taken."""
        for chunk in gathered(chunks):
            raw = chunk.rows.select([name for name in chunk.rows.schema.names if name != ROW_NUMBER])
            cleaned = self._cleaner.clean(raw)
            verdict = self._verdict(raw.schema, cleaned)
            reasons, repeats = self._mark_repeats(verdict)
            rejected = rejected_rows(self._connection, self._terms.source, chunk, reasons)
            kept = reasons.is_null().to_numpy(zero_copy_only=False) & ~repeats
            accepted = self._accepted(chunk, cleaned, verdict, kept)
            self._count(chunk, accepted, rejected, int(repeats.sum()))
            yield Judged(accepted, rejected)

    def _verdict(self, raw: pa.Schema, cleaned: pa.RecordBatch) -> pa.RecordBatch:
        """[rows] the event's time and day, the numbers, `__reason` (null where a row holds) and the key's `__hash`."""
        terms = self._terms
        read = dict.fromkeys((*terms.numbers, *terms.looked_at))
        made = [f"{contract.number(column)} AS {contract.as_number(column)}" for column in read]
        found = [contract.as_number(column) for column in terms.numbers]
        day = ""
        if terms.stamp is not None:
            made.append(f"{contract.event_time(terms.stamp, raw.field(terms.stamp.name).type)} AS __time")
            day = f", {contract.event_day(self._timezone, self._ds)} AS __day"
            found += ["__time AS event_time", "__day AS event_day"]
        found.append(f"{contract.reason(terms.rules)} AS __reason")
        found.append(f"hash({', '.join(map(sql.name, terms.key))}) AS __hash")
        self._connection.register("cleaned", pa.Table.from_batches([cleaned]))
        # Each is computed once, for all rules that look at it.
        numbered = f"SELECT {', '.join(['*', *made])} FROM cleaned"
        query = f"SELECT {', '.join(found)} FROM (SELECT *{day} FROM ({numbered}))"
        table = sql.fetch(self._connection, query).combine_chunks()
        return table.to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], schema=table.schema)

    def _mark_repeats(self, verdict: pa.RecordBatch) -> tuple[pa.Array, NDArray[np.bool_]]:
        """The reasons, and whether each row holds but repeats an earlier one and is to be dropped."""
        reasons = verdict.column("__reason").cast(pa.string())
        holds: NDArray[np.bool_] = reasons.is_null().to_numpy(zero_copy_only=False)
        repeats = np.zeros(len(holds), np.bool_)
        hashes = verdict.column("__hash").to_numpy(zero_copy_only=False)
        repeats[holds] = ~self._seen.first_time(hashes[holds])
        if not self._terms.repeats_are_rejected or not repeats.any():
            return reasons, repeats
        again = pa.scalar(f"{', '.join(self._terms.key)} again")
        return pc.if_else(pa.array(repeats), again, reasons), np.zeros(len(holds), np.bool_)

    def _accepted(
        self, chunk: Chunk, cleaned: pa.RecordBatch, verdict: pa.RecordBatch, kept: NDArray[np.bool_]
    ) -> pa.RecordBatch:
        """The rows that hold. The raw time is left out: it is event_time now."""
        known = {name: cleaned.column(name) for name in cleaned.schema.names}
        known |= {name: verdict.column(name) for name in verdict.schema.names}
        known |= {column: verdict.column(f"__number {column}") for column in self._terms.numbers}
        known |= {ROW_NUMBER: chunk.rows.column(ROW_NUMBER), "source_file": _same(chunk.file, len(kept))}
        schema = self.schema(cleaned.schema.names)
        rows = pa.RecordBatch.from_arrays([known[field.name].cast(field.type) for field in schema], schema=schema)
        return rows if kept.all() else rows.filter(pa.array(kept))

    def _count(self, chunk: Chunk, accepted: pa.RecordBatch, rejected: pa.Table, duplicates: int) -> None:
        counts = self.counts
        counts.read += len(chunk.rows) + len(chunk.malformed)
        counts.accepted += len(accepted)
        counts.rejected += len(rejected)
        counts.duplicates += duplicates
        if self._terms.stamp is not None:
            before = pc.less(accepted.column("event_day"), pa.scalar(self._ds))
            counts.late += pc.sum(before).as_py() or 0
        if len(rejected):
            counts.reasons.add(rejected)
        assert counts.read == counts.accepted + counts.rejected + counts.duplicates


def _same(text: str, rows: int) -> pa.DictionaryArray:
    """One text for all rows."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [text])
