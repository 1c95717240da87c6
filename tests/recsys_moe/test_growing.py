"""An encoder that goes on from another: what the other knew stays where it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys_moe.config import (
    BehaviouralSegments,
    BucketSegments,
    ColumnSegments,
    CrossSegments,
    Feature,
    ModelConfig,
    Segments,
    Task,
)
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError

COLOUR = Feature(name="colour", kind="categorical", side="item")
TAGS = Feature(name="tags", kind="multivalued", side="item")
PRICE = Feature(name="price", kind="numeric", side="item")
BY = BehaviouralSegments(counts=("rows",), k=2)


def config_of(*features: Feature, segments: Segments | None = None, **more: Any) -> ModelConfig:
    return ModelConfig(
        features=features or (COLOUR, TAGS, PRICE), tasks=(Task(name="click"),), segments=segments, **more
    )


def rows_of(colours: list[str | None], tags: list[list[str]] | None = None, prices: Any = None) -> pa.Table:
    count = len(colours)
    price = pa.array(prices or [1.0] * count, pa.float64())
    return pa.table({"colour": colours, "tags": tags or [["t"]] * count, "price": price})


def fit(rows: pa.Table, config: ModelConfig | None = None, previous: Encoder | None = None) -> Encoder:
    return Encoder.fit(config or config_of(), rows.to_batches(max_chunksize=2), previous)


def test_known_values_keep_their_index_and_new_ones_come_after_the_frequent_first() -> None:
    first = fit(rows_of(["b", "b", "a", "gone"], [["x", "y"], ["x"], [], []]))
    second = fit(rows_of(["new", "often", "a", "often"], [["z"], ["y"], ["z"], ["w"]]), previous=first)
    assert first.vocabularies["colour"].to_pylist() == ["b", "a", "gone"]
    assert second.vocabularies["colour"].to_pylist() == ["b", "a", "gone", "often", "new"]
    assert second.vocabularies["tags"].to_pylist() == ["x", "y", "z", "w"]
    old = rows_of(["b", "a", "gone"])
    assert second.encode(old)["index_colour"].equals(first.encode(old)["index_colour"])


def test_only_new_values_must_be_frequent() -> None:
    first = fit(rows_of(["a", "b"]))
    second = fit(rows_of(["c", "c", "d", "a"]), config_of(min_count=2), first)
    assert second.vocabularies["colour"].to_pylist() == ["a", "b", "c"]


def test_a_chain_of_encoders_never_moves_an_index() -> None:
    draw, known, previous = np.random.default_rng(0), [], None
    for _ in range(4):
        previous = fit(rows_of([f"c{n}" for n in draw.integers(0, 40, 30)]), previous=previous)
        values = previous.vocabularies["colour"].to_pylist()
        assert values[: len(known)] == known
        assert len(set(values)) == len(values)
        known = values


def test_scalers_are_of_the_new_rows_or_of_before_where_these_have_no_value() -> None:
    first = fit(rows_of(["a", "b"], prices=[1.0, 3.0]))
    assert fit(rows_of(["a", "b"], prices=[10.0, 30.0]), previous=first).scalers["price"].mean == 20.0
    assert fit(rows_of(["a", "b"], prices=[None, None]), previous=first).scalers == first.scalers


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (ColumnSegments(column="colour"), ["unknown", "b", "a", "c"]),
        (BucketSegments(column="price", bins=(2.0,)), ["unknown", "under 2", "from 2"]),
        (CrossSegments(columns=("colour", "price"), parent="colour"), ["unknown", "a:*", "b:*", "a:1", "b:1"]),
    ],
    ids=["column", "bucket", "cross"],
)
def test_segments_keep_their_index(by: Any, expected: list[str]) -> None:
    config = config_of(segments=Segments(by=by, min_rows=2))
    first = fit(rows_of(["a", "b", "a", "b", "b"], prices=[1.0] * 5), config)
    second = fit(rows_of(["c", "c", "d"], prices=[5.0, 6.0, 1.0]), config, first)
    assert second.segment_names[: first.num_segments] == first.segment_names
    assert set(expected) <= set(second.segment_names)


def behaviour_rows(*counts: int) -> pa.Table:
    return pa.table({"rows": [float(count) for count in counts]})


def test_groups_of_behaviour_stay_what_they_were() -> None:
    feature = Feature(name="rows", kind="numeric", side="user")
    config = config_of(feature, segments=Segments(by=BY, min_rows=3))
    first = fit(behaviour_rows(1, 1, 2, 1, 500, 600), config)
    assert first.segment_names == ("unknown", "behaviour 1")  # the second group is too thin
    second = fit(behaviour_rows(5000, 400, 600, 500, 500), config, first)
    assert second.behaviour is first.behaviour
    assert second.segment_names == ("unknown", "behaviour 1", "behaviour 2")
    assert second.segment_of(behaviour_rows(1, 500))[0].to_pylist() == ["behaviour 1", "behaviour 2"]


@pytest.mark.parametrize(
    ("features", "named"),
    [
        ((COLOUR, TAGS), r"'price' \(numeric\)"),
        ((COLOUR, TAGS, PRICE, Feature(name="size", kind="numeric", side="item")), r"'size' \(numeric\)"),
        ((COLOUR.model_copy(update={"hash_buckets": 9}), TAGS, PRICE), r"'colour' \(categorical, hash_buckets 9\)"),
        ((Feature(name="colour", kind="multivalued", side="item"), TAGS, PRICE), r"'colour' \(multivalued\)"),
        ((TAGS, COLOUR, PRICE), r"'tags' \(multivalued\), 'colour' \(categorical\)"),
    ],
    ids=["gone", "new", "hashed", "other kind", "other order"],
)
def test_other_features_are_refused(features: tuple[Feature, ...], named: str) -> None:
    with pytest.raises(UserError, match=rf"features: .*{named}.* differ .*train a new one"):
        fit(rows_of(["a"]), config_of(*features), fit(rows_of(["a"])))


def test_other_segments_are_refused() -> None:
    first = fit(rows_of(["a"]), config_of(segments=Segments(by=ColumnSegments(column="colour"), min_rows=1)))
    with pytest.raises(UserError, match=r"segments\.by: differs .*\(colour\)"):
        fit(rows_of(["a"]), config_of(), first)
    thicker = config_of(segments=Segments(by=ColumnSegments(column="colour"), min_rows=5))
    assert fit(rows_of(["a"]), thicker, first).segment_names == ("unknown", "a")


def test_a_feature_may_have_a_minimum_count_of_its_own() -> None:
    rare = COLOUR.model_copy(update={"min_count": 2})
    rows = rows_of(["a", "b", "b", "c"], [["x"], ["y"], ["x"], []])
    encoder = fit(rows, config_of(rare, TAGS, min_count=1))
    assert encoder.vocabularies["colour"].to_pylist() == ["b"]
    assert encoder.vocabularies["tags"].to_pylist() == ["x", "y"]
    lenient = fit(rows, config_of(COLOUR.model_copy(update={"min_count": 1}), TAGS, min_count=2))
    assert lenient.vocab_sizes == (4, 2)
