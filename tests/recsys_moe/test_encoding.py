from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_moe.config import BucketSegments, CrossSegments, Feature, ModelConfig, Segments, Task
from recsys_moe.encoding import Encoder, canonical
from recsys_moe.errors import UserError
from tests.recsys_moe.conftest import model_config, raw_rows


def config_of(*features: Feature, segments: Segments | None = None, min_count: int = 1) -> ModelConfig:
    return ModelConfig(features=features, tasks=(Task(name="click"),), segments=segments, min_count=min_count)


COLOUR = Feature(name="colour", kind="categorical", side="item")


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["1", "2", None, "1"]),
        pa.array(["1.0", "2", "", "1"]),
        pa.array([1, 2, None, 1]),
        pa.array([1.0, 2.0, float("nan"), 1.0]),
        pa.array([1.0, 2.0, None, 1.0], pa.float32()),
        pa.array(["1", "2", None, "1"]).dictionary_encode(),
        pa.array(["1", "2", None, "1"], pa.large_string()),
    ],
    ids=str,
)
def test_a_value_has_one_spelling_whatever_its_type(values: pa.Array) -> None:
    assert canonical(values).to_pylist() == ["1", "2", None, "1"]


def test_numbers_that_are_not_whole_or_very_large_keep_apart() -> None:
    assert canonical(pa.array([1.5, 1e6, -3.0])).to_pylist() == ["1.5", "1000000", "-3"]
    assert len(set(canonical(pa.array([2.0**60, 2.0**61])).to_pylist())) == 2


def test_columns_without_any_value_are_missing() -> None:
    assert canonical(pa.nulls(2)).to_pylist() == [None, None]


def test_vocabulary_is_by_frequency_then_value_and_unknown_or_missing_is_0() -> None:
    rows = pa.table({"colour": ["b", "a", "c", "c", None, "rare"]})
    encoder = Encoder.fit(config_of(COLOUR), rows.to_batches(max_chunksize=2))
    assert encoder.vocabularies["colour"].to_pylist() == ["c", "a", "b", "rare"]
    encoded = encoder.encode(pa.table({"colour": ["c", "b", "never seen", None]}))
    assert encoded["index_colour"].to_pylist() == [1, 3, 0, 0]
    assert Encoder.fit(config_of(COLOUR, min_count=2), rows.to_batches()).vocab_sizes == (2,)


def test_fitting_does_not_depend_on_how_rows_are_cut(rows: pa.Table) -> None:
    whole, cut = (Encoder.fit(model_config(), rows.to_batches(max_chunksize=n)) for n in (10_000, 97))
    assert all(whole.vocabularies[name].equals(cut.vocabularies[name]) for name in whole.vocabularies)
    assert whole.segment_names == cut.segment_names
    for name, scaler in whole.scalers.items():
        assert scaler.mean == pytest.approx(cut.scalers[name].mean, rel=1e-12)
        assert scaler.std == pytest.approx(cut.scalers[name].std, rel=1e-12)


def test_multivalued_keeps_unknowns_as_0_and_an_empty_row_has_one_0() -> None:
    tags = Feature(name="tags", kind="multivalued", side="item")
    encoder = Encoder.fit(config_of(tags), pa.table({"tags": [["a", "b"], ["a"], None]}).to_batches())
    encoded = encoder.encode(pa.table({"tags": [["b", "new", "a"], [], None, ["a"]]}))
    assert encoded["index_tags"].to_pylist() == [[2, 0, 1], [0], [0], [1]]


def test_numbers_are_scaled_and_missing_ones_are_the_mean() -> None:
    price = Feature(name="price", kind="numeric", side="item", transform="log1p")
    encoder = Encoder.fit(config_of(price), pa.table({"price": [1.0, 10.0, None, 100.0]}).to_batches())
    encoded = encoder.encode(pa.table({"price": [1.0, None, float("nan"), float("inf"), 1e300]}))
    logs = np.log1p([1.0, 10.0, 100.0])
    dense = np.array(encoded["dense"].to_pylist())[:, 0]
    assert dense[:4] == pytest.approx([(logs[0] - logs.mean()) / logs.std(), 0, 0, 0])
    assert dense[4] == 10.0


