"""A version as others get it: downloaded from a server into an environment that has only what it requires."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.tracking import MlflowClient

from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.promote import rollback
from pipelines.registry import Registry
from pipelines.score import score
from pipelines.tables import Tables
from pipelines.train import train
from recsys_moe import checkpoint, digests
from recsys_moe.errors import UserError
from tests.pipelines.conftest import Tiny

USE = """
import sys
import mlflow, pandas as pd
model, rows = mlflow.pyfunc.load_model(sys.argv[1]), pd.read_parquet(sys.argv[2])
print(model.predict(rows).to_json(orient="values"))

other = rows[rows.columns[::-1]].assign(extra=[object()] * len(rows), again=1.5)
pd.testing.assert_frame_equal(model.predict(other), model.predict(rows))
print(model.predict(rows.assign(user="nobody", item=123456, tab=pd.Categorical(["elsewhere"] * len(rows)))).to_json())
print(model.predict(rows.assign(price=pd.array([None] + [7] * (len(rows) - 1), dtype="Int64"))).to_json())
print(model.predict(rows.assign(**{name: None for name in rows.columns})).to_json())
for wrong in (rows.drop(columns="price"), rows.assign(price="cheap"), rows.assign(tags="a|b"), rows[["user"]]):
    try:
        model.predict(wrong)
    except ValueError as error:
        print(str(error))
heavy = {"torchrec", "fbgemm_gpu", "sklearn", "duckdb", "deltalake", "pipelines"}
print(sorted(heavy & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server that keeps the files itself."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        try:
            while not _answers(address):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.3)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # asked to end, it waits for its clients' open connections
            process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def config(tiny: Tiny, server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Recommender:
    """A recommender with one version, which serves."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    config = tiny(name=request.node.name[:20], training={"batch_size": 16, "threads": 1})
    for number in range(4):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    version = train(config, tiny.day(3))["version"]
    rollback(config, "the first", to=version)
    return config


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_version_serves_in_an_environment_of_its_own(
    config: Recommender, tiny: Tiny, server: str, tmp_path: Path
) -> None:
    folder = tmp_path / "downloaded"
    mlflow.artifacts.download_artifacts(f"models:/{config.name}@champion", dst_path=str(folder), tracking_uri=server)
    assert pickles_in(folder) == []
    registry = Registry(config)
    rows = Tables(config.storage).read_day("examples", tiny.day(3)).slice(0, 7)
    ranker = checkpoint.load(registry.checkpoint(registry.version(1)))
    pq.write_table(rows.select(ranker.config.columns), tmp_path / "rows.parquet")
    tiny.folder.joinpath("var").rename(tiny.folder / "away")
    said = _alone(folder, tmp_path)
    assert json.loads(said[0]) == [pytest.approx(row, abs=1e-6) for row in ranker.predict(rows).tolist()]
    for line in said[1:4]:
        answer = json.loads(line)
        assert list(answer) == ["click", "like"]
        assert all(0.0 < value < 1.0 for column in answer.values() for value in column.values())
    assert said[4] == "the rows have no column 'price', which the model reads"
    assert said[5].startswith("column 'price' should hold numbers: ")
    assert said[6].startswith("column 'tags' should hold lists of texts or numbers, not ")
    assert said[7].startswith("the rows have no column 'item', 'tab', 'band', 'tags', 'price' and ")
    assert said[8:] == ["[]"]


def _alone(model: Path, folder: Path) -> list[str]:
    """What `USE` prints in a new environment: torch as this machine has it, then the model's own requirements."""
    python = folder / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True, timeout=300)
    index = ["--index-url", os.environ["TORCH_INDEX"]] if "TORCH_INDEX" in os.environ else []
    wanted = f"torch=={torch.__version__.split('+')[0]}"
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--no-input"]
    subprocess.run([*pip, *index, wanted], check=True, timeout=900)
    subprocess.run([*pip, "-r", model / "requirements.txt"], check=True, timeout=900)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW"))}
    done = subprocess.run(
        [python, "-P", "-c", USE, model, folder / "rows.parquet"],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_changed_artifact_store_is_noticed(
    config: Recommender, tiny: Tiny, server: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whoever can write to the store, but not to MLflow's database, cannot put another model in a version's place."""
    registry, client = Registry(config), MlflowClient(server)
    version = registry.version(1)
    tags = client.get_model_version(config.name, "1").tags
    assert tags["checkpoint.sha256"] == digests.digest(registry.checkpoint(version))
    assert tags["checkpoint.sha256"] == client.get_run(version.run_id).data.tags["checkpoint.sha256"]
    score(config, tiny.day(3))
    stored = tmp_path_factory.getbasetemp().glob("server*/files/**/weights.safetensors")
    weights = max(stored, key=lambda path: path.stat().st_mtime)
    other = bytearray(weights.read_bytes())
    other[-1] ^= 1
    weights.write_bytes(other)
    with pytest.raises(UserError, match=r"damaged \(weights\.safetensors: not what was saved\)"):
        score(config, tiny.day(3))
    listed = checkpoint.FORMAT | {"sha256": digests.digests(weights.parent)}
    (weights.parent / digests.LIST).write_text(json.dumps(listed))
    with pytest.raises(UserError, match="is not the checkpoint that was registered as version 1") as refused:
        score(config, tiny.day(3))
    assert "\n" not in str(refused.value)


def pickles_in(folder: Path) -> list[str]:
    """The files that are pickles, or archives that may hold some, whatever they are called."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and _is_pickle(path))


def _is_pickle(path: Path) -> bool:
    content = path.read_bytes()
    if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".npz", ".pyc", ".so"}:
        return True
    if zipfile.is_zipfile(path) or content.startswith((b"PK\3\4", b"\x1f\x8b", b"\x93NUMPY")):
        return True
    if len(content) > 1 and content[0] == 0x80 and content[1] <= pickle.HIGHEST_PROTOCOL:
        return True
    try:
        return sum(1 for _ in pickletools.genops(content)) > 1  # protocol 0 is text, and begins with nothing of its own
    except Exception:
        return False


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_scan_finds_pickles(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps({"a": [1, 2.5, Path("x")]}, protocol))
    (tmp_path / "notes.txt").write_text("no pickle.\n")
    torch.save({"a": torch.zeros(2)}, tmp_path / "archive.txt")
    assert pickles_in(tmp_path) == ["archive.txt", "weights.safetensors"]
