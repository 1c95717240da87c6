"""Small YAMLs that stand for huge ones, or for one without end: one line within seconds, for the CLI and the DAGs."""

from __future__ import annotations

import importlib.util
import re
import resource
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from pipelines.config import load
from recsys_moe.errors import UserError
from tests.pipelines.conftest import CONFIG

GOOD = yaml.dump(CONFIG | {"schedule": {"ingest": "0 3 * * *"}}, Dumper=yaml.CSafeDumper)
MOST_KILOBYTES, MOST_SECONDS = 100 << 10, 20  # it takes a few megabytes and less than a second


def levels(first: str, next_: str) -> str:
    """Ten lines, each of which holds the one before ten times: ten billion values."""
    lines = (f"a{n}: &a{n} " + next_.format(", ".join([f"*a{n - 1}"] * 10)) for n in range(1, 11))
    return "\n".join([f"a0: &a0 {first}", *lines])


BOMBS = {
    "billion laughs": (levels("[x, x]", "[{}]"), "aliases"),
    "billion merges": (levels("{k: 1}", "{{<<: [{}]}}"), "aliases"),
    "one long text, often": (f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]", "aliases"),
    "holds itself": ("a: &a [*a]", "aliases"),
    "deep lists": ("a:\n" + "- " * 1500 + "x", "nests too deeply"),
    "deep keys": ("\n".join(" " * n + "a:" for n in range(400)), "nests too deeply"),
    "a huge text": ("a: " + "x" * 20_000_000, "longer than 256000 characters"),
    "a number of digits": ("a: " + "9" * 5000, "4300 digits"),
    "no such day": ("a: 2026-13-45", "month must be in 1..12"),
    "no such tag": ("a: !!bool neither", "neither"),
    "not a time": ("a: !!timestamp never", "not what its tag says"),
    "half a character": ('a: "\\ud800"', "a character that no text has"),
}
"""What a YAML has besides, and what is said of it."""
ONLY_THE_CLI = {"half a character", "deep keys"}
"""The DAGs read little of a YAML, and neither is in that."""


@pytest.fixture(scope="module")
def dags(project_root: Path) -> ModuleType:
    """The module that reads YAMLs for Airflow, which shares no code with the CLI."""
    spec = importlib.util.spec_from_file_location("checked_configs", project_root / "dags" / "checked_configs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "checked_configs", module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("bomb", "said"), BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_in_a_line(bomb: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(f"{GOOD}\n{bomb}\n", encoding="utf-8")
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=said) as refused:
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KILOBYTES
    assert time.monotonic() - started < MOST_SECONDS
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_default_is_looked_for_once(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(f'{GOOD}\na: "{"${A:-" * 40_000}"\n', encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(UserError, match="a: unknown key"):
        load(path)
    assert time.monotonic() - started < MOST_SECONDS


def test_aliases_may_be_used(tmp_path: Path) -> None:
    path = tmp_path / "configs" / "tiny.yaml"
    path.parent.mkdir()
    path.write_text(GOOD.replace("embedding_dim: 4", "embedding_dim: &four 4").replace("- 8", "- *four"))
    assert load(path).model.embedding_dim == 4


def test_bombs_do_not_reach_the_scheduler(tmp_path: Path, dags: ModuleType) -> None:
    """One line for each, and the good one beside them is read."""
    (tmp_path / "good.yaml").write_text(GOOD, encoding="utf-8")
    for number, (bomb, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number:02}.yaml").write_text(f"{GOOD.replace('name: tiny', f'name: bomb{number}')}\n{bomb}\n")
    started = time.monotonic()
    found, problems = dags.read_all(tmp_path)
    assert time.monotonic() - started < MOST_SECONDS
    assert "tiny" in [one.name for one in found]
    refused = [problem.partition(".yaml: ")[0] for problem in problems]
    assert refused == [f"{number:02}" for number, name in enumerate(BOMBS) if name not in ONLY_THE_CLI]
    assert not any("\n" in problem for problem in problems)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("{{ conn.bank.password }}.yaml", {}, "its name has a brace"),
        ("a.yaml", {"name": "tiny\n"}, "name: "),
        ("a.yaml", {"name": "x" * 300}, "name: .* is too long"),
        ("a.yaml", {"schedule": {"ingest": "0 3 * * *", "start": "9999-12-31"}}, "schedule.start: .* does not match"),
        (
            "a.yaml",
            {"schedule": {"ingest": "0 3 * * *", "alerts": {"email": ["{{conn.bank.password}}@example.org"]}}},
            "schedule.alerts.email.0.: .* does not match",
        ),
    ],
)
def test_nothing_that_airflow_would_fill_in_or_fall_over(
    file: str, change: dict[str, object], said: str, tmp_path: Path, dags: ModuleType
) -> None:
    (tmp_path / file).write_text(yaml.safe_dump(yaml.safe_load(GOOD) | change))
    found, problems = dags.read_all(tmp_path)
    assert found == []
    assert len(problems) == 1
    assert re.search(said, problems[0]), problems
