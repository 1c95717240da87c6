"""A few kilobytes that unpack to gigabytes: one line or rows set aside, within a bounded memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

PIECE = 16 << 20
HEADER = b"user,item,at\n"
PIECES = {
    "zeros.csv.gz": (HEADER, b"\0" * PIECE),
    "no_header.csv.gz": (b"", b"\0" * PIECE),
    "a_quote.csv.gz": (HEADER + b'"', b"x" * PIECE),
    "zeros.jsonl.gz": (b'{"user": "', b"0" * PIECE),
    "nested.jsonl.gz": (b"", b"[" * PIECE),
}
COPIES = 256  # of 16 MiB: four gigabytes in each
MOST_MEMORY = 2 << 30

# A process of its own: its memory has a limit, beyond which it would fail with another error.
READ = """
import json, resource, sys
from datetime import date
from pipelines import sources
from pipelines.config import Source
from recsys_moe.errors import UserError

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
said = {}
for path in sys.argv[2:]:
    try:
        for chunk in sources.read(Source(path=path), date(2026, 1, 1), ["user", "item", "at"]):
            pass
        said[path.rpartition("/")[2]] = "read"
    except UserError as error:
        said[path.rpartition("/")[2]] = str(error)
print(json.dumps(said))
"""


def test_gigabytes_of_nothing_are_refused_in_a_line(tmp_path: Path, project_root: Path) -> None:
    for name, (start, piece) in PIECES.items():
        packed = gzip.compress(piece, 1)
        (tmp_path / name).write_bytes(gzip.compress(start) + packed * COPIES)  # members one after another are one file
    paths = [str(tmp_path / name) for name in PIECES]
    command = [sys.executable, "-c", READ, str(MOST_MEMORY), *paths]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for name in PIECES:
        assert said[name].startswith(f"{tmp_path / name}: "), said[name]
        assert "\n" not in said[name]
