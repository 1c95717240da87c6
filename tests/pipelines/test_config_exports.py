"""The YAML's block `exports`: what may stand in it, and what is told where it may not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import FileExport, Recommender
from recsys_moe.errors import UserError

DAY = date(2026, 1, 5)
FILE = {"name": "lake", "kind": "parquet", "path": "../out/{ds}.parquet"}
STORE = {"name": "store", "kind": "redis", "connection": "REDIS_URL"}
BASE = {"name": "base", "kind": "postgres", "connection": "DATABASE_URL"}


def test_a_path_is_relative_to_the_yaml_and_has_the_day(tiny: Callable[..., Recommender], tmp_path: Path) -> None:
    config = tiny(exports=[FILE, FILE | {"name": "far", "path": "s3://bucket/{ds_nodash}.parquet"}])
    near, far = config.exports
    assert isinstance(near, FileExport)
    assert isinstance(far, FileExport)
    assert near.path_for(DAY) == f"{tmp_path}/out/2026-01-05.parquet"
    assert far.path_for(DAY) == "s3://bucket/20260105.parquet"


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([FILE, STORE | {"name": "lake"}], "exports: two targets share the name 'lake'"),
        ([FILE, FILE | {"name": "pond"}], "exports: two targets write '"),
        ([STORE, STORE | {"name": "x", "prefix": "tiny"}], "exports: two targets write tiny: at "),
        ([STORE | {"columns": ["item_id", "item_id"]}], "names a column twice"),
        ([FILE | {"path": "../out/all.parquet"}], "should have {ds} or {ds_nodash}, and nothing else in braces"),
        ([FILE | {"path": "../out/{ds}/{user}.parquet"}], "should have {ds} or {ds_nodash}"),
        ([FILE | {"path": "../../{ds}.parquet"}], "exports.0.path: '../../{ds}.parquet' leaves its root"),
        ([FILE | {"path": "s3://{ds}"}], "exports.0.path: 's3://{ds}' should be a bucket and a folder in it"),
        ([FILE | {"path": "http://host/{ds}"}], "exports.0.path: 'http://host/{ds}' is neither"),
        (
            [STORE | {"connection": "redis://:secret@host"}],
            "exports.0.redis.connection: should be the name of an environment variable",
        ),
        ([STORE | {"prefix": "a*"}], "exports.0.redis.prefix"),
        ([STORE | {"columns": []}], "exports.0.redis.columns"),
        ([BASE | {"table": 'scores"; DROP'}], "exports.0.postgres.table"),
        ([BASE | {"expire_days": 0}], "exports.0.postgres.expire_days"),
        ([{"name": "x", "kind": "mongo"}], "exports.0: Input tag 'mongo' found using 'kind' does not match"),
        (FILE, "exports: "),
        (STORE | {"connection": "redis://:secret@host"}, "exports: "),
        ([STORE | {"connection": "redis://:secret@host"}], "exports.0.redis.connection: should be the name"),
        ([STORE | {"connection": "redis://:secret@host", "kind": "Redis"}], "exports.0: Input tag 'Redis' found"),
    ],
)
def test_what_is_wrong_is_told_by_its_place(tiny: Callable[..., Recommender], targets: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny(exports=targets)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
