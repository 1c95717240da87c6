"""The lists of one day as the table `scores` has them: in blocks, of one version whatever is published meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.progress import Progress
from pipelines.tables import Tables
from recsys_moe.errors import UserError

USER = ("context", "user_id")
"""The columns that tell lists apart; `rank` is an item's place in its list, from 1."""


@dataclass(frozen=True)
class DayLists:
    """What is exported.

    Args:
        tables: with the version of `scores` that is read.
        ds: the day.
        schema: of the rows, `ds` first.
        rows: how many there are.
        model_version: that made them.
        digest: of the day's files: another where the day was scored again.
    """

    tables: Tables
    ds: date
    schema: pa.Schema
    rows: int
    model_version: int
    digest: str

    @classmethod
    def of(cls, storage: str, ds: date) -> Self:
        """The day as it is published now.

        Raises:
            UserError: there are no scores of this day, or the table has not the columns that scores have.
        """
        newest = Tables(storage).delta("scores").version()
        tables = Tables(storage, {"scores": newest})
        if ds not in tables.days("scores"):
            raise UserError(f"{ds}: has no scores; run `recsys-moe score --as-of {ds}` first")
        schema = tables.dataset("scores").schema
        if lacking := [name for name in (*USER, "item_id", "rank", "model_version") if name not in schema.names]:
            raise UserError(f"{tables.path('scores')}: has no column {lacking[0]!r}, so these are no scores")
        first = next(block for block in tables.read_blocks("scores", ds, ["model_version"]) if len(block))
        ordered = pa.schema([schema.field("ds"), *(field for field in schema if field.name != "ds")])
        version, digest = first.column(0)[0].as_py(), tables.fingerprint("scores", [ds])
        return cls(tables, ds, ordered, tables.count("scores", [ds]), version, digest)

    @property
    def table_version(self) -> int:
        """The version of `scores` that is read."""
        version = self.tables.version("scores")
        assert version is not None
        return version

    def generation(self, *shape: str) -> str:
        """A name for these very rows in this shape: `2026-01-05.3f2a81c09d4e`. It sorts by day."""
        digest = hashlib.sha256("\n".join([self.digest, str(self.model_version), *shape]).encode())
        return f"{self.ds}.{digest.hexdigest()[:12]}"

    def parts(self, target: str, after: int = 0) -> Iterator[pa.Table]:
        """The rows after the first `after`, in parts that no list is cut by. Shows how far the target has come.

        The order is the same every time. Parts together from the first row on end where a list ends.

        Raises:
            UserError: the rows are no whole lists in their order, or a score is no number.
        """
        blocks = self.tables.read_blocks("scores", self.ds, self.schema.names)
        with Progress(f"export {target}", self.rows, "rows") as progress:
            for part in _cut_between_lists(pa.Table.from_batches([block]) for block in blocks if len(block)):
                known = min(max(after - progress.done, 0), len(part))
                if known < len(part):
                    _check(part.slice(known), self.tables.path("scores"))
                    yield part.slice(known)
                progress.advance(len(part))


def _cut_between_lists(blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The last list of a block may go on in the next one, so it waits for it."""
    rest: pa.Table | None = None
    for block in blocks:
        rows = block if rest is None else pa.concat_tables([rest, block]).combine_chunks()
        of_last = [pc.equal(rows.column(name), rows.column(name)[-1]) for name in USER]
        start = pc.index(pc.and_(*of_last), True).as_py()
        if start:
            yield rows.slice(0, start)
        rest = rows.slice(start)
    if rest is not None:
        yield rest


def _check(part: pa.Table, path: str) -> None:
    """Each row begins a list or is the next of the one before it: then no list is in two places."""
    rank, before, after = part.column("rank"), part.slice(0, len(part) - 1), part.slice(1)
    goes_on = pc.equal(pc.subtract(after.column("rank"), before.column("rank")), 1)
    for name in USER:
        goes_on = pc.and_(goes_on, pc.equal(after.column(name), before.column(name)))
    begins = pc.equal(rank, 1)
    if not (begins[0].as_py() and pc.all(pc.or_(goes_on, begins.slice(1)), min_count=0).as_py()):
        raise UserError(f"{path}: lists are not whole and in the order of their ranks; run `recsys-moe score` again")
    for field in part.schema:
        values = part.column(field.name)
        # Of a task that another day's model has, this day has no value at all.
        if not pa.types.is_floating(field.type) or (field.name != "score" and values.null_count == len(values)):
            continue
        if values.null_count or not pc.all(pc.is_finite(values)).as_py():
            raise UserError(f"{path}: column {field.name!r} has a value that is no number; score the day again")
