"""What a fit reads, and what it tells its run: points of a curve, and after a resume none of them twice."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pipelines.fitting import Encoded, _Reports, curve
from pipelines.progress import Progress
from pipelines.registry import Registry
from pipelines.runs import Run
from recsys_moe.encoding import Encoder
from tests.pipelines.conftest import Tiny
from tests.recsys_moe.conftest import model_config, raw_rows


@pytest.fixture
def run(tiny: Tiny, store: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    registry = Registry(tiny(name="told"))
    return registry.open_run(registry.client.create_run(registry.experiment_id).info.run_id)


def tell(run: Run, steps: range) -> None:
    """A process that makes some steps of 25 an epoch, and validates at its end."""
    with Progress("train", 50, "steps") as progress:
        reports = _Reports(run, "train", progress)
        for step in steps:
            reports.step({"step": step, "epoch": step // 25, "loss": step, "loss/click": 2 * step, "rows": 16})
            if step % 25 == 0:
                reports.validation({"step": step, "epoch": step // 25 - 1, "validation/loss": step})
                reports.epoch({"step": step, "epoch": step // 25 - 1, "loss": 0.5, "validation/loss": step})
        assert progress.done == steps[-1]


def test_a_point_is_the_mean_of_ten_steps(run: Run) -> None:
    tell(run, range(1, 51))
    points = curve(run, "train", ["loss", "loss/click"])
    assert points[:2] == [{"step": 10, "loss": 5.5, "loss/click": 11.0}, {"step": 20, "loss": 15.5, "loss/click": 31.0}]
    assert [point["step"] for point in points] == [10, 20, 30, 40, 50]
    assert run.history("validation/loss") == {25: 25.0, 50: 50.0}
    assert run.history("train/epoch/loss") == {0: 0.5, 1: 0.5}
    assert run.history("train/epoch/validation/loss") == {}
    assert run.history("train/rows") == {}


def test_what_was_told_before_a_kill_is_not_told_again(run: Run) -> None:
    tell(run, range(1, 45))
    before = curve(run, "train", ["loss"])
    tell(run, range(18, 51))  # from a checkpoint after step 17
    after = curve(run, "train", ["loss"])
    assert after[:4] == before
    assert [point["step"] for point in after[4:]] == [50]
    histories = ("train/loss", "validation/loss", "train/epoch/loss")
    counted = [len(run._client.get_metric_history(run.run_id, name)) for name in histories]
    assert counted == [5, 2, 2]


def test_what_is_learned_from_is_the_window_or_other_rows(tmp_path: Path) -> None:
    rows, fit_encoder = raw_rows(200), partial(Encoder.fit, model_config())
    whole = Encoded.once(tmp_path / "whole", fit_encoder, iter([rows]), [rows.slice(0, 30)])
    some = Encoded.once(tmp_path / "some", fit_encoder, iter([rows]), [], iter([rows.slice(50, 20)]))
    assert (whole.train.num_rows, whole.held_out.num_rows) == (200, 30)
    assert (some.train.num_rows, some.held_out.num_rows) == (20, 0)
    assert whole.encoder.vocabularies == some.encoder.vocabularies
    names = [{path.name for path in one.folder.iterdir()} for one in (whole, some)]
    assert names[0] == names[1]
