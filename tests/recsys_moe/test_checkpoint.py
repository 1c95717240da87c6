from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys_moe import checkpoint, digests
from recsys_moe.checkpoint import Ranker
from recsys_moe.errors import UserError
from tests.recsys_moe.conftest import raw_rows


def test_a_loaded_model_predicts_the_same(ranker: Ranker, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", ranker.encoder, ranker.model)
    again, rows = checkpoint.load(tmp_path / "model"), raw_rows(500, seed=3)
    assert np.array_equal(again.predict(rows), ranker.predict(rows))
    assert again.config == ranker.config


def test_it_keeps_the_balance_bias_and_the_segments(ranker: Ranker, tmp_path: Path) -> None:
    """Both decide what a row runs, and neither has a gradient that would bring it back."""
    rows = raw_rows(300, seed=3)
    gates = ranker.model.gates
    gates.bias += torch.tensor([2.0, 0.0, -1.0, 0.0])
    checkpoint.save(tmp_path / "model", ranker.encoder, ranker.model)
    again = checkpoint.load(tmp_path / "model")
    batch = ranker.encoder.to_batch(ranker.encoder.encode(rows))
    x = ranker.model.inputs(batch)
    chosen = again.model.gates(x, batch.segment).chosen
    assert torch.equal(chosen, gates(x, batch.segment).chosen)
    gates.bias.zero_()
    assert not torch.equal(chosen, gates(x, batch.segment).chosen)  # the bias did decide
    assert again.encoder.segment_names == ranker.encoder.segment_names
    for before, after in zip(ranker.encoder.segment_of(rows), again.encoder.segment_of(rows), strict=True):
        assert before.equals(after)
    for kind in ("down", "up"):
        before, after = (getattr(r.model.experts.segments, kind)[0] for r in (ranker, again))
        assert torch.equal(before, after)


def test_a_checkpoint_of_before_sampling_hashing_and_digests_is_read(ranker: Ranker, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", ranker.encoder, ranker.model)
    (tmp_path / "model" / "format.json").write_text(json.dumps(checkpoint.FORMAT))
    path, rows = tmp_path / "model" / "config.json", raw_rows(50)
    config = json.loads(path.read_text())
    del config["sampled"]
    for feature in config["features"]:
        del feature["hash_buckets"], feature["min_count"]
    path.write_text(json.dumps(config))
    assert np.array_equal(checkpoint.load(tmp_path / "model").predict(rows), ranker.predict(rows))


def test_no_pickle_and_no_half_written_folder_is_left(ranker: Ranker, tmp_path: Path) -> None:
    for _ in range(2):
        checkpoint.save(tmp_path / "model", ranker.encoder, ranker.model)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "encoder.json", "format.json", "vocabularies.parquet", "weights.safetensors"}


def test_prediction_does_not_depend_on_blocks(ranker: Ranker, rows: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ranker.predict(rows)
    monkeypatch.setattr(checkpoint, "PREDICT_ROWS", 77)
    assert ranker.predict(rows) == pytest.approx(whole, abs=1e-6)
    assert ranker.predict(rows.slice(0, 0)).shape == (0, 2)


@pytest.mark.parametrize("content", [None, "not json", "{}", '{"format": "recsys_moe checkpoint", "version": 99}'])
def test_what_is_not_ours_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "format.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabularies.parquet", "encoder.json", "config.json"])
@pytest.mark.parametrize("damage", [b"", b"rubbish", None], ids=["empty", "rubbish", "gone"])
def test_a_damaged_file_is_a_users_error(name: str, damage: bytes | None, ranker: Ranker, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", ranker.encoder, ranker.model)
    file = tmp_path / "model" / name
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(tmp_path / "model")


def _other_weights(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "weights.safetensors")


def _fewer_ids(folder: Path) -> None:
    table = pq.read_table(folder / "vocabularies.parquet")
    pq.write_table(pa.concat_tables([table.slice(1), table.slice(0, 1)]), folder / "vocabularies.parquet")


def _an_optimizer_of_another(folder: Path) -> None:
    save_file({"table_sums": torch.zeros(3)}, folder / checkpoint.OPTIMIZER)


@pytest.mark.parametrize("change", [_other_weights, _fewer_ids, _an_optimizer_of_another])
def test_files_that_can_be_read_but_are_not_what_was_saved_are_refused(
    change: Callable[[Path], None], ranker: Ranker, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    checkpoint.save(folder, ranker.encoder, ranker.model)
    (folder / ".DS_Store").write_bytes(b"of a desktop")
    checkpoint.load(folder, to_train=True)
    saved = digests.digest(folder)
    change(folder)
    with pytest.raises(UserError, match=r"damaged \([a-z.]+: not what was saved\)") as refused:
        checkpoint.load(folder, to_train=True)
    assert "\n" not in str(refused.value)
    listed = checkpoint.FORMAT | {"sha256": digests.digests(folder)}  # as somebody would who means it
    (folder / digests.LIST).write_text(json.dumps(listed))
    assert digests.digest(folder) != saved


@pytest.mark.parametrize("listed", ["[]", '{"format": 1}', '"text"', '{"sha256": 5}'])
def test_a_list_that_is_none_is_a_users_error(listed: str, ranker: Ranker, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", ranker.encoder, ranker.model)
    (tmp_path / "model" / digests.LIST).write_text(listed)
    with pytest.raises(UserError, match=str(tmp_path)):
        checkpoint.load(tmp_path / "model")
    with pytest.raises(UserError, match="no checkpoint"):
        digests.digest(tmp_path)


def test_the_same_model_has_the_same_digest(ranker: Ranker, tmp_path: Path) -> None:
    for name in ("one", "other"):
        checkpoint.save(tmp_path / name, ranker.encoder, ranker.model)
    assert digests.digest(tmp_path / "one") == digests.digest(tmp_path / "other")


SERVE = """
import sys
from pathlib import Path

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchrec", "fbgemm_gpu", "pandas", "mlflow", "deltalake", "duckdb", "sklearn"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
import pyarrow.parquet as pq
from recsys_moe import checkpoint, scoring, routing, metrics
print(checkpoint.load(Path(sys.argv[1])).predict(pq.read_table(sys.argv[2])).shape)
"""


def test_serving_needs_neither_torchrec_nor_pandas(ranker: Ranker, rows: pa.Table, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", ranker.encoder, ranker.model)
    pq.write_table(rows.slice(0, 9), tmp_path / "rows.parquet")
    arguments = [sys.executable, "-c", SERVE, str(tmp_path / "model"), str(tmp_path / "rows.parquet")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.stdout == "(9, 2)\n", done.stderr


def test_reading_a_config_does_not_import_torch() -> None:
    code = "import sys, recsys_moe.config, recsys_moe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there() -> None:
    import recsys_moe

    assert all(getattr(recsys_moe, name).__name__ == name for name in recsys_moe.__all__)
    with pytest.raises(AttributeError, match="nothing_such"):
        recsys_moe.nothing_such  # noqa: B018
