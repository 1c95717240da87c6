"""One small recommender on simulated days, with two nights played: what the tests of this folder look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.loop import FIRST_NIGHT, SECOND_NIGHT, Played, call_step, small_demo, without_pictures


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Iterator[Played]:
    """Two nights: the first version is promoted on the first, a challenger comes on the second."""
    path = small_demo(tmp_path_factory.mktemp("loop"), project_root)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with without_pictures():
            first = call_step("run", "--config", path, "--as-of", FIRST_NIGHT.isoformat())
        second = call_step("run", "--config", path, "--as-of", SECOND_NIGHT.isoformat())
        yield Played(path, {FIRST_NIGHT: first, SECOND_NIGHT: second})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of this folder waits for both nights, minutes on a busy machine."""
    for item in items:
        if "played" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(400))
