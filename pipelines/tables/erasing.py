"""Rows taken out of every version of a table, as if they had never been there.

Files of a Delta table are never changed, so each file that holds such rows gets a twin without them, and the log is
rewritten to name the twin wherever it named the file. What happens, in this order:

1. the twins are written; nothing names them yet;
2. an ordinary commit puts the twins of the newest version in place. A writer that is at work on the same days loses
   to it, as it would to any other commit;
3. a journal says which twin stands for which file: from here on, a killed run is finished by the next one;
4. checkpoints are removed, since they repeat the log, and the log's entries are rewritten one by one;
5. the old files are deleted, a checkpoint is made if there was one, and the journal is removed.

A reader that opens the table at any moment finds each version whole. One that opened it before step 5 and reads on
afterwards misses a file, and has to open it again.
"""

from __future__ import annotations

import json
import posixpath
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.tables.folder import Action, Folder, age_hours, path_of
from pipelines.tables.publishing import Place, attempts, reaching

JOURNAL = "_erasing.json"
"""Where a table notes what is being erased. It names files, never whom they are about."""
WRITER_HOURS = 24.0
"""A file that no log entry names may belong to a writer at work, as long as it is younger than this."""
_BATCH_ROWS = 131_072

Twins = Mapping[str, Action | None]
"""By a file's path: the `add` of the file in its place; None where no version names it and it just goes."""


@dataclass(frozen=True)
class Traces:
    """How something is found in a table and taken out of it.

    `columns` are those that `without` looks at; it gets a batch with those of them that the file has (and maybe
    others), and returns the batch without what is to go.
    """

    columns: tuple[str, ...]
    without: Callable[[pa.RecordBatch], pa.RecordBatch]


@dataclass(frozen=True)
class Erased:
    """What was found, and taken out.

    `rows` counts those of the newest version that are gone, `files` the files of all versions that were replaced;
    `left` is how many files hold something and stay, since a writer may be at work on them.
    """

    rows: int = 0
    files: int = 0
    left: int = 0

    def __add__(self, more: Erased) -> Erased:
        return Erased(self.rows + more.rows, self.files + more.files, more.left)


@dataclass(frozen=True)
class _Survey:
    """The files with something that is to go, by path with how many rows go; and what the log says of all files."""

    found: dict[str, int]
    left: list[str]
    adds: dict[str, Action]
    live: set[str]

    @property
    def counts(self) -> Erased:
        rows = sum(rows for path, rows in self.found.items() if path in self.live)
        return Erased(rows, len(self.found), len(self.left))


def erase(place: Place, traces: Traces, dry_run: bool = False) -> Erased:
    """Take what `traces` finds out of every version of a table, or only count it.

    Raises:
        UserError: the storage cannot be reached, the log is not complete, or other writers won again and again.
    """
    if not dry_run:
        finish(place)
    folder = Folder(place)
    looked: dict[str, int | None] = {}
    twins: dict[str, Action | None] = {}
    done: Erased | None = None
    for _ in attempts(place.path):
        with reaching(place.path):
            table = place.open()
            survey = _survey(folder, traces, looked)
            if dry_run:
                return survey.counts
            if done is not None and not survey.found:
                return done + survey.counts
            for path in survey.found.keys() - twins.keys():
                twins[path] = _twin(folder, survey.adds[path], traces) if path in survey.adds else None
            try:
                _commit_newest(table, survey, twins)
            except CommitFailedError:
                continue
            _note(folder, {path: twins[path] for path in survey.found})
        finish(place)
        # Once more: another erasure may have written files since the survey, with this person in them.
        done = (done or Erased()) + survey.counts
    raise AssertionError("attempts end with an error")


def finish(place: Place) -> bool:
    """Do what the journal of an erasure says is still to do. Returns whether there was one.

    Raises:
        UserError: the storage cannot be reached.
    """
    folder = Folder(place)
    with reaching(place.path):
        if not folder.holds(JOURNAL):
            return False
        journal = json.loads(folder.read(JOURNAL))
        for path in folder.summaries():
            folder.delete(path)
        _rewrite_log(folder, journal["twins"])
        for path in journal["twins"]:
            folder.delete(path)
        if journal["checkpoint"]:
            place.open().create_checkpoint()
        folder.delete(JOURNAL)
    return True


def _rewrite_log(folder: Folder, twins: Twins) -> None:
    """Name the twins instead of the files. Whatever is rewritten already, no version has both or neither."""
    present = set(folder.data())
    for step in (_removing_both, _adding_twins, _removing_twins):
        for entry, actions in folder.history():
            rewritten = step(actions, twins, present)
            if rewritten != actions:
                folder.replace_entry(entry, rewritten)


def _survey(folder: Folder, traces: Traces, looked: dict[str, int | None]) -> _Survey:
    """Look into every file that is not in `looked`, which is filled; files do not change."""
    files = folder.data()
    adds, live = _named(folder)
    for path in files.keys() - looked.keys():
        looked[path] = _look(folder, path, traces)
    found = {path: rows for path in sorted(files) if (rows := looked[path]) is not None}
    left = [path for path in found if path not in adds and age_hours(files[path]) < WRITER_HOURS]
    return _Survey({path: rows for path, rows in found.items() if path not in left}, left, adds, live)


