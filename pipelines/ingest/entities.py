"""Users and items as a day's files have them: one row a key over all files."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa

from pipelines import contract, sources, sql
from pipelines.config import Recommender, Source
from pipelines.ingest.judging import Counts, Judge, Terms
from pipelines.ingest.limits import check_rejected
from pipelines.tables import TableName


class EntityFiles:
    """The files of users, or of items, of a day.

    Their rows lie in temporary tables of the connection, which spills them to disk where they are many.

    Args:
        connection: computes.
        config: the recommender.
        ds: the day.
        name: `users` or `items`.
        files: where they come from.
        columns: what to take from each; the key first.
        scratch: a folder for what does not fit in memory.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        config: Recommender,
        ds: date,
        name: TableName,
        files: tuple[Source, ...],
        columns: tuple[tuple[str, ...], ...],
        scratch: Path,
    ) -> None:
        self._connection, self._config, self._ds, self.name, self._scratch = connection, config, ds, name, scratch
        self._files = tuple(zip(files, columns, strict=True))
        self.counts = Counts()
        self.key = columns[0][0]

    def read(self) -> Iterator[pa.Table]:
        """Read all files; yields the rows that break a rule or repeat a key, as `rejects.SCHEMA`, a chunk at a time.

        Raises:
            UserError: a file cannot be read, or too many of its rows do not hold.
        """
        for position, (source, columns) in enumerate(self._files):
            rules = [contract.is_null(self.key), *contract.value_rules(self._config, columns)]
            looked_at = tuple(contract.numeric_columns(self._config, columns))
            terms = Terms(self.name, tuple(rules), (self.key,), looked_at=looked_at, repeats_are_rejected=True)
            judge = Judge(self._connection, self._config, self._ds, terms, self._scratch)
            texts = ", ".join(f"{sql.name(column)} VARCHAR" for column in columns)
            self._connection.execute(f"CREATE OR REPLACE TEMP TABLE {self._part(position)} ({texts})")
            for judged in judge.judge(sources.read(source, self._ds, columns)):
                self._connection.register("accepted", pa.Table.from_batches([judged.accepted.select(columns)]))
                self._connection.execute(f"INSERT INTO {self._part(position)} SELECT * FROM accepted")
                yield judged.rejected
            check_rejected(self._config, self._ds, source.title, judge.counts)
            self.counts.add(judge.counts)

    def rows(self) -> pa.RecordBatchReader:
        """What `read` found to hold: the columns of all files side by side, sorted by key."""
        key = sql.name(self.key)
        parts = [self._part(position) for position, _ in enumerate(self._files)]
        joined = parts[0] + "".join(f" FULL JOIN {part} USING ({key})" for part in parts[1:])
        return sql.stream(self._connection, f"SELECT * FROM {joined} ORDER BY {key}")

    def _part(self, position: int) -> str:
        return f"{self.name}_{position}"


def leaks_the_present(config: Recommender, ds: date) -> list[str]:
    """Warnings: files of users or items without a date in their path that were changed after the day was over."""
    warnings = []
    for name, files in (("users", config.source.users), ("items", config.source.items)):
        for source in files:
            days_after = 0 if source.is_daily else (sources.changed_on(source, ds) - ds).days
            if days_after > 1:
                warnings.append(
                    f"source.{name}: {source.title} has no date of its own and was changed {days_after} days after "
                    f"{ds}: features of that day may know what came later; deliver it daily ({{ds}})"
                )
    return warnings
