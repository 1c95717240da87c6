"""One day in: read in a stream, check, set bad rows aside with a reason, publish."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from pipelines import catalog, contract, sources, sql
from pipelines.catalog import Files
from pipelines.config import Recommender
from pipelines.ingest import rejects
from pipelines.ingest.entities import EntityFiles, leaks_the_present
from pipelines.ingest.judging import Counts, Judge, Terms
from pipelines.ingest.limits import check_rejected, check_volume
from pipelines.ingest.outcomes import outcome_schema, read_outcomes
from pipelines.ingest.summary import as_row
from pipelines.sources import export
from pipelines.tables import Tables, snapshots
from pipelines.tables.publishing import DayWriter
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)


def ingest(config: Recommender, ds: date, despite_limits: bool = False) -> dict[str, Any]:
    """Publish day `ds` of the log, and the users, items and outcomes that came with it.

    Nothing is published before all was read and found to be within the limits of the contract. The log's rows are the
    last to be published: a day that has them has the rest.

    Args:
        config: the recommender.
        ds: the day.
        despite_limits: publish a day whose volume is far off the days before, too.

    Returns:
        `read` = `accepted` + `rejected` + `duplicates` of the log's rows, `late` ones among the accepted, warnings, and
        the tables' new versions.

    Raises:
        UserError: a file is missing or not what the YAML says, the day has no rows, or is beyond the limits.
    """
    files = catalog.locate(config, ds)
    tables = Tables(config.storage)
    with ExitStack() as stack:
        scratch = stack.enter_context(_scratch(config))
        connection = stack.enter_context(sql.connect(config.columns.timezone, spill=scratch))
        rejected = stack.enter_context(tables.day_writer("rejected", ds, rejects.SCHEMA))
        judge = _judge_of_log(connection, config, ds, files, scratch)
        accepted = stack.enter_context(tables.day_writer("interactions", ds, judge.schema(files.interactions)))
        counts = _read_log(config, ds, files, judge, accepted, rejected)
        if not despite_limits:
            check_volume(config, tables, ds, counts.read)
        entities = _read_entities(connection, config, ds, files, rejected, scratch)
        outcomes = None
        if config.source.outcomes:
            outcomes = stack.enter_context(tables.day_writer("outcomes", ds, outcome_schema(config)))
            for judged in read_outcomes(connection, config, ds, scratch):
                outcomes.write(judged.accepted)
                rejected.write(judged.rejected)
        versions: dict[str, int] = {e.name: snapshots.publish(tables, e.name, ds, e.rows(), e.key) for e in entities}
        if outcomes is not None:
            versions["outcomes"] = outcomes.publish()
        versions["rejected"] = rejected.publish()
        log_files = sources.locate_files(config.source.interactions, ds)
        size = sources.size_of(config.source.interactions, ds)
        versions["ingested"] = tables.replace_day("ingested", ds, as_row(counts, len(log_files), size))
        versions["interactions"] = accepted.publish()
    return _result(config, ds, counts, versions)


@contextmanager
def _scratch(config: Recommender) -> Iterator[Path]:
    """A folder for what does not fit in memory."""
    root = config.workspace / "scratch"
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="ingest-", dir=root, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _judge_of_log(
    connection: duckdb.DuckDBPyConnection, config: Recommender, ds: date, files: Files, scratch: Path
) -> Judge:
    columns = config.columns
    rules = contract.log_rules(config, ds, files.interactions)
    terms = Terms("interactions", tuple(rules), columns.key, columns.timestamp, config.label_columns)
    return Judge(connection, config, ds, terms, scratch)


def _read_log(
    config: Recommender, ds: date, files: Files, judge: Judge, accepted: DayWriter, rejected: DayWriter
) -> Counts:
    source, counts = config.source.interactions, judge.counts
    chunks = sources.read(source, ds, files.interactions) if source.is_daily else export.staged(config, ds)
    for judged in judge.judge(chunks):
        accepted.write(judged.accepted)
        rejected.write(judged.rejected)
    title = source.path_for(ds) if source.path else source.title
    if counts.read == 0:
        raise UserError(f"{title}: has no rows for {ds}; a day must have at least one")
    check_rejected(config, ds, title, counts)
    return counts


def _read_entities(
    connection: duckdb.DuckDBPyConnection,
    config: Recommender,
    ds: date,
    files: Files,
    rejected: DayWriter,
    scratch: Path,
) -> list[EntityFiles]:
    """The users and the items of the day, as far as there are such files."""
    found = []
    if config.source.users:
        found.append(EntityFiles(connection, config, ds, "users", config.source.users, files.users, scratch))
    if config.source.items:
        found.append(EntityFiles(connection, config, ds, "items", config.source.items, files.items, scratch))
    for entities in found:
        for refused in entities.read():
            rejected.write(refused)
    return found


def _result(config: Recommender, ds: date, counts: Counts, versions: dict[str, int]) -> dict[str, Any]:
    names = ("read", "accepted", "rejected", "duplicates", "late")
    numbers = {name: getattr(counts, name) for name in names}
    log.info("ingested %s: %s", ds, ", ".join(f"{count} {what}" for what, count in numbers.items()))
    warnings = leaks_the_present(config, ds)
    for warning in warnings:
        log.warning(warning)
    return {"step": "ingest", "ds": ds.isoformat(), **numbers, "warnings": warnings, "versions": versions}