def _look(folder: Folder, path: str, traces: Traces) -> int | None:
    """How many rows of a file would go; None where it would not change at all."""
    rows, changes = 0, False
    with folder.source(path) as source:
        file = pq.ParquetFile(source)
        columns = [column for column in traces.columns if column in file.schema_arrow.names]
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns) if columns else ():
            kept = traces.without(batch)
            rows += len(batch) - len(kept)
            changes = changes or not kept.equals(batch)
    return rows if changes else None


def _named(folder: Folder) -> tuple[dict[str, Action], set[str]]:
    """The inner part of the newest `add` of every file that the log names; and the newest version's files."""
    adds: dict[str, Action] = {}
    live: set[str] = set()
    for _, actions in folder.history():
        for action in actions:
            if "remove" in action:
                live.discard(path_of(action["remove"]))
        for action in actions:
            if "add" in action:
                path = path_of(action["add"])
                adds[path] = action["add"]
                live.add(path)
    return adds, live


def _number(path: str) -> str:
    """What a data file's name begins with: its place among those of its day, which are read in the order of names."""
    return "-".join(posixpath.basename(path).split("-")[:2])


def _twin(folder: Folder, add: Action, traces: Traces) -> Action:
    """Write the file's twin. Returns the inner part of its `add`, with counts only: least and greatest values of a
    column may be the very id that is to go."""
    path = path_of(add)
    beside = posixpath.join(posixpath.dirname(path), f"{_number(path)}-{uuid.uuid4()}.parquet")
    rows = 0
    with folder.source(path) as source, folder.sink(beside) as sink:
        file = pq.ParquetFile(source)
        schema = file.schema_arrow.remove_metadata()
        with pq.ParquetWriter(sink, schema, compression=_compression(file), store_schema=False) as writer:
            for batch in file.iter_batches(_BATCH_ROWS):
                kept = traces.without(batch)
                writer.write_batch(kept.replace_schema_metadata())
                rows += len(kept)
    now = int(time.time() * 1000)
    counts = {"size": folder.size(beside), "modificationTime": now, "stats": json.dumps({"numRecords": rows})}
    return add | {"path": beside} | counts


def _compression(file: pq.ParquetFile) -> str:
    metadata = file.metadata
    used = metadata.row_group(0).column(0).compression if metadata.num_row_groups else "SNAPPY"
    return "NONE" if used == "UNCOMPRESSED" else str(used)


def _commit_newest(table: DeltaTable, survey: _Survey, twins: Twins) -> None:
    """Put the twins of the newest version's files in their place, as an ordinary commit.

    Raises:
        CommitFailedError: somebody else has committed since the table was opened; nothing was done.
    """
    now = int(time.time() * 1000)
    actions: list[AddAction | RemoveAction] = []
    for path in survey.live & survey.found.keys():
        twin, add = twins[path], survey.adds[path]
        values = add["partitionValues"]
        assert twin is not None
        actions.append(AddAction(twin["path"], twin["size"], values, twin["modificationTime"], True, twin["stats"]))
        actions.append(RemoveAction(path, True, now, add["size"], values))
    if actions:
        once = CommitProperties(max_commit_retries=0)
        table.create_write_transaction(actions, "append", table.schema(), ["ds"], commit_properties=once)


def _note(folder: Folder, twins: Twins) -> None:
    """Write the journal, if there is anything to do."""
    present = set(folder.data())
    telling = any(_adding_twins(actions, {}, present) != actions for _, actions in folder.history())
    if twins or telling:
        journal: dict[str, Any] = {"twins": twins, "checkpoint": bool(folder.summaries())}
        folder.replace(JOURNAL, json.dumps(journal).encode())


def _removing_both(actions: list[Action], twins: Twins, _: set[str]) -> list[Action]:
    """Where a file is removed, its twin is too: it may have been added before. (A commit that puts a twin in a file's
    place does not remove it.)"""
    known = {path_of(part) for action in actions for kind, part in action.items() if kind in ("add", "remove")}
    more = []
    for action in actions:
        twin = twins.get(path_of(action["remove"])) if "remove" in action else None
        if twin is not None and twin["path"] not in known:
            more.append({"remove": action["remove"] | {"path": twin["path"], "size": twin["size"]}})
    return actions + more


def _adding_twins(actions: list[Action], twins: Twins, present: set[str]) -> list[Action]:
    """Where a file was added, its twin is. What is told of the values in files that are long gone is left out."""
    return [{"add": _in_place(action["add"], twins, present)} if "add" in action else action for action in actions]


def _in_place(add: Action, twins: Twins, present: set[str]) -> Action:
    twin = twins.get(path_of(add))
    if twin is not None:
        same = {key: value for key, value in add.items() if key not in ("path", "size", "modificationTime", "stats")}
        return twin | same
    stats = json.loads(add.get("stats") or "{}")
    if path_of(add) in present or not {"minValues", "maxValues"} & set(stats):
        return add
    return add | {"stats": json.dumps({"numRecords": stats["numRecords"]})}


def _removing_twins(actions: list[Action], twins: Twins, _: set[str]) -> list[Action]:
    """The files themselves are not named any more."""
    return [action for action in actions if "remove" not in action or path_of(action["remove"]) not in twins]
