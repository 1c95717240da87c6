"""A table that only grows, row by row, each row decided by all that are there: compare and set."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import CommitFailedError

from pipelines.tables.files import DayFiles
from pipelines.tables.publishing import Place, attempts, commit, schema_of


def rows_of(place: Place) -> pa.Table | None:
    """All rows, or None where there is no table."""
    table = place.find()
    return None if table is None else place.dataset(table).to_table()


def append(place: Place, ds: date, schema: pa.Schema, decide: Callable[[pa.Table], pa.Table | None]) -> None:
    """Add the rows that `decide` makes of all rows there are, to the day `ds`.

    They are added only if nobody else has committed since these were read; else they are decided anew. None adds
    nothing, and what `decide` raises ends it.

    Args:
        place: the table; made where there is none.
        ds: the day that the rows are kept under.
        schema: of the rows, without `ds`.
        decide: from all rows, with `ds`, the new ones, without.

    Raises:
        TryAgainError: the storage cannot be reached, or others commit all the time.
    """
    for _ in attempts(place.path):
        table = place.find_or_create(pa.schema([*schema, pa.field("ds", pa.date32())]))
        known = place.dataset(table).to_table()
        if (fresh := decide(known)) is None:
            return
        of_day = known.filter(pc.field("ds") == ds).select(schema.names).cast(schema)
        with DayFiles(place.folder, ds, schema, place.path) as files:
            for batch in pa.concat_tables([of_day, fresh.select(schema.names)]).to_batches():
                files.write(batch)
            written = files.close()
            files.keep()
            try:
                commit(place, table, {ds: written}, schema_of(table))
            except CommitFailedError:
                files.keep(False)
            else:
                return
