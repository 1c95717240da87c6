"""Segments by behaviour: what is fitted, who is in which group, and that serving needs no scikit-learn for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from recsys_moe.config import BehaviouralSegments, Feature, ModelConfig, Segments, Task
from recsys_moe.encoding import Encoder
from recsys_moe.encoding.behaviour import Behaviour, BehaviourSample, history_of, scaled
from recsys_moe.errors import UserError

BY = BehaviouralSegments(counts=("rows",), rates=("click_rate", "buy_rate"), k=3)
SHARES = {"heavy": 0.5, "eager": 0.3, "rare": 0.2}
MEANS = {"heavy": (200, 0.2, 0.1), "eager": (20, 0.9, 0.2), "rare": (2, 0.1, 0.7)}


def config_of(by: BehaviouralSegments = BY, min_rows: int = 1) -> ModelConfig:
    """A model that reads the history by which users are grouped."""
    features = [Feature(name="user_id", kind="categorical", side="user", from_keys=("user_id",))]
    for name in by.columns:
        features.append(Feature(name=name, kind="numeric", side="user", from_keys=("user_id",)))
    return ModelConfig(features=features, tasks=(Task(name="click"),), segments=Segments(by=by, min_rows=min_rows))


def history(rows: int, seed: int = 0) -> tuple[pa.Table, NDArray[np.str_]]:
    """Rows of three kinds of users that are far apart, and which kind each is."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(list(SHARES), rows, p=list(SHARES.values()))
    means = np.array([MEANS[kind] for kind in kinds])
    columns = {
        "user_id": [f"u{n}" for n in range(rows)],
        "rows": rng.poisson(means[:, 0]) + 1,
        "click_rate": means[:, 1] + rng.normal(0, 0.02, rows),
        "buy_rate": means[:, 2] + rng.normal(0, 0.02, rows),
    }
    return pa.table(columns), kinds


def fit(rows: pa.Table, by: BehaviouralSegments = BY, min_rows: int = 1) -> Encoder:
    return Encoder.fit(config_of(by, min_rows), rows.to_batches(max_chunksize=97))


def few(counts: list[float | None], rates: list[float | None] | None = None) -> pa.Table:
    rates = rates or [0.5] * len(counts)
    users = [f"u{n}" for n in range(len(counts))]
    return pa.table({"user_id": users, "rows": pa.array(counts, pa.float64()), "click_rate": rates, "buy_rate": rates})


def names_of(encoder: Encoder, rows: pa.Table) -> list[str]:
    return encoder.segment_of(rows)[0].to_pylist()


def test_users_who_behave_alike_are_one_group_and_the_largest_is_the_first() -> None:
    rows, kinds = history(2000)
    names = names_of(fit(rows), rows)
    assert adjusted_rand_score(kinds, names) == 1.0
    assert [names[list(kinds).index(kind)] for kind in SHARES] == ["behaviour 1", "behaviour 2", "behaviour 3"]


def test_a_row_is_where_scikit_learn_predicts_it() -> None:
    rng = np.random.default_rng(3)
    by = BehaviouralSegments(counts=("a", "b"), rates=("c",), k=6, seed=4)
    blob = {name: rng.exponential(5, 1000) for name in "abc"} | {"user_id": ["u"] * 1000}
    encoder = fit(pa.table(blob), by)
    assert encoder.behaviour is not None
    points, has_history = history_of(by, pa.table(blob).to_batches()[0])
    points = scaled(points, encoder.behaviour.scalers)
    assert has_history.all()
    assert points.mean(axis=0) == pytest.approx(0, abs=1e-9)
    assert points.std(axis=0) == pytest.approx(1)
    assert points[:, 0] == pytest.approx((np.log1p(blob["a"]) - np.log1p(blob["a"]).mean()) / np.log1p(blob["a"]).std())
    reference = KMeans(6, n_init=1, random_state=0).fit(points)
    reference.cluster_centers_ = encoder.behaviour.centroids
    expected = [f"behaviour {number + 1}" for number in reference.predict(points)]
    assert names_of(encoder, pa.table(blob)) == expected
    # Not only near its centroid: the centroids are a k-means solution, the means of their own rows.
    own = [points[np.array(expected) == name].mean(axis=0) for name in encoder.behaviour.names]
    assert np.stack(own) == pytest.approx(encoder.behaviour.centroids, abs=0.05)


def test_rows_without_history_are_unknown_and_take_no_part_in_fitting() -> None:
    rows, _ = history(500)
    empty = few([0, None, float("nan"), -1.0])
    encoder = fit(pa.concat_tables([rows, empty], promote_options="permissive"))
    assert encoder.behaviour is not None
    assert encoder.behaviour.as_json() == fit(rows).behaviour.as_json()  # type: ignore[union-attr]
    names, sources = encoder.segment_of(pa.concat_tables([empty, rows.slice(0, 2)], promote_options="permissive"))
    assert sources.to_pylist() == ["unknown"] * 4 + ["direct"] * 2
    assert set(names.to_pylist()[:4]) == {"unknown"}


