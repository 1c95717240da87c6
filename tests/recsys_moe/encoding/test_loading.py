"""Every row once an epoch, in an order that seed and epoch decide, from any step on, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_moe.batch import Batch
from recsys_moe.config import Feature, ModelConfig, Task
from recsys_moe.encoding import EncodedRows, Encoder, Loader, loading
from recsys_moe.errors import UserError
from tests.recsys_moe.conftest import model_config, raw_rows

PIECE = 8


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PIECE_ROWS", PIECE)


@pytest.fixture(scope="module")
def encoded(encoder: Encoder, rows: pa.Table) -> pa.Table:
    return encoder.encode(rows)


def equal(left: Batch, right: Batch) -> bool:
    return all(torch.equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(Batch))


def order(batches: Iterable[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.row.tolist()]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 90),
    batch_size=st.integers(3, 40),
    buffer_rows=st.integers(1, 100),
    shuffle=st.one_of(st.none(), st.integers(0, 3)),
    world=st.integers(1, 3),
    data=st.data(),
)
def test_steps_are_the_same_whatever_the_first_and_whoever_reads_them(
    encoder: Encoder,
    encoded: pa.Table,
    rows: int,
    batch_size: int,
    buffer_rows: int,
    shuffle: int | None,
    world: int,
    data: st.DataObject,
) -> None:
    some, more = encoded.slice(0, rows), {"shuffle": shuffle, "buffer_rows": buffer_rows}
    whole = Loader(encoder, some, batch_size, **more)
    batches = list(whole.batches(5))
    assert len(batches) == whole.steps == -(-rows // batch_size)
    assert sorted(order(batches)) == list(range(rows))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    first = data.draw(st.integers(0, len(batches)))
    shares = [Loader(encoder, some, batch_size, **more, rank=rank, world=world) for rank in range(world)]
    for rank, share in enumerate(shares):
        mine = list(share.batches(5, first))
        assert len(mine) == max(0, share.steps - first)
        for part, batch in zip(mine, batches[first:], strict=False):
            assert part.row.tolist() == batch.row[rank::world].tolist()
            assert equal(part, encoder.to_batch(_numbered(some).take(part.row.numpy())))
    left_out = batches[shares[0].steps :]
    assert all(len(batch) < world for batch in left_out)


def _numbered(encoded: pa.Table) -> pa.Table:
    return encoded.append_column("row", pa.array(np.arange(len(encoded))))


def test_the_order_is_another_for_another_seed_or_epoch(encoder: Encoder, encoded: pa.Table) -> None:
    def drawn(seed: int | None, epoch: int, buffer_rows: int = 5000) -> list[int]:
        return order(Loader(encoder, encoded, 300, shuffle=seed, buffer_rows=buffer_rows).batches(epoch))

    assert drawn(None, 3) == list(range(2000))
    assert drawn(1, 0) == drawn(1, 0)
    assert len({tuple(drawn(seed, epoch, size)) for seed in (1, 2) for epoch in (0, 1) for size in (80, 5000)}) == 8


def test_what_fits_into_a_buffer_is_shuffled_as_a_whole(encoder: Encoder, encoded: pa.Table) -> None:
    """Where a row comes has nothing to do with where it was; 0.1 is 4.5 deviations off."""
    drawn = order(Loader(encoder, encoded, 300, shuffle=1).batches())
    assert abs(np.corrcoef(drawn, np.arange(2000))[0, 1]) < 0.1


def test_no_more_rows_are_held_than_a_buffer_has(encoder: Encoder, encoded: pa.Table) -> None:
    """Shuffled in buffers of 80 rows, so that every 80 rows are ten whole pieces."""
    drawn = np.array(order(Loader(encoder, encoded, 300, shuffle=1, buffer_rows=80).batches()))
    pieces = np.sort(drawn.reshape(-1, 80) // PIECE, axis=1)
    assert (pieces[:, ::PIECE] == pieces[:, PIECE - 1 :: PIECE]).all()
    assert len(np.unique(pieces)) == 2000 // PIECE


def test_a_file_gives_the_batches_of_the_table(encoder: Encoder, rows: pa.Table, tmp_path: Path) -> None:
    cuts = [rows.slice(0, 3), rows.slice(3, 0), rows.slice(3, 500), rows.slice(503)]
    written = EncodedRows.write(tmp_path / "rows.arrow", encoder, cuts)
    assert EncodedRows.open(tmp_path / "rows.arrow") == written
    assert written.num_rows == len(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.arrow"]
    table = Loader(encoder, encoder.encode(rows), 300, shuffle=1, buffer_rows=80)
    file = Loader(encoder, written, 300, shuffle=1, buffer_rows=80)
    assert all(equal(*pair) for pair in zip(table.batches(), file.batches(), strict=True))


def test_rows_that_are_fitted_and_written_are_asked_for_once(rows: pa.Table, tmp_path: Path) -> None:
    """With the dictionaries of Parquet, of which every block has its own."""
    config, path = model_config(), tmp_path / "rows.arrow"
    coded = [block.set_column(0, "user_id", block["user_id"].dictionary_encode()) for block in rows.to_batches(300)]
    encoder, written = EncodedRows.write_fitted(path, partial(Encoder.fit, config), iter(coded))
    apart = Encoder.fit(config, coded)
    twice = EncodedRows.write(tmp_path / "twice.arrow", apart, coded)
    assert encoder.vocabularies == apart.vocabularies
    assert (encoder.scalers, encoder.label_means) == (apart.scalers, apart.label_means)
    assert path.read_bytes() == twice.path.read_bytes()
    assert written.num_rows == len(rows)
    assert {file.name for file in tmp_path.iterdir()} == {"rows.arrow", "twice.arrow"}


def test_what_cannot_be_fitted_leaves_no_file(rows: pa.Table, tmp_path: Path) -> None:
    whole, lacking = rows.to_batches()[0], rows.drop_columns(["country"]).to_batches()[0]
    for blocks, message in (([], "no rows"), ([lacking, lacking], "country"), ([whole.slice(0, 0)], "no rows")):
        with pytest.raises(UserError, match=message):
            EncodedRows.write_fitted(tmp_path / "rows.arrow", partial(Encoder.fit, model_config()), blocks)
        assert not list(tmp_path.iterdir())


def test_a_file_without_rows_has_no_steps(encoder: Encoder, rows: pa.Table, tmp_path: Path) -> None:
    for tables in ([], [rows.slice(0, 0)]):
        EncodedRows.write(tmp_path / "rows.arrow", encoder, tables)
        loader = Loader(encoder, EncodedRows.open(tmp_path / "rows.arrow"), 300, shuffle=1)
        assert (loader.num_rows, loader.steps, list(loader.batches())) == (0, 0, [])


def test_a_file_that_is_not_finished_is_not_there(encoder: Encoder, rows: pa.Table, tmp_path: Path) -> None:
    def tables() -> Iterator[pa.Table]:
        yield rows
        yield rows.drop_columns(["country"])

    with pytest.raises(UserError, match="country"):
        EncodedRows.write(tmp_path / "rows.arrow", encoder, tables())
    with pytest.raises(FileNotFoundError):
        EncodedRows.open(tmp_path / "rows.arrow")


def test_a_batch_has_a_row_for_each_process(encoder: Encoder, encoded: pa.Table) -> None:
    with pytest.raises(UserError, match=r"training\.batch_size: 2 rows.*3 processes"):
        Loader(encoder, encoded, 2, world=3)


def test_bags_of_several_values_go_with_their_rows(encoder: Encoder) -> None:
    tags = Feature(name="tags", kind="multivalued", side="item")
    config = ModelConfig(features=(tags,), tasks=(Task(name="click"),))
    table = pa.table({"tags": [[f"t{n}"] * (n % 4) for n in range(50)]})
    encoder = Encoder.fit(config, table.to_batches())
    expected = encoder.encode(table)["index_tags"].to_pylist()
    for batch in Loader(encoder, encoder.encode(table), 7, shuffle=1, buffer_rows=16).batches():
        bags = torch.split(batch.values, batch.lengths.tolist())
        assert [bag.tolist() for bag in bags] == [expected[row] for row in batch.row.tolist()]


def test_a_model_may_read_one_thing_only() -> None:
    config = ModelConfig(features=(Feature(name="age", kind="numeric", side="user"),), tasks=model_config().tasks[:1])
    rows = pa.table({"age": np.arange(30.0)})
    encoder = Encoder.fit(config, rows.to_batches())
    batches = list(Loader(encoder, encoder.encode(rows), 20, shuffle=1).batches())
    assert [batch.values.numel() for batch in batches] == [0, 0]
    assert sorted(torch.cat([batch.dense for batch in batches])[:, 0].tolist()) == sorted(
        encoder.to_batch(encoder.encode(rows)).dense[:, 0].tolist()
    )


def test_dictionaries_as_parquet_has_them_are_encoded_alike(encoder: Encoder) -> None:
    rows = raw_rows(500)
    coded = rows.set_column(0, "user_id", rows["user_id"].combine_chunks().dictionary_encode())
    assert encoder.encode(coded).equals(encoder.encode(rows))
    fitted = (Encoder.fit(model_config(), table.to_batches(max_chunksize=7)) for table in (rows, coded))
    assert len({tuple(one.vocabularies["user_id"].to_pylist()) for one in fitted}) == 1
