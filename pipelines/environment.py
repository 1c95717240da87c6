"""What a training ran on: the code, the libraries, the machine. What the last digit of a result can depend on."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from importlib.metadata import version as installed
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_CODE = ("recsys_moe", "pipelines")
_LIBRARIES = ("torch", "torchrec", "numpy", "pyarrow")


def environment(threads: int, processes: int, device: str) -> dict[str, str]:
    """The facts of this process, by name. `threads` are those that torch computes with."""
    import torch  # steps that only look for a commit do without

    facts = {"code": code_digest(), "python": platform.python_version()}
    facts |= {name: installed(name) for name in _LIBRARIES}
    facts |= {"machine": platform.machine(), "processor": _processor()}
    facts |= {"instructions": torch.backends.cpu.get_cpu_capability()}
    facts |= {"device": torch.cuda.get_device_name() if device == "cuda" else device}
    return facts | {"threads": str(threads), "processes": str(processes)}


def commit_tags() -> dict[str, str]:
    """Tags of a run: the git commit of the code, and whether there was more than that; none outside of git."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _git("status", "--porcelain", "--", *_CODE)
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(changed)).lower()}


def code_digest() -> str:
    """A digest of the project's own code, as it runs: tells more than a commit where files were changed since."""
    files = sorted(path for folder in _CODE for path in (_ROOT / folder).rglob("*.py"))
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.relative_to(_ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    """Its name, as far as the system tells it."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or "unknown"
