"""Runs, versions and their aliases: the only place, with the served model, that knows MLflow."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from urllib.parse import urlencode

import mlflow
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.aliases import Aliases
from pipelines.config import Recommender
from pipelines.environment import commit_tags
from pipelines.errors import TryAgainError
from pipelines.model_files import DIGEST, checkpoint_of, log_model
from pipelines.promotions import CHAMPION, Promotions
from pipelines.runs import Run
from pipelines.tables import Tables
from pipelines.tracking import alone_at, in_a_line, without_login
from recsys_moe.digests import digest
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

_PASSES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")
"""What mlflow calls a server that is not there, or that has too much to do; all else is about what was asked for."""


@dataclass(frozen=True)
class Version:
    """A registered model: `as_of` is the day it was trained for, `through` the last day it learned from."""

    number: int
    run_id: str
    as_of: date
    through: date


@dataclass(frozen=True)
class Training:
    """A run that is kept, or whose model is registered, and what it learned from.

    `versions` are the registered models that it made, `aliases` what each of them is called; `tables` the versions of
    tables that it read. It looked at the days up to `as_of`, the last `window` of them where that is not None, and
    learned from those through `through`. A run that says no days has None for them.
    """

    run_id: str
    versions: tuple[int, ...]
    aliases: Mapping[int, tuple[str, ...]]
    tables: Mapping[str, int]
    as_of: date | None
    through: date | None
    window: int | None


def tracking_uri(config: Recommender) -> str:
    """The server that the environment names, or a file beside the storage folder, shared by its neighbours."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_local_store(config) / 'mlflow.db'}"


def _local_store(config: Recommender) -> Path:
    return config.workspace.parent / "mlflow"


