"""Where a day's scores go beside Delta: files, a key-value store, a database. Each checked by itself."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, field_validator

from pipelines.config.sources import Column, Name
from recsys_moe.config import Frozen

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _a_name(value: str) -> str:
    """Without the value in the message: who writes a URL here writes a password."""
    if not re.fullmatch(_VARIABLE, value):
        raise ValueError("should be the name of an environment variable that holds the URL, such as DATABASE_URL")
    return value


Variable = Annotated[str, AfterValidator(_a_name), Field(json_schema_extra={"pattern": _VARIABLE})]
"""The name of an environment variable with a server's URL: what is secret is never in a YAML."""


class FileExport(Frozen):
    """One file for each day, replaced as a whole.

    `path` has `{ds}` or `{ds_nodash}`; it is a local path or one on S3 (`s3://bucket/…`). JSON lines are gzipped where
    it ends with `.gz`.
    """

    name: Name
    kind: Literal["parquet", "jsonl"]
    path: str

    @field_validator("path")
    @classmethod
    def _a_file_each_day(cls, value: str) -> str:
        found = set(re.findall(r"\{.*?\}", value))
        if not found or found - {"{ds}", "{ds_nodash}"}:
            raise ValueError(f"{value!r} should have {{ds}} or {{ds_nodash}}, and nothing else in braces")
        return value

    def path_for(self, ds: date) -> str:
        """The file of day `ds`."""
        return self.path.replace("{ds}", ds.isoformat()).replace("{ds_nodash}", ds.strftime("%Y%m%d"))


class RedisExport(Frozen):
    """One key for each list, `prefix:generation:context:user`; the key `prefix:current` holds the generation to read.

    A list is a JSON object with an array for each of `columns`. What was loaded expires after `expire_days`.
    `prefix` is the recommender's name where None.
    """

    name: Name
    kind: Literal["redis"]
    connection: Variable
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)*$")] | None = None
    columns: Annotated[tuple[Column, ...], Field(min_length=1)] = ("item_id", "score")
    expire_days: PositiveInt = 7

    @field_validator("columns")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{list(value)} names a column twice")
        return value


class PostgresExport(Frozen):
    """A table with a partition for each day of the last `expire_days`, and a view `…_newest` of the newest of them."""

    name: Name
    kind: Literal["postgres"]
    connection: Variable
    table: Annotated[str, Field(pattern=r"^([a-z_][a-z0-9_]{0,29}\.)?[a-z_][a-z0-9_]{0,29}$")] = "scores"
    expire_days: PositiveInt = 7


Export = Annotated[FileExport | RedisExport | PostgresExport, Field(discriminator="kind")]
