"""Write a marketplace's logs as a real export would bring them, dirt included, and the true probabilities beside.

The logs go to the paths that the YAML's `source` names. The truth goes to `truth/{ds}.parquet` under the storage root;
training never reads it. It tells how well anyone could predict, so that a test can say how near a model comes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from pipelines import marketplace_export as export
from pipelines.config import DERIVED_COLUMNS, Recommender, Source, feature_columns
from pipelines.marketplace import open_market
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)


def truth_path(config: Recommender, ds: date) -> Path:
    """Where the true probabilities of day `ds` lie."""
    return config.workspace / "truth" / f"{ds.isoformat()}.parquet"


def simulate(config: Recommender) -> dict[str, Any]:
    """Write users, items, one log a day, and the truth. The same seed writes the same bytes; more days change no day.

    Columns: the log has user, item, timestamp and labels under the YAML's names, `surface` and `position`; users have
    `age_band`, `country`, `joined`; items have `creator`, `topics`, `price`, `uploaded`. The truth has a row for each
    sound row of the log: user, item and timestamp as in the log (its key), `event_time` in UTC, `p_click`, `p_like`,
    `p_purchase` (given a click) and `p_click_purchase`.

    Returns:
        days, users, items, rows (all that the logs hold), dirt (rows by kind), files, and the truth's folder.

    Raises:
        UserError: the YAML has no `simulation`, or asks for files or columns that are not made here.
    """
    size = config.simulation
    if size is None:
        raise UserError("simulation: missing; `simulation: {}` takes the defaults")
    _check_paths(config)
    _check_columns(config)
    market = open_market(size)
    files = [
        _write_csv(export.user_table(config, size, market.users), config.source.users[0], size.start),
        _write_csv(export.item_table(config, size, market.items), config.source.items[0], size.start),
    ]
    days = [size.start + timedelta(days=number) for number in range(size.days)]
    totals: dict[str, int] = {}
    for number, ds in enumerate(days):
        day = export.make_day(config, size, market, number)
        files.append(_write_csv(day.log, config.source.interactions, ds))
        _write_parquet(day.truth, truth_path(config, ds))
        totals = {name: totals.get(name, 0) + count for name, count in day.counts.items()}
        log.info("simulated %s: %d rows", ds, day.log.num_rows)
    return {
        "days": [ds.isoformat() for ds in days],
        "users": size.users,
        "items": len(market.items.price),
        "rows": totals.pop("rows"),
        "dirt": totals,
        "files": files,
        "truth": str(truth_path(config, size.start).parent),
    }


def _write_csv(table: pa.Table, source: Source, ds: date) -> str:
    path = Path(source.path_for(ds))
    options = pa_csv.WriteOptions(delimiter=source.delimiter or ",", quoting_style="none", quoting_header="none")
    _publish(path, lambda unfinished: pa_csv.write_csv(table, unfinished, options))
    return str(path)


def _write_parquet(table: pa.Table, path: Path) -> None:
    _publish(path, lambda unfinished: pa_parquet.write_table(table, unfinished))


def _publish(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside, then rename: no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_paths(config: Recommender) -> None:
    sources = config.source
    if len(sources.users) != 1 or len(sources.items) != 1:
        raise UserError("source: simulate writes one file of users and one of items; name exactly one of each")
    named = {"interactions": sources.interactions, "users": sources.users[0], "items": sources.items[0]}
    for where, source in named.items():
        if "://" in source.title or not source.title.endswith(".csv") or source.file_format != "csv":
            raise UserError(f"source.{where}.path: simulate writes plain .csv files here, not {source.title!r}")
        if source.is_daily != (where == "interactions"):
            raise UserError(f"source.{where}.path: simulate puts {{ds}} into the path of interactions, and only there")
    if (sources.items[0].delimiter or ",") == config.features.separator:
        raise UserError(f"features.separator: {config.features.separator!r} also parts the columns of items; take '|'")


def _check_columns(config: Recommender) -> None:
    unknown = sorted({task.name for task in config.tasks} - set(export.ACTIONS))
    if unknown:
        raise UserError(f"tasks: {unknown} are not simulated; there is {list(export.ACTIONS)}")
    made = export.column_names(config)
    doubled = sorted({name for name in made if made.count(name) > 1})
    if doubled:
        raise UserError(f"columns: {doubled} would stand twice in the simulated files; call one of them something else")
    read = {*feature_columns(config), *config.columns.unique}
    missing = sorted(read - {*made, *DERIVED_COLUMNS})
    if missing:
        raise UserError(f"features: {missing} are not simulated; there is {sorted(made)}")