def test_encoding_has_a_fixed_schema_and_makes_the_tensors(encoder: Encoder, rows: pa.Table) -> None:
    encoded = encoder.encode(rows.slice(5, 3))
    assert encoded.schema.equals(encoder.schema)
    batch = encoder.to_batch(encoded)
    assert len(batch) == 3
    assert batch.num_features == 5
    assert batch.lengths.view(5, 3).tolist() == [[1, 1, 1]] * 3 + [[2, 2, 2]] + [[1, 1, 1]]
    assert batch.values[:3].tolist() == encoded["index_user_id"].to_pylist()
    assert batch.values[9:15].tolist() == [index for row in encoded["index_tags"].to_pylist() for index in row]
    assert batch.dense.shape == (3, 2)
    assert batch.labels[:, 0].tolist() == rows["label_click"][5:8].to_pylist()
    assert batch.label_mask.all()
    assert batch.weight.tolist() == [1.0, 1.0, 1.0]


def test_rows_to_serve_have_no_labels(encoder: Encoder, rows: pa.Table) -> None:
    batch = encoder.to_batch(encoder.encode(rows.drop_columns(["label_click", "label_buy"])))
    assert not batch.label_mask.any()


def test_no_rows_and_no_numbers_are_fine(encoder: Encoder, rows: pa.Table) -> None:
    assert len(encoder.to_batch(encoder.encode(rows.slice(0, 0)))) == 0
    plain = Encoder.fit(config_of(COLOUR), pa.table({"colour": ["a"]}).to_batches())
    assert plain.to_batch(plain.encode(pa.table({"colour": ["a", "b"]}))).dense.shape == (2, 0)


def test_a_missing_column_is_named_with_those_present(encoder: Encoder, rows: pa.Table) -> None:
    with pytest.raises(UserError, match=r"no column 'country'.*'user_id'"):
        encoder.encode(rows.drop_columns(["country"]))


def test_text_in_a_numeric_column_is_named(encoder: Encoder, rows: pa.Table) -> None:
    bad = rows.set_column(rows.schema.get_field_index("price"), "price", pa.array(["cheap"] * rows.num_rows))
    with pytest.raises(UserError, match=r"'price' should hold numbers.*cheap"):
        encoder.encode(bad)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(UserError, match="no rows"):
        Encoder.fit(model_config(), [])


def test_sides_add_up_to_the_pair(encoder: Encoder, rows: pa.Table, ranker) -> None:
    def inputs(sides):
        batch = encoder.to_batch(encoder.encode(rows, sides))
        return ranker.model.inputs(batch), batch.segment

    whole, segment = inputs(("user", "item", "context"))
    users, user_segment = inputs(("user", "context"))
    items, item_segment = inputs(("item",))
    assert torch.equal(users + items, whole)
    assert torch.equal(segment, user_segment)
    assert not item_segment.any()


def test_bucket_segments_are_left_closed() -> None:
    segments = Segments(by=BucketSegments(column="age", bins=(18, 65)), min_rows=1)
    age = Feature(name="age", kind="numeric", side="user")
    rows = pa.table({"age": [10.0, 17.9, 18.0, 64.0, 65.0, None]})
    names, sources = Encoder.fit(config_of(age, segments=segments), rows.to_batches()).segment_of(rows)
    assert names.to_pylist() == ["under 18", "under 18", "18..65", "18..65", "from 65", "unknown"]
    assert sources.to_pylist() == ["direct"] * 5 + ["unknown"]


def test_thin_crosses_fall_to_their_parent_and_then_to_unknown() -> None:
    cross = CrossSegments(columns=("country", "age"), parent="country")
    rows = pa.table({"country": ["DE"] * 5 + ["FR"], "age": ["old"] * 3 + ["young"] * 2 + ["old"]})
    config = config_of(
        Feature(name="country", kind="categorical", side="user"), segments=Segments(by=cross, min_rows=3)
    )
    names, sources = Encoder.fit(config, rows.to_batches()).segment_of(rows)
    assert names.to_pylist() == ["DE:old"] * 3 + ["DE:*"] * 2 + ["unknown"]
    assert sources.to_pylist() == ["direct"] * 3 + ["parent"] * 2 + ["unknown"]


def test_save_and_load(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    again, rows = Encoder.load(tmp_path), raw_rows(200, seed=9)
    assert again.encode(rows).equals(encoder.encode(rows))
    assert again.config == encoder.config
    assert again.label_means == encoder.label_means
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "encoder.json", "vocabularies.parquet"]


def test_the_mean_of_a_given_task_is_over_its_parents_positives(encoder: Encoder, rows: pa.Table) -> None:
    click, buy = (np.array(rows[f"label_{name}"]) for name in ("click", "buy"))
    assert encoder.label_means["buy"] == pytest.approx(buy[click == 1].mean())
