"""The lock files hold what is asked for: a change to a requirement without `make lock` is seen, without a network."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
# Chosen on the machine by scripts/setup.sh (docs/decisions/0001), or not installed by it.
NOT_LOCKED = {"torch", "fbgemm-gpu", "fbgemm-gpu-cpu", "pyspark"}


def _lines(path: Path) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]


def _asked_in(path: Path) -> list[Requirement]:
    """The requirements of a .in file, and of those that it includes with `-r`."""
    found = []
    for line in _lines(path):
        included = line.removeprefix("-r ")
        found += [Requirement(line)] if included == line else _asked_in(path.parent / included)
    return found


def _asked_in_pyproject() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def _locked(path: Path) -> dict[str, list[Requirement]]:
    """What a lock holds by name; one name may stand twice, for different Pythons."""
    found: dict[str, list[Requirement]] = {}
    for line in _lines(path):
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def _not_satisfied(asked: list[Requirement], locked: dict[str, list[Requirement]]) -> list[str]:
    problems = []
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        pins = [str(one.specifier).removeprefix("==") for one in locked.get(name, [])]
        if name not in NOT_LOCKED and not (pins and all(requirement.specifier.contains(pin) for pin in pins)):
            problems.append(f"{requirement} is asked for, locked is {pins or 'nothing'}; run `make lock`")
    return problems


@pytest.mark.parametrize("name", ["base", "dev"])
def test_the_lock_satisfies_what_its_source_asks_for(name: str) -> None:
    assert not _not_satisfied(_asked_in(FOLDER / f"{name}.in"), _locked(FOLDER / f"{name}.txt"))


def test_the_lock_satisfies_pyproject() -> None:
    assert not _not_satisfied(_asked_in_pyproject(), _locked(FOLDER / "dev.txt"))


@pytest.mark.parametrize("asked", ["duckdb==0.1", "no-such-package"])
def test_a_stale_lock_is_seen(asked: str) -> None:
    assert _not_satisfied([Requirement(asked)], _locked(FOLDER / "dev.txt"))


@pytest.mark.parametrize("name", ["base", "dev"])
def test_the_lock_leaves_torch_and_cuda_to_the_machine(name: str) -> None:
    """Or a machine without a GPU gets several GB of CUDA, and one with a GPU a build that does not fit it."""
    locked = _locked(FOLDER / f"{name}.txt")
    assert not NOT_LOCKED & set(locked)
    assert not [name for name in locked if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_development_runs_on_the_same_versions() -> None:
    base, dev = _locked(FOLDER / "base.txt"), _locked(FOLDER / "dev.txt")
    assert not {name for name in base if base[name] != dev.get(name)}
