"""The lines that docs/exports.md shows to readers do what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from pipelines.export import export

DAY = date(2026, 1, 5)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("store", "base")
def test_the_readers_that_are_shown(scores, postgres_for_all: str, redis_for_all: str, project_root: Path) -> None:
    rows = scores.publish()
    exports = [target.model_copy(update={"prefix": "shop"}) for target in scores.config.exports[2:3]]
    config = scores.config.model_copy(update={"exports": (*exports, scores.config.exports[3])})
    export(config, DAY)
    of_user = rows.to_pandas().query("context == 'home' and user_id == 'u 1'")
    shown = BLOCK.findall((project_root / "docs" / "exports.md").read_text(encoding="utf-8"))
    assert len(shown) == 2
    for block in shown:
        code = block.replace("default", "home")
        script = f"import json, os, psycopg, redis\nuser = 'u 1'\n{code}\nprint(json.dumps(items))"
        environment = {"REDIS_URL": redis_for_all, "DATABASE_URL": postgres_for_all, "PATH": ""}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        items = json.loads(done.stdout)
        found = items["item_id"] if isinstance(items, dict) else [item for item, _ in items]
        assert found == of_user.sort_values("rank").item_id.tolist()