def _track_at(uri: str) -> None:
    """Use a store in this process. mlflow also writes it to the environment, where the next recommender would find it
    and take it for what the user asked for."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


class Registry:
    """One recommender's experiment and registered model, both called by its name.

    Raises:
        TryAgainError: the tracking server does not answer.
        UserError: it asks for a login, or refuses the experiment.
    """

    def __init__(self, config: Recommender) -> None:
        self.name, self.uri = config.name, tracking_uri(config)
        self.promotions = Promotions(Tables(config.storage))
        with alone_at(self.uri):
            _track_at(self.uri)
            self.client = MlflowClient()
            self.aliases = Aliases(self.client, self.name)
            try:
                self.experiment_id = self._experiment(config)
            except MlflowException as error:
                kind = TryAgainError if error.error_code in _PASSES else UserError
                raise kind(f"MLflow at {without_login(self.uri)}: {in_a_line(error, self.uri)}") from None

    def _experiment(self, config: Recommender) -> str:
        found = self.client.get_experiment_by_name(self.name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise UserError(
                    f"MLflow at {without_login(self.uri)}: the experiment {self.name!r} was deleted; restore it with "
                    f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
                )
            return str(found.experiment_id)
        # A server chooses the place itself; without one, pictures and models lie beside the database.
        place = None if self.uri.startswith("http") else (_local_store(config) / "artifacts").as_uri()
        try:
            return str(self.client.create_experiment(self.name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment(config)  # the first night's training and monitor both looked before either made it

    @contextmanager
    def run(self, title: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """A new run; it counts as finished only if the block ends without an error."""
        tags = {**tags, **commit_tags()}
        with mlflow.start_run(
            experiment_id=self.experiment_id, run_name=title, tags=tags, log_system_metrics=True
        ) as active:
            yield Run(self.client, active.info.run_id)

    @contextmanager
    def training(self, title: str, tags: Mapping[str, str], resume: bool) -> Iterator[Run]:
        """The run that a killed or failed training of this fingerprint left, gone on with if `resume`; or a new one.

        Others of this fingerprint are ended: nobody works at them any more.
        """
        same = f"tags.fingerprint = '{tags['fingerprint']}' and attributes.status != 'FINISHED'"
        left = self.client.search_runs([self.experiment_id], same, order_by=["attributes.start_time DESC"])
        for other in left[1:] if resume else left:
            if other.info.status == "RUNNING":
                self.end_as_killed(other.info.run_id)
        if not (resume and left):
            with self.run(title, tags) as run:
                yield run
            return
        with mlflow.start_run(run_id=left[0].info.run_id, tags=dict(tags), log_system_metrics=True) as active:
            yield Run(self.client, active.info.run_id)

    @contextmanager
    def study(self, title: str, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """The run of the search called `name`, gone on with where there is one; its trials lie below it."""
        found = self.client.search_runs([self.experiment_id], f"tags.study = '{name}'", max_results=1)
        if not found:
            with self.run(title, {**tags, "study": name}) as run:
                yield run
            return
        with mlflow.start_run(run_id=found[0].info.run_id, log_system_metrics=True) as active:
            yield Run(self.client, active.info.run_id)

    @contextmanager
    def trial(self, title: str, number: int) -> Iterator[Run]:
        """A new run below that of the search, which must be the active one."""
        tags = {"trial": str(number)}
        with mlflow.start_run(experiment_id=self.experiment_id, run_name=title, nested=True, tags=tags) as active:
            yield Run(self.client, active.info.run_id)

    def trials(self, study: Run, but: Collection[int] = ()) -> list[str]:
        """The ids of the runs below a search's that were not killed, oldest first, `but` those of some trials."""
        below = f"tags.`mlflow.parentRunId` = '{study.run_id}' and attributes.status != 'KILLED'"
        runs = self.client.search_runs([self.experiment_id], below, order_by=["attributes.start_time ASC"])
        return [str(run.info.run_id) for run in runs if int(run.data.tags["trial"]) not in but]

    def compare_address(self, study: Run) -> str:
        """Where the MLflow UI compares the complete trials of a search: the part of the address after the server's.

        The pruned ones stopped early: their losses, beside the others', would be those of another moment.
        """
        complete = [run for run in self.trials(study) if self._outcome(run) == "complete"]
        runs, experiments = json.dumps(complete), json.dumps([self.experiment_id])
        return f"#/compare-runs?{urlencode({'runs': runs, 'experiments': experiments})}"

    def _outcome(self, run_id: str) -> str | None:
        return self.client.get_run(run_id).data.tags.get("outcome")

    def end_as_killed(self, run_id: str) -> None:
        """Say of a run that its process did not end it."""
        self.client.set_terminated(run_id, status="KILLED")

    def finished_run(self, run_id: str) -> Run:
        """A run of this recommender that ended well.

        Raises:
            UserError: there is none of this id.
        """
        if _finished(self.client, self.uri, run_id).info.experiment_id != self.experiment_id:
            raise UserError(f"{run_id}: is no run of the experiment {self.name!r}; is --config its recommender's?")
        return Run(self.client, run_id)

    def open_run(self, run_id: str) -> Run:
        """A run that has ended, to add to."""
        return Run(self.client, run_id)

    def register(self, run: Run, checkpoint: Path, example: pa.Table, tasks: Sequence[str]) -> Version:
        """Make the checkpoint a version. Its digest is kept with it and its run, so that a change is noticed.

        Args:
            run: the run that trained it.
            checkpoint: folder written by `recsys_moe.checkpoint.save`, called `checkpoint`.
            example: a few rows as the model reads them.
            tasks: what it answers, a column each.
        """
        version = self.version_of(run.run_id)
        if version is None:  # else of a process that was killed right after
            run.tags({DIGEST: digest(checkpoint)})
            log_model(self.name, checkpoint, example, tasks)
            version = self.version_of(run.run_id)
            assert version is not None
        self.describe(version, {DIGEST: self.client.get_run(run.run_id).data.tags[DIGEST]})
        return version

    def finished(self, fingerprint: str) -> Version | None:
        """The version that was trained from the same config, code and data, if one was."""
        return self._newest(f"tags.fingerprint = '{fingerprint}'")

    def trained_for(self, as_of: date) -> Version | None:
        """The newest version that was trained for a day."""
        return self._newest(f"tags.as_of = '{as_of.isoformat()}'")

    def _newest(self, condition: str) -> Version | None:
        runs = self.client.search_runs(
            [self.experiment_id],
            f"{condition} and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
        )
        versions = (self.version_of(run.info.run_id) for run in runs)
        return next((version for version in versions if version is not None), None)

    def version_of(self, run_id: str) -> Version | None:
        """The version that a run made, if it made one."""
        found = self.client.search_model_versions(f"name = '{self.name}' and run_id = '{run_id}'")
        return self.version(int(found[0].version)) if found else None

    def version(self, number: int) -> Version:
        """A version by its number.

        Raises:
            UserError: there is none.
        """
        try:
            found = self.client.get_model_version(self.name, str(number))
        except MlflowException:
            raise UserError(f"the registered model {self.name!r} has no version {number}") from None
        run_id = str(found.run_id or "")
        tags = self.client.get_run(run_id).data.tags if run_id else {}
        if not {"as_of", "trained_through"} <= tags.keys():
            raise UserError(f"version {number} of the registered model {self.name!r} is of no training of this project")
        as_of, through = date.fromisoformat(tags["as_of"]), date.fromisoformat(tags["trained_through"])
        return Version(number, run_id, as_of, through)

    def started_from(self, version: Version) -> Version | None:
        """The version whose weights another began from; None where there was none, or it is gone."""
        number = self.client.get_run(version.run_id).data.tags.get("started_from")
        with suppress(UserError):
            return self.version(int(number)) if number else None
        return None

    def trainings(self) -> list[Training]:
        """All runs that are not deleted, and those of registered models in any case; oldest first."""
        made: dict[str, list[int]] = {}
        for version in self.client.search_model_versions(f"name = '{self.name}'"):
            if version.run_id:  # else a person has registered it
                made.setdefault(str(version.run_id), []).append(int(version.version))
        runs = [self.client.get_run(run_id) for run_id in dict.fromkeys([*self._kept_runs(), *made])]
        runs.sort(key=lambda run: int(run.info.start_time))
        aliases = self._aliases()
        return [_training(run, sorted(made.get(run.info.run_id, [])), aliases) for run in runs]

    def _kept_runs(self) -> Iterator[str]:
        token: str | None = None
        while token != "":
            page = self.client.search_runs([self.experiment_id], page_token=token)
            yield from (str(run.info.run_id) for run in page)
            token = page.token or ""

    def _aliases(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for alias, number in self.aliases.known().items():
            found.setdefault(number, []).append(alias)
        return found

    def champion(self) -> Version | None:
        """The version that serves, by the record of promotions; None before the first.

        MLflow's aliases are made to say the same: a promotion that was killed may not have come so far. Where nothing
        is recorded yet, the alias alone says who serves.

        Raises:
            UserError: MLflow does not have the version that the record names.
        """
        serving = self.aliases.follow(self.promotions).serving
        if serving is None:
            number = self.aliases.known().get(CHAMPION)
            return self.version(number) if number is not None else None
        with suppress(UserError):
            version = self.version(serving.version)
            if version.run_id == serving.run_id:
                return version
        raise UserError(
            f"{self.promotions}: the champion is version {serving.version} of run {serving.run_id}, which MLflow at "
            f"{without_login(self.uri)} does not have; use the MLflow that has it, or `recsys-moe rollback --to` a "
            "version of this one"
        )

    def in_vocabulary(self, number: int, is_wanted: Callable[[str], bool], value: str) -> bool | None:
        """Whether a version has a row of its own for `value` in a feature that is wanted; None where its files are
        gone."""
        place = f"models:/{self.name}/{number}/artifacts/checkpoint/vocabularies.parquet"
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = mlflow.artifacts.download_artifacts(place, dst_path=folder)
                known = pq.read_table(path, filters=pc.field("value") == value)
            except (MlflowException, OSError):
                return None
        return any(is_wanted(feature) for feature in known.column("feature").unique().to_pylist())

    def describe(self, version: Version, tags: Mapping[str, str]) -> None:
        """Put tags on a version and on its run."""
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, str(version.number), key, value)
            self.client.set_tag(version.run_id, key, value)

    def checkpoint(self, version: Version) -> Path:
        """A local folder with the version's checkpoint.

        Raises:
            UserError: it is not the one that was registered.
        """
        tags = self.client.get_model_version(self.name, str(version.number)).tags
        return checkpoint_of(self.name, version.number, tags.get(DIGEST))


