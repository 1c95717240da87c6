"""A pickle where a model's files are expected, with a list that says it belongs there: refused, and not run.

A changed byte, a missing or an added file, and a list of another model: test_checkpoint.py, test_registered_model.py.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from recsys_moe import checkpoint, digests
from recsys_moe.checkpoint import Ranker
from recsys_moe.errors import UserError
from tests.recsys_moe.conftest import encoder as encoder
from tests.recsys_moe.conftest import ranker as ranker
from tests.recsys_moe.conftest import rows as rows


class Attack:
    """Makes a folder `pwned` where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_the_attack_works_where_something_unpickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Attack()))  # noqa: S301
    assert (tmp_path / "pwned").is_dir()


@pytest.mark.usefixtures("nothing_ran")
@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("name", ["weights.safetensors", "vocabularies.parquet", "encoder.json", "config.json"])
def test_a_pickle_is_refused_and_not_run(name: str, protocol: int, ranker: Ranker, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    checkpoint.save(folder, ranker.encoder, ranker.model)
    (folder / name).write_bytes(pickle.dumps(Attack(), protocol))
    (folder / digests.LIST).write_text(json.dumps(checkpoint.FORMAT | {"sha256": digests.digests(folder)}))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(folder)
