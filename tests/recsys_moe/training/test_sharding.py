"""One process and two: the same tables, the same losses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recsys_moe.checkpoint import Ranker
from recsys_moe.embeddings import TorchrecEmbeddings
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError
from recsys_moe.training.pipelining import Overlapped
from recsys_moe.training.sharding import process_group, quiet, shard
from tests.recsys_moe.conftest import model_config, raw_rows
from tests.recsys_moe.training.fitting import TRAINING, changed, fit_on, small_encoder, weighted

ROWS = 5_000
BOTH = TRAINING.model_copy(update={"epochs": 2, "checkpoint_minutes": 1e-9, "loss_weights": "uncertainty"})


WORKER = """
import json, os, sys
from pathlib import Path
from recsys_moe import checkpoint
from recsys_moe.encoding import Loader
from recsys_moe.training import fit
from tests.recsys_moe.conftest import raw_rows
from tests.recsys_moe.training.fitting import small_encoder, weighted
from tests.recsys_moe.training.test_sharding import BOTH, ROWS

rank, rows, folder, stop = int(os.environ["RANK"]), weighted(raw_rows(ROWS)), Path(sys.argv[1]), int(sys.argv[2])
encoder = small_encoder(rows)
losses = {}

def seen(record):
    losses[int(record["step"])] = record["loss"]
    if record["step"] == stop:
        (folder / f"losses-{rank}.json").write_text(json.dumps(losses))
        os._exit(9)

loader = Loader(encoder, encoder.encode(rows), 256, shuffle=0, rank=rank, world=2)
done = fit(encoder.config, BOTH, encoder, loader, state=folder / "state", resume=True, on_step=seen)
checkpoint.save(folder / str(rank), encoder, done.model, done.table_sums)
(folder / f"losses-{rank}-{stop}.json").write_text(json.dumps(losses))
"""


def two_workers(folder: Path, stop: int) -> list[tuple[int, str]]:
    """Exit codes and error output of two processes that train together, and end at step `stop` as if killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "PYTHONPATH": "."}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, str(folder), str(stop)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [(worker.wait(timeout=250), worker.communicate()[1]) for worker in workers]


def losses_in(path: Path) -> dict[int, float]:
    return {int(step): loss for step, loss in json.loads(path.read_text()).items()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_have_the_loss_curve_of_one_and_go_on_after_a_kill(tmp_path: Path) -> None:
    killed = two_workers(tmp_path, 25)
    assert [code for code, _ in killed] == [9, 9], killed
    done = two_workers(tmp_path, 0)
    assert [code for code, _ in done] == [0, 0], done
    weights = [(tmp_path / str(rank) / "weights.safetensors").read_bytes() for rank in range(2)]
    assert weights[0] == weights[1]

    rows, alone = weighted(raw_rows(ROWS)), {}
    fit_on(small_encoder(rows), rows, BOTH, on_step=lambda record: alone.update({record["step"]: record["loss"]}))
    before, after = losses_in(tmp_path / "losses-0.json"), losses_in(tmp_path / "losses-0-0.json")
    assert min(after) == 21  # the checkpoint at step 20 was the last that both had agreed on
    together = before | after
    assert sorted(together) == list(range(1, 41))
    for step in together:
        assert together[step] == pytest.approx(alone[step], rel=1e-4), step


def test_tables_that_do_not_fit_are_said() -> None:
    device, tables = torch.device("cpu"), TorchrecEmbeddings([10**12], 16)
    with process_group(device), quiet(), pytest.raises(UserError, match=r"tables of 59604\.6 GiB do not fit into"):
        shard(torch.nn.ModuleDict({"embeddings": tables}), tables, TRAINING, device)


def test_a_model_may_have_no_table() -> None:
    """It reads numbers alone, and can be written, read and gone on from."""
    rows = raw_rows(600)
    numbers = [feature for feature in model_config().features if feature.kind == "numeric"]
    config = model_config(features=numbers, segments=None)
    encoder = changed(Encoder.fit(config, rows.to_batches()))
    fitted = fit_on(encoder, rows, TRAINING)
    assert fitted.model.embeddings.weight.shape == (0, config.embedding_dim)
    again = fit_on(encoder, rows, TRAINING, start=Ranker(encoder, fitted.model, fitted.table_sums))
    assert again.history[-1]["loss"] < fitted.history[-1]["loss"]


def test_tables_start_from_generators_of_their_own(encoder: Encoder) -> None:
    """With no rate at all, tables end as they began."""
    still = TRAINING.model_copy(update={"embedding_learning_rate": 1e-30, "epochs": 1})
    rows = raw_rows(256)
    tables = fit_on(encoder, rows, still).model.state_dict()["embeddings.weight"].split(encoder.vocab_sizes)
    assert all(0.04 < float(table.abs().max()) <= 0.05 for table in tables if len(table) > 10)
    again = fit_on(encoder, rows, still).model.state_dict()["embeddings.weight"]
    assert torch.equal(torch.cat(tables), again)
    assert not torch.equal(tables[0][:20], tables[2][:20])


def test_torchrecs_pipeline_gives_the_same_as_a_step_after_the_other(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what runs on CUDA; on the CPU it overlaps nothing."""
    rows, seen = raw_rows(1_000), []
    training = TRAINING.model_copy(update={"epochs": 2, "validations": 2})
    first = fit_on(encoder, rows, training).model.state_dict()
    monkeypatch.setattr("recsys_moe.training.trainer.InTurn", Overlapped)
    second = fit_on(encoder, rows, training, on_step=seen.append).model.state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert [record["step"] for record in seen] == list(range(1, 9))
