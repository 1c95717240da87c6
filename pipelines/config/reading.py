"""Reading a recommender's YAML: variables put in, paths made absolute, mistakes told in one line."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.config import yaml_text
from pipelines.config.recommender import Origin, Recommender
from recsys_moe.errors import UserError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-((?:[^}$]|\$(?!\{))*))?\}")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def _expand(value: Any, where: str) -> Any:
    """Put `${VAR}` and `${VAR:-default}` in place, in every string."""
    if isinstance(value, dict):
        return {key: _expand(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{where}.{n}") for n, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    if _NO_TEXT.search(value):
        raise UserError(f"{where}: {value[:80]!r} holds a character that no text has")

    def lookup(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise UserError(f"{where}: the environment has no {match[1]}; set it or write ${{{match[1]}:-default}}")
        return found

    return _VARIABLE.sub(lookup, value)


def _absolute(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the storage and source paths absolute; what is malformed is left for pydantic to name."""

    def place(path: Any) -> Any:
        return str((folder / path).resolve()) if isinstance(path, str) and "://" not in path else path

    def source(value: Any) -> Any:
        if isinstance(value, list):
            return [source(item) for item in value]
        return {**value, "path": place(value.get("path"))} if isinstance(value, dict) and "path" in value else value

    raw = dict(raw)
    if isinstance(raw.get("storage"), str):
        raw["storage"] = _inside_root("storage", raw["storage"], folder)
        if raw["storage"].startswith("s3://") or raw.get("local"):
            raw["local"] = _inside_folder("local", str(raw.get("local") or f"../var/{raw.get('name')}"), folder)
    if isinstance(raw.get("exports"), list):
        raw["exports"] = [_export(value, n, folder) for n, value in enumerate(raw["exports"])]
    if isinstance(raw.get("source"), dict):
        raw["source"] = {key: source(value) for key, value in raw["source"].items()}
    if isinstance(raw.get("scoring"), dict):
        raw["scoring"] = _scoring(raw["scoring"], source)
    return raw


def _scoring(raw: dict[str, Any], source: Callable[[Any], Any]) -> dict[str, Any]:
    """Its list of users, and its candidates' tables, with absolute paths."""

    def with_rows(value: Any) -> Any:
        return {**value, "rows": source(value["rows"])} if isinstance(value, dict) and "rows" in value else value

    found = raw.get("candidates")
    candidates = [with_rows(one) for one in found] if isinstance(found, list) else with_rows(found)
    changes = {"users": source(raw.get("users")), "candidates": candidates}
    return raw | {key: value for key, value in changes.items() if key in raw}


def _export(value: Any, number: int, folder: Path) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        return value
    return {**value, "path": _inside_root(f"exports.{number}.path", value["path"], folder)}


def _inside_root(key: str, place: str, folder: Path) -> str:
    """The storage folder, made absolute, or a place on S3; a YAML must not write where nobody expects it."""
    if place.startswith("s3://"):
        return _inside_bucket(key, place, os.environ.get("RECSYS_MOE_STORAGE_ROOT"))
    return _inside_folder(key, place, folder)


def _inside_folder(key: str, place: str, folder: Path) -> str:
    """A local folder below `RECSYS_MOE_STORAGE_ROOT`, or below the folder above the YAML's, made absolute."""
    if "://" in place:
        kinds = "a local folder nor a place on S3 (s3://bucket/…)" if key == "storage" else "absolute nor relative"
        raise UserError(f"{key}: {place!r} is neither {kinds}")
    said = os.environ.get("RECSYS_MOE_STORAGE_ROOT", "")
    root = Path(said if said and "://" not in said else folder.parent).resolve()
    path = (folder / place).resolve()
    if path == root or not path.is_relative_to(root):
        raise UserError(
            f"{key}: {place!r} leaves its root {root}; name a folder inside it, or set RECSYS_MOE_STORAGE_ROOT"
        )
    return str(path)


def _inside_bucket(key: str, place: str, root: str | None) -> str:
    bucket, *parts = place.removeprefix("s3://").rstrip("/").split("/")
    if not bucket or not parts or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{key}: {place!r} should be a bucket and a folder in it, such as s3://bucket/folder")
    clean = "s3://" + "/".join([bucket, *parts])
    if root and not clean.startswith(root.rstrip("/") + "/"):
        raise UserError(f"{key}: {place!r} leaves its root {root}; name a place inside it")
    return clean


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    # `by: {bucket: …}` is reported as by.bucket.bucket: the form that was taken, and its key.
    where = ".".join(str(part) for part, _ in itertools.groupby(problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"unknown key{_did_you_mean(problem['loc'])}"
    elif problem["type"] not in ("value_error", "missing") and "://" not in str(problem["input"]):  # may be a secret
        message += f", not {problem['input']!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    said = f"{where}: {message}{more}" if where else f"{message}{more}"
    return "".join(one if one.isprintable() else "?" for one in said)  # what is quoted in it may be anything


def _did_you_mean(loc: tuple[int | str, ...]) -> str:
    model: Any = Recommender
    for part in loc[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    close = difflib.get_close_matches(str(loc[-1]), list(getattr(model, "model_fields", {})), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def load(path: Path) -> Recommender:
    """Read and check a recommender's YAML.

    Raises:
        UserError: naming the file, the key inside it and what would be right.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(yaml_text.MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --config takes a recommender's YAML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Recommender:
    """Check a YAML's text, as it stands (or stood) in the file `path`: relative paths are relative to its folder.

    Raises:
        UserError: see `load`.
    """
    try:
        raw = yaml_text.read(text)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: should hold keys such as name, storage and source")
    try:
        return Recommender.read(_absolute(_expand(raw, ""), path.resolve().parent), Origin(path.resolve(), text))
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recommender's YAML, for editors and for the DAG file."""
    schema = Recommender.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "recsys_moe recommender", **schema}
