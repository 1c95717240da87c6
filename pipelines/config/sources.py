"""Where rows come from: files of one day or of all, here or on S3, and queries. Each checked by itself."""

from __future__ import annotations

import re
from datetime import date
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from recsys_moe.config import Frozen

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Column = Annotated[str, Field(min_length=1)]


class Timestamp(Frozen):
    """The column that says when, and how to read it."""

    name: Column
    unit: Literal["s", "ms", "us", "iso"] = "s"


class Source(Frozen):
    """Where rows come from: files, or a query.

    `path` may have `{ds}` or `{ds_nodash}` if there are files for each day, and `*` if there are several; it is a local
    path or one on S3 (`s3://bucket/…`). `sql` is a query with `:ds` for the day; `connection` names the environment
    variable that holds the SQLAlchemy URL.
    """

    path: str | None = None
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet"] = "auto"
    delimiter: Annotated[str, Field(pattern=r"^[\t\x20-\x21\x23-\x7e]$")] | None = None
    sql: Annotated[str, Field(min_length=1)] | None = None
    connection: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None

    @field_validator("path")
    @classmethod
    def _known_placeholders(cls, value: str | None) -> str | None:
        if value is None:
            return None
        unknown = sorted(set(re.findall(r"\{.*?\}", value)) - {"{ds}", "{ds_nodash}"})
        if unknown:
            raise ValueError(f"{value!r} has {', '.join(unknown)}; a path may have {{ds}} or {{ds_nodash}}")
        if "://" in value and not value.startswith("s3://"):
            raise ValueError(f"{value!r} is neither a local path nor one on S3 (s3://bucket/…)")
        return value

    @model_validator(mode="after")
    def _files_or_a_query(self) -> Self:
        if (self.path is None) == (self.sql is None):
            raise ValueError("give either path (files) or sql (a query)")
        if self.sql is not None and self.connection is None:
            raise ValueError("sql needs connection: the environment variable that holds the database's URL")
        if self.sql is None and self.connection is not None:
            raise ValueError("connection goes with sql")
        return self

    @property
    def is_daily(self) -> bool:
        """Whether each day has files, or a query, of its own."""
        return "{ds" in self.path if self.path else bool(re.search(r"(?<!:):ds\b", self.sql or ""))

    @property
    def title(self) -> str:
        """What messages call it: its path, or the variable of its database."""
        return self.path or f"sql at ${self.connection}"

    def path_for(self, ds: date) -> str:
        """The path, or the pattern, of the files that hold day `ds`."""
        assert self.path is not None
        return self.path.replace("{ds}", ds.isoformat()).replace("{ds_nodash}", ds.strftime("%Y%m%d"))

    @property
    def file_format(self) -> str:
        """The format, told from the file's ending (before .gz or .zst) where the YAML says `auto`."""
        if self.format != "auto":
            return self.format
        name = re.sub(r"\.(gz|zst)$", "", (self.path or "").lower())
        endings = {
            ".csv": "csv",
            ".tsv": "tsv",
            ".json": "jsonl",
            ".jsonl": "jsonl",
            ".ndjson": "jsonl",
            ".parquet": "parquet",
        }
        return endings.get(PurePosixPath(name).suffix, "csv")


class OutcomeSource(Source):
    """A log of what came of impressions, kept apart from them: purchases, say, or watch times sent later.

    Its rows are joined to impressions by `request`, a column of both logs, or else by user and item, within the hours
    that a task's `within_hours` says. `user`, `item` are its columns where they are called otherwise than in the log.
    """

    name: Name
    timestamp: Timestamp
    user: Column | None = None
    item: Column | None = None
    request: Column | None = None


class Sources(Frozen):
    """The logs, and any number of files that join to a user or to an item."""

    interactions: Source
    users: tuple[Source, ...] = ()
    items: tuple[Source, ...] = ()
    outcomes: tuple[OutcomeSource, ...] = ()

    @field_validator("outcomes")
    @classmethod
    def _own_names(cls, value: tuple[OutcomeSource, ...]) -> tuple[OutcomeSource, ...]:
        names = [outcome.name for outcome in value]
        if len(set(names)) < len(names):
            raise ValueError(f"two outcomes share a name in {names}")
        return value

    @field_validator("users", "items", mode="before", json_schema_input_type=Source | tuple[Source, ...])
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value
