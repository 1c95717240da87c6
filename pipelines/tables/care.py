"""Tables kept small: old days removed, small files joined, and files deleted that nobody can want any more.

A vacuum by itself goes by time alone and would delete what a model was trained on: it is told each version to keep, by
number. (The other trap, that ordinary writes drop old log entries, is met where tables are made.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from time import time

from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError

from pipelines.tables.erasing import WRITER_HOURS, finish
from pipelines.tables.folder import Folder
from pipelines.tables.publishing import Place, reaching

SMALL_BYTES = 16 * 1024**2
MANY_FILES = 8
"""A day is compacted if it has more small files than this: our own writer makes one, or large ones."""
MANY_COMMITS = 20
"""A checkpoint is made when a reader would have to read more log entries than this beside the last one."""


@dataclass(frozen=True)
class Wanted:
    """What is to stay of a table: rows of the last `days` days (None: all), versions of the last `version_days` days,
    and the versions `versions`. Where not `compact`, files stay as they are."""

    days: int | None
    version_days: int
    versions: frozenset[int]
    compact: bool


@dataclass(frozen=True)
class Cared:
    """What was done to a table, or would be: counts and bytes.

    `beaten` says what another writer's commit prevented; the next run does it.
    """

    days_removed: int = 0
    days_compacted: int = 0
    files_deleted: int = 0
    bytes_deleted: int = 0
    versions_kept: int = 0
    checkpoint: bool = False
    beaten: tuple[str, ...] = ()


def care(place: Place, wanted: Wanted, dry_run: bool = False) -> Cared:
    """Care for one table, or only count what there is to do now.

    Raises:
        UserError: the storage cannot be reached, or the log is not complete.
    """
    if not dry_run:
        finish(place)
    folder, beaten = Folder(place), []
    with reaching(place.path):
        gone = _days_before(place.open(), wanted.days)
        if gone and not dry_run and not _remove_days(place, gone):
            beaten.append("retention")
        cut = _cut_up(place.open(), folder) if wanted.compact else []
        if cut and not dry_run and not _compact(place, cut):
            beaten.append("compaction")
        kept = _kept(place.open(), wanted)
        files, size = _vacuum(place, folder, kept, dry_run)
        due = folder.commits_since_checkpoint() > MANY_COMMITS
        if due and not dry_run:
            place.open().create_checkpoint()
    return Cared(len(gone), len(cut), files, size, len(kept), due, tuple(beaten))


def _days_before(table: DeltaTable, days: int | None) -> list[date]:
    """The days that are too old, counted back from the newest."""
    known = sorted({date.fromisoformat(str(part["ds"])) for part in table.partitions()})
    if days is None or not known:
        return []
    first = known[-1] - timedelta(days=days - 1)
    return [day for day in known if day < first]


def _remove_days(place: Place, days: list[date]) -> bool:
    """Remove whole days in one commit. Returns whether no other commit prevented it."""
    wanted = ", ".join(f"'{day.isoformat()}'" for day in days)
    try:
        place.open().delete(f"ds IN ({wanted})", commit_properties=CommitProperties(max_commit_retries=0))
    except CommitFailedError:
        return False
    return True


def _cut_up(table: DeltaTable, folder: Folder) -> list[str]:
    """The days (ISO dates) that are in many small files."""
    small: dict[str, int] = defaultdict(int)
    sizes = {path: info.size for path, info in folder.data().items()}
    for uri in table.file_uris():
        path = "/".join(uri.split("/")[-2:])
        small[path.split("/")[0].removeprefix("ds=")] += sizes.get(path, 0) < SMALL_BYTES
    return sorted(day for day, count in small.items() if count > MANY_FILES)


def _compact(place: Place, days: Iterable[str]) -> bool:
    """Join the small files of days, a commit each. Returns whether no other commit prevented it."""
    once = CommitProperties(max_commit_retries=0)
    for day in days:
        try:
            place.open().optimize.compact([("ds", "=", day)], commit_properties=once)
        except CommitFailedError:
            return False
    return True


def _kept(table: DeltaTable, wanted: Wanted) -> list[int]:
    """The versions that must stay readable: the newest, those that were so in the last days, those asked for."""
    newest, since = table.version(), (time() - wanted.version_days * 86400) * 1000
    made = sorted((int(commit["version"]), int(commit["timestamp"])) for commit in table.history())
    # A version was the newest until the next was made.
    recent = {version for (version, _), (_, replaced) in pairwise(made) if replaced >= since}
    return sorted(recent | {newest} | {version for version in wanted.versions if version <= newest})


def _vacuum(place: Place, folder: Folder, kept: list[int], dry_run: bool) -> tuple[int, int]:
    """Delete the files that no kept version names and that are too old to be a writer's. Returns files and bytes."""
    sizes = {path: int(info.size) for path, info in folder.data().items()}

    def files(only_listed: bool) -> list[str]:
        return place.open().vacuum(
            retention_hours=int(WRITER_HOURS),
            dry_run=only_listed,
            enforce_retention_duration=False,
            full=True,
            keep_versions=kept,
        )

    listed = files(only_listed=True)
    if listed and not dry_run:  # A vacuum of nothing would leave two commits all the same.
        listed = files(only_listed=False)
    return len(listed), sum(sizes.get(path, 0) for path in listed)
