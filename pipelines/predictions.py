"""What is known and said of many rows: a file a column, and only the columns of one task in memory at a time.

Rows of examples are wide and many, and what a metric needs of them is narrow: a label, a score, whose row it is and in
which segment. That is written as the rows stream past, and read back column by column.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray

from recsys_moe import metrics
from recsys_moe.encoding.hashing import hash_of
from recsys_moe.mixing import Hashes

Scores = Mapping[str, NDArray[Any]]
"""By task, [rows]: what a model says, or what was seen. NaN where that is nothing."""
Measured = dict[str, float]
"""By name: metrics of some rows, and counts of them."""
Kind = Literal["binary", "regression"]

_HASHES_AT_ONCE = 1 << 22


class OnDisk(Mapping[str, NDArray[Any]]):
    """Columns [rows] by name, in files: one that is asked for is read, and leaves memory with its last user.

    The files are removed with the object, or at the end of the process.
    """

    def __init__(self, folder: Path, types: Mapping[str, DTypeLike]) -> None:
        self._types = {name: np.dtype(kind) for name, kind in types.items()}
        self._paths = {name: folder / str(number) for number, name in enumerate(types)}
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    @classmethod
    def write(cls, scratch: Path, types: Mapping[str, DTypeLike], blocks: Iterable[Scores]) -> Self:
        """Write columns as blocks of them come, in a new folder below `scratch`."""
        scratch.mkdir(parents=True, exist_ok=True)
        made = cls(Path(tempfile.mkdtemp(dir=scratch, prefix="columns-")), types)
        with ExitStack() as stack:
            files = {name: stack.enter_context(path.open("wb")) for name, path in made._paths.items()}
            for block in blocks:
                for name, file in files.items():
                    file.write(np.ascontiguousarray(block[name], made._types[name]).data)
        return made

    def __getitem__(self, name: str) -> NDArray[Any]:
        return np.fromfile(self._paths[name], self._types[name])

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


@dataclass(frozen=True)
class Ids:
    """Distinct ids. A code is the rank of an id's hash: the ids of the first codes are a sample, drawn by hash.

    Two ids of one hash would be taken for one; among ten million that has a chance of 3 in a million.

    Attributes:
        hashes: [ids] ascending.
    """

    hashes: Hashes

    @classmethod
    def of(cls, blocks: Iterable[Hashes]) -> Self:
        """Those of some rows' ids."""
        known, fresh, count = np.empty(0, np.uint64), list[Hashes](), 0
        for block in blocks:
            fresh.append(block)
            count += len(block)
            if count >= _HASHES_AT_ONCE:
                known, fresh, count = _distinct([known, *fresh]), [], 0
        return cls(_distinct([known, *fresh]))

    def codes(self, blocks: Iterable[Hashes]) -> Iterator[NDArray[np.int32]]:
        """The codes of blocks of ids, -1 for one that is not among them."""
        index = pd.Index(self.hashes)
        for block in blocks:
            yield index.get_indexer(pd.Index(block)).astype(np.int32)


def hashed(ids: pa.ChunkedArray) -> Hashes:
    """[rows] a hash of each id; of a dictionary each distinct id is looked at once."""
    whole = ids.combine_chunks()
    if not pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_encode()
    if not len(whole):
        return np.empty(0, np.uint64)
    found: Hashes = hash_of(pc.cast(whole.dictionary, pa.large_string()))[whole.indices.to_numpy()]
    return found


def _distinct(parts: Sequence[Hashes]) -> Hashes:
    ordered = np.sort(np.concatenate(parts))
    kept: Hashes = ordered[np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])] if len(ordered) else ordered
    return kept


@dataclass(frozen=True)
class Groups:
    """Rows by group, such as their segment.

    Attributes:
        names: of the groups.
        rows: [rows] their places, group after group, in order within each.
        begin: [groups + 1] where each group begins in `rows`.
    """

    names: tuple[str, ...]
    rows: NDArray[np.int32]
    begin: NDArray[np.int64]

    @classmethod
    def of(cls, names: Sequence[str], codes: NDArray[np.integer[Any]]) -> Self:
        """Of rows with the code, [rows], of the name of each one's group."""
        small = codes.astype(np.uint16) if len(names) <= 1 << 16 else codes  # sorted in linear time
        rows = np.argsort(small, kind="stable").astype(np.int32)
        counts = np.bincount(codes, minlength=len(names))
        return cls(tuple(names), rows, np.concatenate([[0], np.cumsum(counts)]))

    @classmethod
    def of_masks(cls, masks: Mapping[str, NDArray[np.bool_]]) -> Self:
        """Of groups that may overlap, each given as a mask [rows]."""
        return cls(tuple(masks), *_joined([np.flatnonzero(mask).astype(np.int32) for mask in masks.values()]))

    def largest(self, most: int) -> Groups:
        """Those of most rows."""
        order = np.argsort(-np.diff(self.begin), kind="stable")[:most]
        parts = [self.rows[self.begin[number] : self.begin[number + 1]] for number in order]
        return Groups(tuple(self.names[number] for number in order), *_joined(parts))

    def among(self, kept: NDArray[np.bool_]) -> Groups:
        """The groups' rows that are kept, [rows], by their places among those."""
        places, inside = np.cumsum(kept, dtype=np.int32) - 1, kept[self.rows]
        before = np.concatenate([[0], np.cumsum(inside)])
        return Groups(self.names, places[self.rows[inside]], before[self.begin])

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.int32]]]:
        """The groups that have rows: their names and the places of their rows."""
        for number, name in enumerate(self.names):
            if self.begin[number] < self.begin[number + 1]:
                yield name, self.rows[self.begin[number] : self.begin[number + 1]]


def _joined(parts: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The parts one after the other, and where each begins."""
    rows = np.concatenate([np.empty(0, np.int32), *parts])
    return rows, np.cumsum([0, *map(len, parts)])


def measure(kind: Kind, labels: NDArray[Any], said: NDArray[Any], users: NDArray[Any]) -> Measured:
    """Metrics of a task over the rows that have a label and a score.

    Args:
        kind: of the task.
        labels: [rows] NaN where undefined.
        said: [rows] NaN where the model says nothing.
        users: [rows] codes of users.
    """
    known = np.isfinite(labels) & np.isfinite(said)
    if not known.all():
        labels, said, users = labels[known], said[known], users[known]
    return metrics.binary(labels, said, users) if kind == "binary" else metrics.regression(labels, said, users)


def measure_groups(
    kind: Kind,
    labels: NDArray[Any],
    said: NDArray[Any],
    users: NDArray[Any],
    groups: Groups,
) -> dict[str, Measured]:
    """The same within each group that has rows, by its name."""
    return {name: measure(kind, labels[rows], said[rows], users[rows]) for name, rows in groups}
