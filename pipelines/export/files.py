"""Files of a day, written beside their place and put there at once."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs

from pipelines import places
from pipelines.errors import TryAgainError
from recsys_moe.errors import UserError

_LEFT_BEHIND_SECONDS = 86_400


@contextmanager
def placed(path: str, workspace: Path) -> Iterator[Path]:
    """A local file to write, which is at `path` (local or on S3) when the block has ended, and not before.

    What a killed process has left beside it is removed after a day.

    Args:
        path: the place; whatever is there is replaced.
        workspace: a local folder for what goes to S3.

    Raises:
        TryAgainError: S3 cannot be reached, or refuses.
        UserError: the place cannot be written to.
    """
    on_s3 = path.startswith(places.S3)
    folder, name = workspace / "scratch" / "export" if on_s3 else Path(path).parent, Path(path).name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder, name)
        draft = folder / f".{name}.{uuid.uuid4().hex}.partial"
        try:
            yield draft
            put = _upload if on_s3 else _rename
            put(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        kind = TryAgainError if on_s3 else UserError
        raise kind(f"{path}: cannot be written: {error}") from None


def _clear(folder: Path, name: str) -> None:
    for left in folder.glob(f".{name}.*.partial"):
        if time.time() - left.stat().st_mtime > _LEFT_BEHIND_SECONDS:
            left.unlink(missing_ok=True)


def _rename(draft: Path, path: str) -> None:
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def _upload(draft: Path, path: str) -> None:
    """An object appears when all of it is there."""
    system, key = places.file_system(path)
    pyarrow.fs.copy_files(str(draft), key, pyarrow.fs.LocalFileSystem(), system)
