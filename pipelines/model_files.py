"""A registered model's files: how they are made, and whether they are still what was registered."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

from recsys_moe.digests import LIST, digest
from recsys_moe.errors import UserError

DIGEST = "checkpoint.sha256"
"""Tag of a version, and of its run: the digest of its checkpoint."""
SERVING_NEEDS = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "torch")
_PACKAGE = Path(__file__).resolve().parent


def log_model(name: str, checkpoint: Path, example: pa.Table, tasks: Sequence[str]) -> None:
    """Make a checkpoint a version of the model `name`, of the run that is active: models from code, beside them the
    library's source; no pickle."""
    # Of any type, and none required: MLflow would refuse a whole number for a float, and tell of a missing column in a
    # message that holds the rows. The model says by itself what is wrong.
    any_type: Any = AnyType()  # type: ignore[no-untyped-call]
    inputs: list[Any] = [ColSpec(any_type, column, required=False) for column in example.column_names]
    outputs: list[Any] = [ColSpec(DataType.float, task) for task in tasks]
    with _no_bytecode():
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(_PACKAGE / "served_model.py"),
            artifacts={"checkpoint": str(checkpoint)},
            code_paths=[str(_PACKAGE.parent / "recsys_moe")],
            pip_requirements=[f"{package}=={installed(package).split('+')[0]}" for package in SERVING_NEEDS],
            signature=ModelSignature(Schema(inputs), Schema(outputs)),
            metadata={"columns": {field.name: str(field.type) for field in example.schema}},
            input_example=example.to_pandas(),
            registered_model_name=name,
        )


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """MLflow tries the code where the files lie that it uploads: what Python compiles there would go with them, and be
    run in place of the source."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def checkpoint_of(name: str, number: int, wanted: str | None) -> Path:
    """A local folder with a version's checkpoint, which must have the digest `wanted` where that is known.

    Raises:
        UserError: it has another, or its files are gone.
    """
    try:
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{number}")) / "artifacts" / "checkpoint"
    except (MlflowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the files of version {number} of {name!r} cannot be read ({reason}); restore the artifact store, or put "
            "another version in its place with `recsys-moe rollback --to`"
        ) from None
    if wanted is not None and (found := digest(folder)) != wanted:
        raise UserError(
            f"{folder}: is not the checkpoint that was registered as version {number} (SHA-256 of {LIST} is "
            f"{found[:12]}…, the version's tag {DIGEST} says {wanted[:12]}…); restore the artifact store or train again"
        )
    return folder
