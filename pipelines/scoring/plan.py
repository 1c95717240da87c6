"""What a scoring is of, fixed before its first shard: so each shard, on whatever machine, sees the same."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import places, sources, sql
from pipelines.config import Listed, Recommender
from pipelines.entities import entity_rows, moments
from pipelines.errors import NotDueError, TryAgainError
from pipelines.registry import Registry, Version
from pipelines.scoring import asked
from pipelines.scoring.candidates import Shared
from pipelines.scoring.staging import FOLDER, Staging
from pipelines.tables import TableName, Tables
from recsys_moe import checkpoint
from recsys_moe.errors import UserError

FILE, _PUBLISHED = "plan.json", "published.json"
_ID = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}-[0-9a-f]{12}")
_LAYOUT = 2
"""Of what is staged; another number where it is changed, so that nobody goes on with what an older release staged."""
_READ: tuple[TableName, ...] = ("interactions", "users", "items", "daily_counts", "daily_recent", "examples")


@dataclass(frozen=True)
class Plan:
    """A scoring of a day.

    Attributes:
        id: of this very one: the day, and a digest of all that its rows depend on.
        version, run_id: the model.
        tables: the version of each table that is read.
        users: how many are asked for.
        shards: into how many parts they are cut.
        scored_at: when it was planned, in ISO 8601.
    """

    id: str
    ds: date
    version: int
    run_id: str
    tables: dict[TableName, int]
    users: int
    shards: int
    scored_at: str

    @classmethod
    def read(cls, config: Recommender, plan_id: str) -> Plan:
        """A plan that was made.

        Raises:
            UserError: there is none of this id.
        """
        staging = staging_of(config, plan_id)
        if not staging.exists(FILE):
            raise UserError(
                f"--plan: there is no plan {plan_id!r}; it is published already, was left for days, or was never made: "
                "`recsys-moe score-plan` makes one"
            )
        found = staging.read_json(FILE)
        return cls(**{**found, "ds": date.fromisoformat(found["ds"])})

    def staging(self, config: Recommender) -> Staging:
        """Where its parts lie."""
        return staging_of(config, self.id)

    def pinned(self, config: Recommender) -> Tables:
        """The tables as they were when it was made."""
        return Tables(config.storage, self.tables)

    def check_shard(self, number: int) -> None:
        """See that it has a shard of this number.

        Raises:
            UserError: it has not.
        """
        if not 0 <= number < self.shards:
            raise UserError(f"--shard: {number} is none of the plan's {self.shards} shards, 0 to {self.shards - 1}")

    def todo(self, config: Recommender) -> list[int]:
        """The shards that are not there yet."""
        staging = self.staging(config)
        return [number for number in range(self.shards) if not staging.exists(self.shard_file(number))]

    def finish(self, config: Recommender, result: dict[str, Any]) -> None:
        """Note what the published plan's step tells, and remove what was staged."""
        staging = self.staging(config)
        staging.write_json(_PUBLISHED, result)
        staging.clear(FILE, keep=_PUBLISHED)

    def shard_file(self, number: int) -> str:
        """What the rows of a shard are in, below the staging folder."""
        return f"shard-{number:05d}-of-{self.shards:05d}.parquet"


def published(config: Recommender, plan_id: str) -> dict[str, Any] | None:
    """What the step told that published a plan, if one did lately."""
    staging = staging_of(config, plan_id)
    if staging.exists(FILE) or not staging.exists(_PUBLISHED):
        return None
    found: dict[str, Any] = staging.read_json(_PUBLISHED)
    return found


def staging_of(config: Recommender, plan_id: str) -> Staging:
    """The folder of a plan.

    Raises:
        UserError: it is no plan's id; a path would lead out of the storage.
    """
    if not _ID.fullmatch(plan_id):
        raise UserError(f"--plan: {plan_id!r} is no plan's id; `recsys-moe score-plan` tells one")
    return Staging(places.join(config.storage, FOLDER, plan_id))


