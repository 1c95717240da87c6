"""The comparison with gradient boosting: what trees read, and differences draw by draw. Needs none of the data."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import booster, boosting
from benchmarks.kuairand import CONFIG
from pipelines.config import load
from recsys_moe.errors import UserError

pytestmark = pytest.mark.skipif(not CONFIG.exists(), reason="the repository's configs are not there")


def examples(rows: int, seed: int) -> pa.Table:
    """Every column that trees read; a click follows the user's rate of clicks, a like the tab."""
    rng = np.random.default_rng(seed)
    columns = {name: pa.array(rng.random(rows)) for name in booster.columns(load(CONFIG))}
    columns |= {"tab": pa.array([None if n % 4 == 0 else str(n % 4) for n in range(rows)])}
    columns |= {"tag": pa.array([None if n % 5 == 0 else ["1", str(n)] for n in range(rows)])}
    rate = columns["user_id_30d_click_rate"].to_numpy()
    labels = {"click": rate > 0.5, "long_view": rng.random(rows) < 0.5, "like": np.arange(rows) % 4 == 3}
    return pa.table(columns | {f"label_{task}": pa.array(of.astype(float)) for task, of in labels.items()})


def test_trees_read_no_ids_and_history_where_it_is_wanted() -> None:
    config = load(CONFIG)
    static, everything = booster.columns(config, history=False), booster.columns(config)
    assert not {"user_id", "video_id", "author_id", "music_id"} & {*everything}
    assert {"tab", "hour", "video_duration", "tag"} <= {*static}
    assert not any("_30d_" in name for name in static)
    assert len(everything) - len(static) == 6 * 4


def test_trees_learn_from_numbers_names_and_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(booster, "TREES", 10)
    monkeypatch.setattr(booster, "LEARNING_RATE", 0.3)
    asked = examples(400, seed=1)
    found = booster.boosted(load(CONFIG), examples(400, seed=0), asked)
    assert ((found["click"] > 0.5) == (asked["label_click"].to_numpy() > 0.5)).mean() > 0.95
    assert ((found["like"] > 0.5) == (asked["label_like"].to_numpy() > 0.5)).all()


def test_ours_is_the_mean_of_seeds_and_differences_are_paired() -> None:
    names = [f"{task}_{metric}" for task in booster.TASKS for metric in ("auc", "gauc")]
    theirs = dict.fromkeys(names, np.array([0.70, 0.60, 0.80]))
    ours = [dict.fromkeys(names, theirs["like_auc"] + gain) for gain in (0.01, 0.03)]
    found = boosting.compared(ours, {"booster": theirs})
    assert found["models"]["ours"]["like_auc"]["mean"] == pytest.approx(0.72)
    assert found["ours_above"]["booster"]["click_gauc"] == pytest.approx({"mean": 0.02, "low": 0.02, "high": 0.02})
    assert found["seeds_apart"]["click_auc"] == pytest.approx(0.02)
    lines = boosting.table(found).splitlines()
    assert lines[0].startswith("| | click AUC | click GAUC | long view AUC |")
    assert lines[2].startswith("| ours | 0.7200 |")
    assert lines[4].startswith("| ours above booster | +0.0200 (+0.0200 to +0.0200) |")


def test_without_a_seed_there_is_nothing_to_compare() -> None:
    with pytest.raises(UserError, match="--seeds"):
        boosting.run(seeds=0)
