"""How the process deals with memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let glibc keep large freed blocks for the next tensor, for the rest of this process's life.

    It would give blocks above 32 MB back to the system at once, and a training step pays for fresh pages each time:
    a quarter of a step with 256 experts (docs/decisions/0006). For a process that trains and ends, not for a server.

    Returns: whether it was done; other C libraries than glibc are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
