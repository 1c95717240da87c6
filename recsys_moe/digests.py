"""What tells that a checkpoint is the one that was saved: `format.json` lists the SHA-256 of every other file.

A file that was cut short, changed or put beside the others is noticed as the checkpoint is loaded. Who changes files on
purpose can change the list, too: so the digest of the list itself is kept elsewhere, by whoever registers the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from recsys_moe.errors import UserError

LIST = "format.json"


def digests(folder: Path) -> dict[str, str]:
    """SHA-256, in hexadecimal, of each file but the list, by name. Hidden files, as a desktop leaves them, are none."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: _sha256(path) for path in files if path.name != LIST}


def check(folder: Path, listed: Mapping[str, str]) -> None:
    """Compare the files with the list.

    Raises:
        ValueError: one is not what was saved, is missing, or was not there.
    """
    found = digests(folder)
    changed = sorted({name for name, _ in found.items() ^ listed.items()})
    if changed:
        raise ValueError(f"{', '.join(changed)}: not what was saved")


def digest(folder: Path) -> str:
    """What stands for a whole checkpoint: the SHA-256 of its list.

    Raises:
        UserError: there is no list.
    """
    try:
        return _sha256(folder / LIST)
    except OSError:
        raise UserError(f"{folder}: is no checkpoint of recsys_moe (it has no {LIST} that can be read)") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
