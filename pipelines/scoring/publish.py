"""All shards of a plan as the day's scores: looked at, summed up, and published at once."""

from __future__ import annotations

import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from pipelines import sql
from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.scoring import report
from pipelines.scoring.plan import FILE, Plan
from pipelines.scoring.shard import ASKED
from pipelines.scoring.staging import Staging
from pipelines.scoring.told import tell
from pipelines.tables import Tables
from recsys_moe.errors import UserError


def publish(config: Recommender, plan: Plan, spill: Path) -> dict[str, Any]:
    """Publish the plan's rows as the whole of its day in `scores`. Returns what the step tells.

    Raises:
        UserError: a shard is not there, or the rows are not fit to be served.
        TryAgainError: another run published the day meanwhile.
    """
    try:
        return _publish(config, plan, spill)
    except (OSError, duckdb.Error) as error:
        if plan.staging(config).exists(FILE):
            raise
        raise TryAgainError(
            f"{plan.id}: another run published it meanwhile, and removed what this one read; run this step again if "
            f"{plan.ds} is not in {Tables(config.storage).path('scores')}"
        ) from error


def _publish(config: Recommender, plan: Plan, spill: Path) -> dict[str, Any]:
    staging, tables = plan.staging(config), Tables(config.storage)
    names = [plan.shard_file(number) for number in range(plan.shards)]
    _check_all_there(plan, staging, names)
    summary = _looked_at(config, plan, staging, names, tables, spill)
    rows = _in_codes(staging, names)
    with tables.day_writer("scores", plan.ds, rows.schema) as writer:
        # Row group by row group, and nothing ahead: what is read is encoded by another thread meanwhile.
        for batch in rows.to_batches(batch_readahead=1, fragment_readahead=1):
            writer.write(batch)
        version = writer.publish()
    result = {
        "step": "score",
        "ds": plan.ds.isoformat(),
        **summary.result(),
        "contexts": list(config.scoring.named_contexts),
        "model_version": plan.version,
        "table": tables.path("scores"),
        "versions": {"scores": version},
    }
    plan.finish(config, result)
    return result


def _check_all_there(plan: Plan, staging: Staging, names: list[str]) -> None:
    missing = [number for number, name in enumerate(names) if not staging.exists(name)]
    if missing:
        raise UserError(
            f"{plan.id}: {len(missing)} of {plan.shards} shards are not scored, the first is {missing[0]}; nothing was "
            f"published (`recsys-moe score-shard --plan {plan.id} --shard {missing[0]}`)"
        )


def _looked_at(
    config: Recommender, plan: Plan, staging: Staging, names: list[str], tables: Tables, spill: Path
) -> report.Summary:
    """The rows summed up.

    Raises:
        UserError: they are not fit to be served.
    """
    before = _last_day(tables, plan.ds)
    with sql.connect(config.columns.timezone, spill=spill) as connection:
        staging.view(connection, "made", names)
        if before is not None:
            sql.view(connection, "before", tables.dataset("scores"), pc.field("ds") == before)
        summary = report.summarise(connection, _asked(staging, names), config.blend, before)
        tell(summary)
        report.check(connection, summary, config.scoring.checks)
    return summary


def _last_day(tables: Tables, ds: date) -> date | None:
    """The last day before that was published."""
    return max((day for day in tables.days("scores") if day < ds), default=None)


def _asked(staging: Staging, names: list[str]) -> dict[str, dict[str, int]]:
    """By context and segment, for how many users lists were asked."""
    found: dict[str, Counter[str]] = {}
    for name in names:
        with staging.parquet(name) as file:
            for context, segments in json.loads(file.schema_arrow.metadata[ASKED]).items():
                found.setdefault(context, Counter()).update(segments)
    return {context: dict(segments) for context, segments in found.items()}


def _in_codes(staging: Staging, names: list[str]) -> pyarrow.dataset.FileSystemDataset:
    """The rows, with text as dictionaries, as it is in the files: so nobody looks at each value."""
    with staging.parquet(names[0]) as file:
        coded = {field.name for field in file.schema_arrow if pa.types.is_dictionary(field.type)}
    options = pyarrow.dataset.ParquetReadOptions(dictionary_columns=coded)
    return staging.dataset(names, format=pyarrow.dataset.ParquetFileFormat(read_options=options))
