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
from recsys_moe.errors import UserError


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
        try:
            table = pa.Table.from_pandas(model_input, preserve_index=False)
        except pa.ArrowException as error:
            raise UserError(f"the rows have a column of mixed types: {error}") from None
        names = [task.name for task in self._ranker.config.tasks]
        return pd.DataFrame(self._ranker.predict(table), columns=names, index=model_input.index)


mlflow.models.set_model(ServedRanker())
