"""One day in: read in a stream, check, set bad rows aside with a reason, publish."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from pipelines import catalog, contract, sources, sql
from pipelines.config import Recommender
from pipelines.ingest import rejects, summary
from pipelines.ingest.entities import EntityFiles, leaks_the_present
from pipelines.ingest.judging import Counts, Judge, Terms
from pipelines.ingest.limits import check_rejected, check_volume
from pipelines.ingest.outcomes import OutcomeLogs
from pipelines.sources import export
from pipelines.tables import TableName, Tables, snapshots
from pipelines.tables.publishing import DayWriter
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

_IN_ORDER: tuple[TableName, ...] = ("outcomes", "rejected", "ingested", "interactions")
"""In which they are published, after users and items: the log's rows last, so that a day that has them has the rest."""


def ingest(config: Recommender, ds: date, despite_limits: bool = False) -> dict[str, Any]:
    """Publish day `ds` of the log, and the users, items and outcomes that came with it.

    Nothing is published before all was read, found to be within the limits of the contract, and written out beside.
    The log's rows are the last to be published: a day that has them has the rest.

    Args:
        config: the recommender.
        ds: the day.
        despite_limits: publish a day whose volume is far off the days before, too.

    Returns:
        `read` = `accepted` + `rejected` + `duplicates` of the log's rows, `late` ones among the accepted; the same for
        the other sources; warnings, and the tables' new versions.

    Raises:
        UserError: a file is missing or not what the YAML says, the day has no rows, or is beyond the limits.
    """
    with ExitStack() as stack:
        day = _Day(stack, config, ds)
        counts = day.read_log()
        if not despite_limits:
            check_volume(config, day.tables, ds, counts.read)
        others = {**day.read_entities(), **day.read_outcomes()}
        warnings = leaks_the_present(config, ds)
        versions = day.publish(counts)
    log.info("ingested %s: %s", ds, ", ".join(f"{count} {what}" for what, count in counts.numbers.items()))
    for warning in warnings:
        log.warning(warning)
    result = {"step": "ingest", "ds": ds.isoformat(), **counts.numbers, "warnings": warnings, "versions": versions}
    return result | {"sources": {name: counts.numbers for name, counts in others.items()}}


class _Day:
    """A day on its way in. What `stack` closes is gone if it was not published."""

    def __init__(self, stack: ExitStack, config: Recommender, ds: date) -> None:
        self._stack, self._config, self._ds = stack, config, ds
        self._files = catalog.locate(config, ds)
        self.tables = Tables(config.storage)
        self._scratch = stack.enter_context(_scratch(config))
        self._connection = stack.enter_context(sql.connect(config.columns.timezone, spill=self._scratch))
        self._entities: list[EntityFiles] = []
        self._writers: dict[TableName, DayWriter] = {}
        self._rejected = self._writer("rejected", rejects.SCHEMA)

    def _writer(self, name: TableName, schema: pa.Schema) -> DayWriter:
        self._writers[name] = self._stack.enter_context(self.tables.day_writer(name, self._ds, schema))
        return self._writers[name]

    def read_log(self) -> Counts:
        """Read the log."""
        config, ds, wanted = self._config, self._ds, self._files.interactions
        source, columns = config.source.interactions, config.columns
        rules = contract.log_rules(config, ds, wanted)
        looked_at = contract.log_numbers(config, wanted)
        terms = Terms("interactions", tuple(rules), columns.key, columns.timestamp, config.label_columns, looked_at)
        judge = Judge(self._connection, config, ds, terms, self._scratch)
        accepted = self._writer("interactions", judge.schema(wanted))
        chunks = sources.read(source, ds, wanted) if source.is_daily else export.staged(config, ds)
        for judged in judge.judge(chunks):
            accepted.write(judged.accepted)
            self._rejected.write(judged.rejected)
        title = source.path_for(ds) if source.path else source.title
        if judge.counts.read == 0:
            raise UserError(f"{title}: has no rows for {ds}; a day must have at least one")
        check_rejected(config, ds, title, judge.counts)
        return judge.counts

    def read_entities(self) -> dict[str, Counts]:
        """Read the users and the items, as far as there are such files."""
        sides: tuple[tuple[TableName, Any, Any], ...] = (
            ("users", self._config.source.users, self._files.users),
            ("items", self._config.source.items, self._files.items),
        )
        for name, files, columns in sides:
            if files:
                work = self._connection, self._config, self._ds
                self._entities.append(EntityFiles(*work, name, files, columns, self._scratch))
        for entities in self._entities:
            for refused in entities.read():
                self._rejected.write(refused)
        return {entities.name: entities.counts for entities in self._entities}

    def read_outcomes(self) -> dict[str, Counts]:
        """Read the logs of outcomes, as far as there are any."""
        if not self._config.source.outcomes:
            return {}
        logs = OutcomeLogs(self._connection, self._config, self._ds, self._scratch)
        accepted = self._writer("outcomes", logs.schema)
        for judged in logs.read():
            accepted.write(judged.accepted)
            self._rejected.write(judged.rejected)
        return logs.counts

    def publish(self, counts: Counts) -> dict[TableName, int]:
        """Publish all that was read, the log's rows last. Returns the tables' versions."""
        source, ds = self._config.source.interactions, self._ds
        files, size = len(sources.locate_files(source, ds)), sources.size_of(source, ds)
        self._writer("ingested", summary.SCHEMA).write(summary.as_row(counts, files, size))
        for writer in self._writers.values():
            writer.complete()
        versions: dict[TableName, int] = {}
        for found in self._entities:
            versions[found.name] = snapshots.publish(
                self.tables, found.name, ds, found.rows(), found.key, spill=self._scratch
            )
        return versions | {name: self._writers[name].publish() for name in _IN_ORDER if name in self._writers}


@contextmanager
def _scratch(config: Recommender) -> Iterator[Path]:
    """A folder for what does not fit in memory."""
    root = config.workspace / "scratch"
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="ingest-", dir=root, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
