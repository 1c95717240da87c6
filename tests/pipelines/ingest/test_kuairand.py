"""Twelve real days: what ingest counts is what pandas counts in the files, and what their README says of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from pipelines.calendar import days_of
from pipelines.config import load
from pipelines.ingest import ingest

KEY = ["user_id", "video_id", "time_ms", "tab"]
NAMES = ("read", "accepted", "rejected", "duplicates", "late")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_late_events_and_duplicates_are_those_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_root: Path, shared_data: Path
) -> None:
    monkeypatch.setenv("KUAIRAND", str(shared_data))
    (tmp_path / "configs").mkdir()
    config = load(Path(shutil.copy(project_root / "configs" / "kuairand.yaml", tmp_path / "configs")))
    everything = []
    for ds in days_of(config):
        rows = pd.read_csv(shared_data / "log" / f"{ds:%Y%m%d}.csv", usecols=KEY).assign(ds=ds)
        rows["day"] = pd.to_datetime(rows["time_ms"], unit="ms", utc=True).dt.tz_convert("Asia/Shanghai").dt.date
        everything.append(rows)
        first = rows.drop_duplicates(KEY)
        found = ingest(config, ds)
        expected = (len(rows), len(first), 0, len(rows) - len(first), int((first["day"] < ds).sum()))
        assert tuple(found[name] for name in NAMES) == expected
    whole = pd.concat(everything)
    # The README's counts, over all days; 40 repeats are of another day than the first, which keeps its own rows.
    assert (len(whole), int(whole.duplicated(KEY).sum())) == (198_895, 5_312)
    assert int(whole.duplicated([*KEY, "ds"]).sum()) == 5_272
    assert (whole["day"] < whole["ds"]).mean() == pytest.approx(0.009, abs=0.0005)