def test_a_rate_that_is_missing_is_the_mean_and_one_that_is_huge_does_no_harm() -> None:
    rows, _ = history(500)
    encoder = fit(rows)
    assert encoder.behaviour is not None
    mean = [scaler.mean for scaler in encoder.behaviour.scalers]
    count = float(np.expm1(mean[0]))
    odd = pa.table({"user_id": ["u"] * 3, "rows": [count] * 3, "click_rate": [None, float("nan"), mean[1]]})
    odd = odd.append_column("buy_rate", pa.array([mean[2]] * 3))
    assert len(set(names_of(encoder, odd))) == 1
    assert names_of(encoder, few([5.0, 5.0], [1e300, -1e300])) != ["unknown"] * 2


@pytest.mark.parametrize(
    ("counts", "groups"),
    [([4.0] * 9, 1), ([4.0, 4.0, 4.0, 90.0], 2), ([7.0], 1), ([1.0, 50.0], 2), ([0.0, None], 0)],
    ids=str,
)
def test_fewer_distinct_rows_than_k_make_fewer_groups(counts: list[float | None], groups: int) -> None:
    encoder = fit(few(counts))
    assert encoder.segment_names == ("unknown", *(f"behaviour {n}" for n in range(1, groups + 1)))
    seen = [count for count in counts if count]
    names = names_of(encoder, few(counts))
    assert len({name for name in names if name != "unknown"}) == groups
    assert [name != "unknown" for name in names] == [bool(count) for count in counts]
    assert names_of(encoder, few([4.0]))[0] == ("behaviour 1" if seen else "unknown")


def test_equal_groups_are_named_by_their_centroid() -> None:
    assert names_of(fit(few([90.0, 2.0])), few([2.0, 90.0])) == ["behaviour 1", "behaviour 2"]


def test_groups_under_min_rows_are_unknown() -> None:
    rows, kinds = history(1000)
    thin = int((kinds == "rare").sum())
    enough, too_few = fit(rows, min_rows=thin), fit(rows, min_rows=thin + 1)
    assert enough.segment_names == ("unknown", "behaviour 1", "behaviour 2", "behaviour 3")
    assert too_few.segment_names == ("unknown", "behaviour 1", "behaviour 2")
    names, sources = (np.array(column) for column in too_few.segment_of(rows))
    assert set(names[kinds == "rare"]) == set(sources[kinds == "rare"]) == {"unknown"}
    assert set(sources[kinds != "rare"]) == {"direct"}
    assert too_few.encode(rows)["segment"].to_pylist() == [too_few.segment_names.index(name) for name in names]


def sampled(rows: pa.Table, limit: int, cut: int) -> tuple[Behaviour, NDArray[np.float64]]:
    sample = BehaviourSample(BY, limit)
    for block in rows.to_batches(max_chunksize=cut):
        sample.add(block)
    return sample.fitted()


def test_a_sample_does_not_depend_on_how_rows_are_cut() -> None:
    rows, _ = history(3000)
    (one, sizes), (other, other_sizes) = sampled(rows, 200, 3000), sampled(rows, 200, 17)
    assert one.as_json() == other.as_json()
    assert sizes.tolist() == other_sizes.tolist()


def test_a_sample_is_of_the_whole_window_and_its_sizes_are_scaled_up() -> None:
    rows, kinds = history(6000)
    rows = rows.take(pa.array(np.argsort(kinds, kind="stable")))
    behaviour, sizes = sampled(rows, 600, 500)
    assert behaviour.names == ("behaviour 1", "behaviour 2", "behaviour 3")
    assert sizes.sum() == pytest.approx(6000)
    # Four standard deviations of a share of 0.2 among 600.
    assert sizes == pytest.approx([6000 * share for share in SHARES.values()], abs=6000 * 4 * 0.02)


def test_what_is_loaded_gives_the_same_segments_without_scikit_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = history(800)
    encoder = fit(rows)
    encoder.save(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError):
        fit(rows)
    again, fresh = Encoder.load(tmp_path), history(400, seed=1)[0]
    assert again.encode(fresh).equals(encoder.encode(fresh))
    assert again.segment_of(fresh)[0].equals(encoder.segment_of(fresh)[0])
    assert again.config == encoder.config
    again.save(tmp_path)
    assert Encoder.load(tmp_path).behaviour.as_json() == encoder.behaviour.as_json()  # type: ignore[union-attr]


def test_no_group_at_all_can_be_saved(tmp_path: Path) -> None:
    fit(few([0.0])).save(tmp_path)
    assert names_of(Encoder.load(tmp_path), few([3.0])) == ["unknown"]


def test_saved_groups_of_other_columns_are_not_taken(tmp_path: Path) -> None:
    fit(history(100)[0]).save(tmp_path)
    saved = json.loads((tmp_path / "encoder.json").read_text())
    saved["behaviour"]["scalers"].pop("buy_rate")
    (tmp_path / "encoder.json").write_text(json.dumps(saved))
    with pytest.raises(KeyError, match="buy_rate"):
        Encoder.load(tmp_path)


def test_a_row_is_in_the_same_group_alone_and_with_its_users_columns_only() -> None:
    rows, _ = history(300)
    encoder = fit(rows)
    whole = encoder.encode(rows)["segment"].to_pylist()
    alone = [encoder.encode(rows.slice(at, 1), ("user",))["segment"][0].as_py() for at in range(0, 300, 30)]
    assert alone == whole[::30]


def test_a_column_that_is_missing_is_named() -> None:
    rows, _ = history(50)
    with pytest.raises(UserError, match="no column 'buy_rate'"):
        fit(rows).segment_of(rows.drop_columns(["buy_rate"]))
