"""The JSON schema of a recommender's YAML, which editors and the DAG file read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from pipelines.config import json_schema

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_the_schema_knows_the_keys_and_the_short_forms() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["required"]) == {"name", "storage", "source", "columns", "tasks", "features"}
    assert schema["additionalProperties"] is False
    by = schema["$defs"]["WrittenSegments"]["properties"]["by"]
    assert {"type": "string", "minLength": 1} in by["anyOf"]


def test_the_committed_schema_is_the_generated_one() -> None:
    """`recsys-moe schema > configs/schema.json` writes it anew."""
    committed = (CONFIGS[0].parent / "schema.json").read_text(encoding="utf-8")
    assert committed == json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_validate_against_the_schema(path: Path) -> None:
    raw = json.loads(json.dumps(yaml.safe_load(path.read_text()), default=str))
    validator = Draft202012Validator(json_schema())
    assert not list(validator.iter_errors(raw))
    assert list(validator.iter_errors(raw | {"featurs": {}}))
