"""The registered model's code: what MLflow runs when it loads a version (models from code, nothing is unpickled).

It needs `recsys_moe`, which lies beside it in the artifact, and torch, numpy, pandas, pyarrow, pydantic, safetensors;
neither torchrec nor fbgemm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from recsys_moe import checkpoint
from recsys_moe.config import ModelConfig
from recsys_moe.errors import UserError

_NAMED = 5
"""Missing columns that a message names; the rest is counted."""


class ServedRanker(PythonModel):
    """Raw columns in, one column of probabilities (or values) a task out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the checkpoint once, when the version is loaded."""
        self._ranker = checkpoint.load(Path(context.artifacts["checkpoint"]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Score rows.

        Args:
            context: unused; the checkpoint is read once.
            model_input: [B rows] with the raw columns that the model reads, in any order; others are passed over.
            params: unused.

        Returns: [B, T], a column a task.

        Raises:
            UserError: a column is missing or of a wrong type.
        """
        del context, params
        config = self._ranker.config
        said = self._ranker.predict(raw_table(config, model_input))
        return pd.DataFrame(said, columns=[task.name for task in config.tasks], index=model_input.index)


def raw_table(config: ModelConfig, rows: pd.DataFrame) -> pa.Table:
    """The columns that the model reads, as it reads them. The signature leaves it to this to say what is wrong: what
    MLflow says holds the rows, and it refuses whole numbers for a float.

    Raises:
        UserError: naming the column that is missing, is there twice, or is of a wrong type.
    """
    missing = [name for name in config.columns if name not in rows.columns]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise UserError(
            f"the rows have no column {', '.join(map(repr, missing[:_NAMED]))}{more}, which the model reads"
        )
    doubled = [name for name in config.columns if isinstance(rows[name], pd.DataFrame)]
    if doubled:
        raise UserError(f"the rows have more than one column {doubled[0]!r}")
    lists = {feature.name for feature in config.features if feature.kind == "multivalued"}
    return pa.table({name: _column(rows[name], name, name in lists) for name in config.columns})


def _column(values: pd.Series, name: str, is_list: bool) -> pa.Array:
    wanted = "lists of texts or numbers" if is_list else "texts or numbers"
    try:
        column = pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, OverflowError):
        kinds = sorted({type(value).__name__ for value in values.dropna()})
        raise UserError(f"column {name!r} should hold {wanted} of one type, not {', '.join(kinds)}") from None
    if not _is_readable(column.type, is_list):
        raise UserError(f"column {name!r} should hold {wanted}, not {column.type}")
    return column


def _is_readable(kind: pa.DataType, is_list: bool) -> bool:
    if pa.types.is_null(kind):
        return True
    if is_list:
        return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_readable(kind.value_type, False)
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return not (pa.types.is_nested(inner) or pa.types.is_binary(inner) or pa.types.is_large_binary(inner))


mlflow.models.set_model(ServedRanker())
