"""What each prepared day was made of, so that a day whose past came in later, or came in anew, is prepared again.

The table `prepared` holds digests of a prepared day, by the day and the kind of what they stand for:

    of      kind      stands for
    ds      delay_0   what the day's rows and counts are made of: its log, and the users and items that it knows
    ds      delay_3   the same, with all that tells the labels of tasks that take 3 days; empty until they are known
    ds      left      what came out: the examples, and what the day leaves for the history of later ones
    before  delay_…   the same of a day that the examples look back at, as it had been prepared by then

A digest is of names of files. These are never changed, and rows that are there already are not written again: so names
stand for rows. Digests are taken before what they stand for is read, and noted after the examples are published. So of
two processes at work at once, at least one sees that it was too early, and a kill leaves nothing that looks newer than
it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date, timedelta
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import labels, past_days
from pipelines.config import Recommender
from pipelines.tables import TableName, Tables

Digests = Mapping[tuple[date, str], str]
"""By day and kind."""

_LEFT, _DELAY = "left", "delay_"
_UNRIPE = ""
"""Stands for labels that are not known yet: a day may make them known that is too late to have part in them."""
_OUTPUTS: tuple[TableName, ...] = ("daily_recent", "daily_counts", "examples")
_LOGS: tuple[TableName, ...] = ("interactions", "outcomes")
_ENTITIES: tuple[TableName, ...] = ("users", "items")
_SCHEMA = pa.schema([("of", pa.date32()), ("kind", pa.string()), ("digest", pa.string()), ("since", pa.date32())])


class Present:
    """The files that are there, by table and day, as they were when a table was first asked for."""

    def __init__(self, config: Recommender, tables: Tables) -> None:
        self._config, self._tables = config, tables
        self._files = cache(tables.files)

    def inputs(self, ds: date) -> Digests:
        """Of what a day would be made now, by the days that labels take."""
        ripe = self.ripe_inputs(ds)
        return {(ds, _kind(delay)): ripe.get((ds, _kind(delay)), _UNRIPE) for delay in _delays(self._config)}

    def ripe_inputs(self, ds: date) -> Digests:
        """The same without labels that are not known yet, for which it does not matter what has come."""
        newest = max(self._files("interactions"))
        ripe = [delay for delay in _delays(self._config) if ds + timedelta(days=delay) <= newest]
        return {(ds, _kind(delay)): self._inputs(ds, delay) for delay in ripe}

    def left(self, ds: date) -> Digests:
        """Of what came out of a day."""
        return {(ds, _LEFT): self._digest(*((name, ds) for name in _OUTPUTS))}

    def looked_at(self, ds: date) -> tuple[date, Digests]:
        """The first day that the examples of `ds` look at, and what the days from there on were made of."""
        config, since = self._config, ds
        if made := config.sampling.make_negatives:
            since -= timedelta(days=made.days - 1)  # of which `ds` is one
        if config.features.history:
            since = min(since, past_days.oldest_seen(config, past_days.first_event_day(self._tables, [ds])))
        notes = _notes(self._tables, since, ds)
        return since, {key: digest for key, digest in _own(notes).items() if _is_seen(*key, ds)}

    def days(self) -> list[date]:
        """The days that have examples."""
        return list(self._files("examples"))

    def _inputs(self, ds: date, delay: int) -> str:
        """What labels that take `delay` days may be read from (see `pipelines.labels`), and who is known."""
        span = (ds + timedelta(days=number) for number in range(-2 * delay, delay + 1))
        read: list[tuple[TableName, date]] = [(name, day) for day in span for name in _LOGS]
        for name in _ENTITIES:
            # An event knows what was known the day before; on the first days only what came with it.
            days = self._files(name)
            known = [day for day in days if day < ds] or [day for day in days if day == ds]
            read += [(name, day) for day in known[-1:]]
        return self._digest(*read)

    def _digest(self, *read: tuple[TableName, date]) -> str:
        found = [f"{name}/{file}" for name, day in read for file in self._files(name).get(day, ())]
        return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]


def note(tables: Tables, ds: date, digests: Digests, since: date | None = None) -> None:
    """Keep what day `ds` was made of; `since` is the first day that its examples look at, if it has any."""
    rows = [(of, kind, digest, since) for (of, kind), digest in sorted(digests.items())]
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)]
    tables.replace_day("prepared", ds, pa.Table.from_arrays(columns, schema=_SCHEMA))


def out_of_date(config: Recommender, tables: Tables, first: date) -> list[date]:
    """The days from `first` on whose examples were made of something else than is there now, oldest first.

    A day that went, since it is no longer kept, changes nothing; nor does one that was prepared before notes were kept.
    """
    present = Present(config, tables)
    days = [day for day in present.days() if day >= first]
    noted = _notes(tables, first, None)
    looks_back = dict(zip(noted["ds"].to_pylist(), noted["since"].to_pylist(), strict=True))
    sinces = [since for since in looks_back.values() if since]
    now = _own(_notes(tables, min([first, *sinces]), None))
    return [day for day in days if day in looks_back and _differs(present, noted, now, day, looks_back[day])]


def _differs(present: Present, noted: pa.Table, now: Digests, ds: date, since: date | None) -> bool:
    if since is None:
        return True  # only its history was left since
    mine = noted.filter(pc.equal(noted["ds"], pa.scalar(ds)))
    then = _by_key(mine)
    seen = {key: digest for key, digest in now.items() if key[0] >= since and _is_seen(*key, ds)}
    wanted = {**seen, **present.ripe_inputs(ds), **present.left(ds)}
    return any(then.get(key) != digest for key, digest in wanted.items())


def _notes(tables: Tables, first: date, before: date | None) -> pa.Table:
    if not tables.exists("prepared"):
        return _SCHEMA.append(pa.field("ds", pa.date32())).empty_table()
    days = pc.field("ds") >= first if before is None else (pc.field("ds") >= first) & (pc.field("ds") < before)
    return tables.dataset("prepared").to_table(filter=days)


def _own(notes: pa.Table) -> Digests:
    """What days noted that they are made of."""
    of_itself = pc.and_(pc.equal(notes["of"], notes["ds"]), pc.starts_with(notes["kind"], _DELAY))
    return _by_key(notes.filter(of_itself))


def _by_key(notes: pa.Table) -> Digests:
    of, kind, digest = (notes[name].to_pylist() for name in ("of", "kind", "digest"))
    return dict(zip(zip(of, kind, strict=True), digest, strict=True))


def _is_seen(day: date, kind: str, ds: date) -> bool:
    """Whether examples of `ds` may look at what `day` knows of tasks whose labels take so long."""
    return day < ds and day + _delay(kind) <= ds


def _kind(delay: int) -> str:
    return f"{_DELAY}{delay}"


def _delay(kind: str) -> timedelta:
    return timedelta(days=int(kind.removeprefix(_DELAY)))


def _delays(config: Recommender) -> set[int]:
    """Counts of rows are known at once, and so are labels without a delay."""
    return {0, *(labels.delay_days(config, task) for task in config.tasks)}
