"""The folder of what is not published yet, here and on S3: whole files or none, whoever else is at it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest

from pipelines.errors import TryAgainError
from pipelines.scoring import staging
from pipelines.scoring.staging import Staging

ROWS = pa.table({"number": [1, 2]})


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Staging:
    place = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3")
    return Staging(f"{place}/scoring/one")


def names(of: Staging) -> list[str]:
    selector = pa.fs.FileSelector(of._folder, allow_not_found=True)
    return sorted(one.base_name for one in of._system.get_file_info(selector))


def test_a_file_that_failed_is_not_there(folder: Staging) -> None:
    def fails() -> Iterator[pa.Table]:
        yield ROWS
        raise MemoryError

    with pytest.raises(MemoryError):
        folder.write_rows("rows.parquet", ROWS.schema, fails())
    assert names(folder) == []
    folder.write_rows("rows.parquet", ROWS.schema, [ROWS])
    with pytest.raises(MemoryError):
        folder.write_rows("rows.parquet", ROWS.schema, fails())
    assert names(folder) == ["rows.parquet"]
    with folder.parquet("rows.parquet") as file:
        assert file.read().equals(ROWS)


def test_a_file_that_somebody_removes_while_it_is_written_is_told(tmp_path: Path) -> None:
    folder = Staging(str(tmp_path / "one"))
    told = pytest.raises(TryAgainError, match=r"one/a: was removed while it was written; is another process")
    with told, folder.writing("a") as file:
        folder.clear("plan.json")
        file.write(b"1")


def test_only_what_nobody_wrote_to_for_days_is_removed(folder: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.remove_left_behind("plan.json")  # there is nothing at all yet
    beside = Staging(folder.place("").replace("/one/", "/two"))
    for one in (folder, beside):
        one.write_json("plan.json", 1)
        one.write_json("other.json", 2)
    folder.remove_left_behind("plan.json")
    assert names(folder) == names(beside) == ["other.json", "plan.json"]
    monkeypatch.setattr(staging, "_LEFT_BEHIND", timedelta(seconds=-60))
    folder.remove_left_behind("plan.json")
    assert names(folder) == names(beside) == []


def test_a_folder_is_removed_by_two_at_once(folder: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_json("plan.json", 1)
    folder.write_json("other.json", 2)
    rival = Staging(folder.path)
    found = folder._system.get_file_info

    class Slow:
        """Its listing is old when it is looked at."""

        def __getattr__(self, name: str) -> object:
            return getattr(rival._system, name)

        def get_file_info(self, selector: object) -> object:
            listed = found(selector)
            rival.remove()
            return listed

    monkeypatch.setattr(folder, "_system", Slow())
    monkeypatch.setattr(staging, "_LEFT_BEHIND", timedelta(seconds=-60))
    folder.clear("plan.json")
    rival.write_json("plan.json", 1)
    folder.remove_left_behind("plan.json")
    assert names(rival) == []
