"""Which files a path or a pattern stands for, here or on S3."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property

import pyarrow.fs

from pipelines.config import Source
from pipelines.places import S3, file_system
from pipelines.sources.chunks import naming
from recsys_moe.errors import UserError

_WILD = re.compile(r"\*\*/|\*\*|\*|\?")
_WILD_AS_REGEX = {"**/": r"(?:[^/]+/)*", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}


@dataclass(frozen=True)
class File:
    """One file: `uri` is its whole address, `name` what tables call it; `size` in bytes, `changed` in ns since 1970."""

    uri: str
    name: str
    size: int
    changed: int

    @cached_property
    def place(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """Its file system, and its path there."""
        return file_system(self.uri)


def locate(source: Source, ds: date) -> list[File]:
    """The files of a day, sorted by address.

    Raises:
        UserError: there is none, one is empty, or the place cannot be reached.
    """
    place = source.path_for(ds)
    files = list(_matching(place)) if _WILD.search(place) else [_single(place)]
    for file in files:
        if file.size == 0:
            raise UserError(f"{file.uri}: is empty; a day without rows has no file, or at least a header")
    return files


def _single(place: str) -> File:
    with naming(place):
        system, path = file_system(place)
        info = system.get_file_info(path)
    if info.type == pyarrow.fs.FileType.Directory:
        raise UserError(f"{place}: is a folder; a source's path names a file, or several with *, as in {place}/*.csv")
    if info.type == pyarrow.fs.FileType.NotFound:
        raise UserError(f"{place}: no such file; check the path in the YAML, and the day")
    if not info.is_file:
        raise UserError(f"{place}: is no plain file")
    return File(place, place.rpartition("/")[2], info.size, info.mtime_ns or 0)


def _matching(place: str) -> Iterator[File]:
    folder, rest = fixed_part(place)
    pattern = re.compile(as_regex(rest), re.DOTALL)
    found = False
    for file in below(folder, deep="/" in rest or "**" in rest):
        if pattern.fullmatch(file.name):
            found = True
            yield file
    if not found:
        raise UserError(f"{place}: no file matches; check the path in the YAML, and the day")


def fixed_part(place: str) -> tuple[str, str]:
    """The folder above the first wildcard, and the pattern below it."""
    wild = _WILD.search(place)
    end = wild.start() if wild else len(place)
    folder, slash, _ = place[:end].rpartition("/")
    return (folder or slash or "."), place[len(folder) + len(slash) :]


def as_regex(pattern: str) -> str:
    """A pattern with `*`, `**` and `?` as a regular expression; all else stands for itself."""
    parts, at = [], 0
    for wild in _WILD.finditer(pattern):
        parts += [re.escape(pattern[at : wild.start()]), _WILD_AS_REGEX[wild[0]]]
        at = wild.end()
    return "".join([*parts, re.escape(pattern[at:])])


def below(folder: str, deep: bool) -> list[File]:
    """The files in a folder, and with `deep` in those below it, by address; `name` is the path from the folder.

    A hidden file (`.name`) is none, and a folder that is not there has none.

    Raises:
        UserError: the folder cannot be listed.
    """
    with naming(folder):
        system, path = file_system(folder)
        selector = pyarrow.fs.FileSelector(path, recursive=deep, allow_not_found=True)
        found = system.get_file_info(selector)
    scheme = S3 if folder.startswith(S3) else ""
    start = len(path.rstrip("/")) + 1
    files = [
        File(scheme + info.path, info.path[start:], info.size or 0, info.mtime_ns or 0)
        for info in found
        if info.type != pyarrow.fs.FileType.Directory and "/." not in f"/{info.path[start:]}"
    ]
    return sorted(files, key=lambda file: file.uri)