def run_of_server(run_id: str) -> Run:
    """A run, of whichever recommender, that ended well, of the server that the environment names.

    Raises:
        UserError: it names none, or there is no such run.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UserError("--config: name the recommender's YAML, or set MLFLOW_TRACKING_URI, to say where the run is")
    with alone_at(uri):
        client = MlflowClient(uri)
        _finished(client, uri, run_id)
    return Run(client, run_id)


def _finished(client: MlflowClient, uri: str, run_id: str) -> mlflow.entities.Run:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        where = without_login(uri)
        raise UserError(f"{run_id}: MLflow at {where} has no such run ({in_a_line(error, uri)})") from None
    if run.info.status != "FINISHED":
        raise UserError(f"{run_id}: did not finish (it is {run.info.status}); name a run that did")
    return run


def _training(run: mlflow.entities.Run, versions: list[int], aliases: Mapping[int, list[str]]) -> Training:
    tags, params = run.data.tags, run.data.params
    inputs = [found.dataset for found in run.inputs.dataset_inputs] if run.inputs else []
    days = [date.fromisoformat(tags[tag]) if tag in tags else None for tag in ("as_of", "trained_through")]
    parts = [params.get(f"evaluation.split.{part}_days", "") for part in ("train", "validation", "test")]
    return Training(
        run_id=str(run.info.run_id),
        versions=tuple(versions),
        aliases={version: tuple(sorted(aliases.get(version, []))) for version in versions},
        tables={one.name: int(json.loads(one.source)["delta_table_version"]) for one in inputs if _is_ours(one)},
        as_of=days[0],
        through=days[1],
        window=sum(map(int, parts)) if all(part.isdigit() for part in parts) else None,
    )


def _is_ours(dataset: mlflow.entities.Dataset) -> bool:
    """Whether an input of a run is a table of ours, and nothing that a person has logged."""
    return "delta_table_version" in json.loads(dataset.source)