def make(config: Recommender, ds: date, model_version: int | None, spill: Path) -> Plan:
    """Plan a scoring, or find the plan of the same that was not finished.

    Raises:
        NotDueError: there is no champion yet.
        UserError: the day was not ingested, or the model reads what the day does not have.
        TryAgainError: another process plans or publishes the same, and cleared the folder meanwhile.
    """
    version = _version(config, ds, model_version)
    tables = _tables(config, ds)
    plan_id = _id(config, ds, version, tables)
    staging = staging_of(config, plan_id)
    staging.remove_left_behind(FILE)
    try:
        if not staging.exists(FILE):
            _stage(config, ds, version, tables, plan_id, spill)
        return Plan.read(config, plan_id)
    except FileNotFoundError as error:
        said = " ".join(str(error).split())
        raise TryAgainError(f"{plan_id}: is another process at the same? Run this step again: {said}") from error


def _version(config: Recommender, ds: date, number: int | None) -> Version:
    registry = Registry(config)
    version = registry.champion() if number is None else registry.version(number)
    if version is None:
        raise NotDueError(f"{ds}: there is no champion yet; train and promote a version first")
    return version


def _tables(config: Recommender, ds: date) -> dict[TableName, int]:
    tables = Tables(config.storage)
    if ds not in tables.days("interactions"):
        raise UserError(f"{ds}: was not ingested; run `recsys-moe ingest --as-of {ds}` first")
    if config.features.history and ds not in tables.days("daily_counts"):
        raise UserError(f"{ds}: was not prepared; run `recsys-moe prepare --as-of {ds}` first")
    versions = {name: tables.version(name) for name in _READ}
    return {name: version for name, version in versions.items() if version is not None}


def _id(config: Recommender, ds: date, version: Version, tables: dict[TableName, int]) -> str:
    parts: dict[str, Any] = {"layout": _LAYOUT, "version": version.number, "run": version.run_id, "tables": tables}
    scoring = config.scoring.model_dump(mode="json", exclude={"checks", "processes"})  # which change no row
    parts |= {"scoring": scoring, "columns": config.columns.model_dump(mode="json")}
    parts |= {"features": config.features.model_dump(mode="json"), "tasks": [task.name for task in config.tasks]}
    parts |= {"negatives": config.sampling.make_negatives is not None, "read": _own_files(config, ds)}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{ds}-{digest[:12]}"


def _own_files(config: Recommender, ds: date) -> list[list[Any]]:
    """What tells files that only scoring reads from those of before: who mends a list of users wants it read again."""
    tables = [one.rows for one in config.scoring.candidates if isinstance(one, Listed)]
    read = [*([config.scoring.users] if config.scoring.users else []), *tables]
    return [list(state) for source in read for state in sources.state_of(source, ds)]


def _stage(
    config: Recommender, ds: date, version: Version, pinned: dict[TableName, int], plan_id: str, spill: Path
) -> None:
    """Write what all shards share, and last the plan itself."""
    staging, tables = staging_of(config, plan_id), Tables(config.storage, pinned)
    staging.clear(FILE)
    ranker = checkpoint.load(Registry(config).checkpoint(version))
    moment = next(iter(moments(config, ds).values()))
    with sql.connect(config.columns.timezone, spill=spill) as connection:
        items = entity_rows(connection, config, tables, moment, "item")
    bounds = asked.stage(config, tables, ds, staging, spill)
    Shared.make(config, tables, ds, items, ranker, pa.array(bounds, pa.string()), staging.path)
    plan = Plan(
        id=plan_id,
        ds=ds,
        version=version.number,
        run_id=version.run_id,
        tables=pinned,
        users=asked.count(staging),
        shards=len(bounds),
        scored_at=datetime.now(UTC).isoformat(),
    )
    staging.write_json(FILE, asdict(plan) | {"ds": ds.isoformat()})
