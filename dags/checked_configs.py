"""The schedules that the recommenders' YAML files ask for, and what is wrong with those that cannot be used.

Only what a scheduler must know is read here; the CLI checks the whole file before it does anything. Parsing happens
every few seconds, so nothing heavy is imported: no part of the project, no pandas, torch or mlflow.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import yaml
from croniter import croniter
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

MOST_CHARACTERS, MOST_WRITTEN_OUT = 256_000, 500_000
CONFIGS = Path(os.environ.get("RECSYS_MOE_CONFIGS") or Path(__file__).resolve().parents[1] / "configs")

NEEDED = {
    "type": "object",
    "required": ["name", "schedule"],
    "properties": {
        "name": {"type": "string", "pattern": r"^[a-z][a-z0-9_]*\Z", "maxLength": 200},
        "columns": {"type": "object", "properties": {"timezone": {"type": "string"}}},
        "schedule": {
            "type": "object",
            "required": ["ingest"],
            "properties": {
                "ingest": {"type": "string"},
                "train": {"enum": ["after_ingest", "when_due"]},
                "score": {"enum": ["after_train", "after_ingest"]},
                "every_day": {"type": "boolean"},
                "alerts": {
                    "type": "object",
                    "properties": {
                        "email": {"type": "array", "items": {"type": "string", "pattern": r"^[^@\s{}]+@[^@\s{}]+$"}},
                        "slack": {"type": ["string", "null"], "pattern": r"^#?[\w.-]+$"},
                    },
                    "additionalProperties": False,
                },
                "start": {"type": "string", "pattern": r"^[12]\d{3}-\d{2}-\d{2}$"},
            },
            "additionalProperties": False,
        },
    },
}
"""What a schedule is made of; the rest of the YAML is in `schema.json`, which `recsys-moe schema` writes."""


@dataclass(frozen=True)
class Scheduled:
    """A recommender that has a schedule: a cron in a time zone, what training and scoring follow, the first day to
    ingest where one is named, whether lists are exported, and who is told of what goes wrong."""

    path: Path
    name: str
    timezone: str
    cron: str
    train: str
    score: str
    every_day: bool
    start: date | None
    exports: bool
    email: tuple[str, ...]
    slack: str | None


def read_all(folder: Path = CONFIGS) -> tuple[list[Scheduled], list[str]]:
    """The recommenders that have a schedule, and one line for each file that cannot be used."""
    problems: list[str] = []
    by_name: dict[str, list[Scheduled]] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml")):
        try:
            if recommender := _read(path):
                by_name.setdefault(recommender.name, []).append(recommender)
        except (OSError, ValueError, KeyError, AttributeError, RecursionError, yaml.YAMLError) as error:
            problems.append(f"{path.name}: {' '.join(str(error).split())}")
    for name, several in by_name.items():
        several.sort(key=lambda one: one.path.stem != name)  # a copy must not take over from the file called like it
        problems += [f"{one.path.name}: name: {name!r} is taken by {several[0].path.name}" for one in several[1:]]
    return [several[0] for several in by_name.values()], problems


def _read(path: Path) -> Scheduled | None:
    """Read one YAML: None where it has no schedule, `ValueError` where it is wrong."""
    if "{" in path.name:
        raise ValueError("its name has a brace, which Airflow would take for the beginning of a template")
    raw = json.loads(json.dumps(_values(path), default=str))
    if isinstance(raw, dict) and "schedule" not in raw:
        return None
    _check(raw, path.parent / "schema.json")
    schedule = raw["schedule"]
    return Scheduled(
        path=path.resolve(),
        name=raw["name"],
        timezone=_time_zone(raw.get("columns", {}).get("timezone", "UTC")),
        cron=_once_a_day(schedule["ingest"]),
        train=schedule.get("train", "after_ingest"),
        score=_with_days(schedule),
        every_day=schedule.get("every_day", False),
        start=date.fromisoformat(schedule["start"]) if "start" in schedule else None,
        exports=bool(raw.get("exports")),
        email=tuple(schedule.get("alerts", {}).get("email", ())),
        slack=_with_provider(schedule.get("alerts", {}).get("slack")),
    )


def _values(path: Path) -> Any:
    """What a YAML holds, within the bounds that the CLI has as well."""
    with path.open(encoding="utf-8") as file:
        text = file.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"is longer than {MOST_CHARACTERS} characters")
    loader = yaml.SafeLoader(text)
    if (node := loader.get_single_node()) is None:
        return None
    _count(node, {})
    return loader.construct_document(node)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many characters and values a node holds with its aliases written out: ten lines may stand for billions."""
    if id(node) not in known:
        known[id(node)] = MOST_WRITTEN_OUT  # until it is counted: one that holds itself is without end
        inside = [] if isinstance(node, yaml.ScalarNode) else node.value
        pairs = inside if isinstance(node, yaml.MappingNode) else [inside]
        own = 1 + len(node.value) if isinstance(node, yaml.ScalarNode) else 1
        known[id(node)] = own + sum(_count(one, known) for pair in pairs for one in pair)
    if known[id(node)] > MOST_WRITTEN_OUT:
        raise ValueError(f"is longer than {MOST_WRITTEN_OUT} with its aliases written out")
    return known[id(node)]


def _check(raw: Any, schema_path: Path) -> None:
    schemas = [NEEDED]
    if schema_path.exists():
        schemas.append(json.loads(schema_path.read_text(encoding="utf-8")))
    for schema in schemas:
        if problem := best_match(Draft202012Validator(schema).iter_errors(raw)):
            where = problem.json_path.removeprefix("$").lstrip(".") or "file"
            if "://" in problem.message:  # a URL may have a password in it, and all who see Airflow see this
                raise ValueError(
                    f"{where}: is not what the schema asks for; any step of the CLI says what would be right"
                )
            raise ValueError(f"{where}: {problem.message}")


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"columns.timezone: {name!r} is no time zone; use a name such as 'Europe/Berlin'") from None
    return name


def _with_days(schedule: dict[str, Any]) -> str:
    """What scoring follows: with `train: when_due` there is not a training for every day."""
    score: str = schedule.get("score", "after_train")
    if schedule.get("train") == "when_due" and score == "after_train":
        raise ValueError("schedule.score: with train: when_due, set score: after_ingest, or most days are not scored")
    return score


def _with_provider(slack: str | None) -> str | None:
    """A channel, if this Airflow can write to one."""
    if slack is not None and find_spec("airflow.providers.slack") is None:
        raise ValueError(
            "schedule.alerts.slack: needs the package apache-airflow-providers-slack in Airflow's environment"
        )
    return slack


def _once_a_day(cron: str) -> str:
    """A partition is a day, so there is one tick a day: one minute, one hour, every day."""
    if not re.fullmatch(r"\d+ \d+ \* \* \*", cron) or not croniter.is_valid(cron):
        raise ValueError(f"schedule.ingest: {cron!r} is no cron for one time a day, such as '0 3 * * *'")
    return cron
