from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys_moe.config import Feature, ModelConfig, Task
from recsys_moe.encoding import Encoder
from recsys_moe.encoding.hashing import MULTIPLIER, bucket_of, hash_of

DEVICE = Feature(name="device", kind="categorical", side="user", hash_buckets=50)

KNOWN = {
    "": 0x0,
    "7": 0x6231EAB2525BA011,
    "u1": 0x2F921E7111DF0AEE,
    "user 12": 0x446AB6F88E0604D7,
    "straße": 0x7266205D3BC3B2C2,
    "视频": 0x6A4788F76837BA8F,
}
"""Models in use depend on these: they may never change."""


def by_definition(text: str) -> int:
    """The hash as its module describes it, byte by byte."""
    content, most = text.encode(), 2**64
    value = (sum((byte + 1) * pow(MULTIPLIER, i, most) for i, byte in enumerate(content)) + len(content)) % most
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % most
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % most
    return value ^ (value >> 31)


def hashed(buckets: int = 50) -> Encoder:
    feature = DEVICE.model_copy(update={"hash_buckets": buckets})
    config = ModelConfig(features=(feature,), tasks=(Task(name="click"),))
    return Encoder.fit(config, pa.table({"device": ["a"]}).to_batches())


def test_hashes_never_change() -> None:
    assert dict(zip(KNOWN, hash_of(pa.array(list(KNOWN))).tolist(), strict=True)) == KNOWN
    assert {text: by_definition(text) for text in KNOWN} == KNOWN


def test_each_text_is_hashed_by_itself() -> None:
    texts = ["x" * n for n in (0, 3, 1000, 0, 1)] + ["\x00", "\x00\x00", "é"]
    together = pa.array(["before", *texts, "after"]).slice(1, len(texts))
    assert hash_of(together).tolist() == [by_definition(text) for text in texts]
    assert len(set(hash_of(pa.array(["ab", "ba", "a", "\x00", "\x00\x00", ""])).tolist())) == 6


@pytest.mark.parametrize("longest", [1, 7, 8, 9, 40])
def test_many_short_texts_are_hashed_as_few_are(longest: int) -> None:
    draw = np.random.default_rng(longest)
    texts = ["".join(draw.choice(list("a0é视\x00"), draw.integers(longest + 1))) for _ in range(3000)] + ["", "x", ""]
    assert hash_of(pa.array(["before", *texts, "after"]).slice(1, len(texts))).tolist() == list(
        map(by_definition, texts)
    )
    missing = hash_of(pa.array([None if text == "x" else text for text in texts])).tolist()
    assert missing == [by_definition(text) if text != "x" else 0 for text in texts]


def test_no_texts_have_no_hashes() -> None:
    assert hash_of(pa.array([], pa.string())).tolist() == []
    assert hash_of(pa.array([None, ""], pa.string())).tolist() == [0, 0]


def test_similar_texts_spread_evenly() -> None:
    texts = pa.array([f"u{8 * n}" for n in range(200_000)])
    counts = np.bincount(bucket_of(texts, 256).to_numpy())
    assert counts[0] == 0
    assert counts[1:].std() == pytest.approx((200_000 / 256) ** 0.5, rel=0.15)


def test_a_value_has_one_bucket_whatever_its_type_and_missing_is_0() -> None:
    encoder = hashed()
    expected = [1 + KNOWN["7"] % 50, 0, 1 + KNOWN["7"] % 50]
    for values in (pa.array(["7", None, "7.0"]), pa.array([7.0, float("nan"), 7.0]), pa.array([7, None, 7])):
        assert encoder.encode(pa.table({"device": values}))["index_device"].to_pylist() == expected
    assert encoder.encode(pa.table({"device": ["", "u1"]}))["index_device"].to_pylist() == [0, 1 + KNOWN["u1"] % 50]


def test_it_needs_no_vocabulary() -> None:
    encoder = hashed(buckets=9)
    assert encoder.vocab_sizes == (10,)
    assert encoder.vocabularies == {}
    indices = encoder.encode(pa.table({"device": [f"new {n}" for n in range(500)]}))["index_device"].to_numpy()
    assert set(indices) == set(range(1, 10))


def test_lists_can_be_hashed_too() -> None:
    tags = Feature(name="tags", kind="multivalued", side="item", hash_buckets=100)
    config = ModelConfig(features=(tags,), tasks=(Task(name="click"),))
    rows = pa.table({"tags": [["7", "u1"], [], None, ["7"]]})
    encoded = Encoder.fit(config, rows.to_batches()).encode(rows)
    seven, user = 1 + KNOWN["7"] % 100, 1 + KNOWN["u1"] % 100
    assert encoded["index_tags"].to_pylist() == [[seven, user], [0], [0], [seven]]


def test_a_loaded_encoder_hashes_alike(tmp_path: Path) -> None:
    encoder, rows = hashed(), pa.table({"device": [f"d{n}" for n in range(100)]})
    encoder.save(tmp_path)
    assert Encoder.load(tmp_path).encode(rows).equals(encoder.encode(rows))


def test_numbers_are_not_hashed() -> None:
    with pytest.raises(ValueError, match="price: hash_buckets is for ids and names"):
        Feature(name="price", kind="numeric", side="item", hash_buckets=10)
