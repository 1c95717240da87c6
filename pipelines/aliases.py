"""What versions of a registered model are called in MLflow: aliases, which follow the record of promotions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.errors import TryAgainError
from pipelines.promotions import ALIASES, Promotions, State

_MISSING = "RESOURCE_DOES_NOT_EXIST"


class Aliases:
    """The aliases of one registered model."""

    def __init__(self, client: MlflowClient, model: str) -> None:
        self._client, self._model = client, model

    def known(self) -> dict[str, int]:
        """All that are set, and the version that each means; none where there is no such model yet.

        Raises:
            TryAgainError: the tracking server does not answer.
        """
        try:
            aliases = self._client.get_registered_model(self._model).aliases
        except MlflowException as error:
            if error.error_code != _MISSING:  # taken for nobody who serves, it would let anyone take over
                raise TryAgainError(f"MLflow does not say who the champion of {self._model!r} is; try later") from error
            return {}
        return {alias: int(number) for alias, number in aliases.items()}

    def follow(self, promotions: Promotions) -> State:
        """Set and remove `champion`, `challenger` and `previous` as the record says, where there is one. Returns it."""
        state = promotions.state()
        while state.serving is not None:
            self._set(state.aliases)
            now = promotions.state()
            if now == state:  # else somebody promoted meanwhile, and may have been here first
                break
            state = now
        return state

    def _set(self, wanted: Mapping[str, int]) -> None:
        known = self.known()
        for alias in ALIASES:
            if alias in wanted and wanted[alias] != known.get(alias):
                with suppress(MlflowException):  # the version was deleted
                    self._client.set_registered_model_alias(self._model, alias, str(wanted[alias]))
            elif alias in known and alias not in wanted:
                self._client.delete_registered_model_alias(self._model, alias)
