"""Where tables lie: each test that asks for `storage` runs on a local folder and on S3."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for tables."""
    return str(request.getfixturevalue("s3") if request.param == "s3" else tmp_path)
