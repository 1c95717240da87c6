"""What deploy/ asks for is there: the image's files, the commands and options of its jobs; and scripts/audit.py's rule.

The files are linted, and the tools asked for real, by `make check-all`.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from pipelines.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
KUBERNETES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
SECRET = re.compile(r"password|secret|token|key", re.IGNORECASE)


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit, lint = _script("audit"), _script("lint_kubernetes")


# ---------------------------------------------------------------------------------------------------------------------
# The image.


def copied() -> list[str]:
    """What the Dockerfile copies from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def reaches_the_build(path: str) -> bool:
    """Whether .dockerignore lets a path through: of the lines that match it or a folder above it the last decides."""
    parts, kept = Path(path).parts, True
    above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        names = parts if pattern.startswith("**/") else above
        if line and not line.startswith("#") and fnmatch.filter(names, pattern.removeprefix("**/")):
            kept = line.startswith("!")
    return kept


def test_the_image_is_given_what_it_copies() -> None:
    assert {"dags", "pipelines", "recsys_moe", "requirements/base.txt"} <= set(copied())
    assert [source for source in copied() if not (ROOT / source).exists()] == []
    assert [source for source in copied() if not reaches_the_build(source)] == []


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".env",
        ".venv/bin/python",
        ".venv-peers/x",
        "configs/demo.yaml",
        "pipelines/__pycache__/cli.pyc",
        "requirements/dev.txt",
        "tests/conftest.py",
        "var/sbom.json",
    ],
)
def test_the_rest_stays_out(path: str) -> None:
    assert not reaches_the_build(path)


def test_the_image_runs_as_nobody_in_particular() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    (number,) = re.findall(r"^USER (\d+)$", text.rpartition("\nFROM")[2], re.MULTILINE)
    assert int(number) > 0
    assert f"--uid {number}" in text
    assert {pod["securityContext"]["runAsUser"] for _, pod in _pods()} == {int(number)}


def test_what_the_build_reads_from_other_files_is_there() -> None:
    """The Dockerfile takes the index of CPU builds and the pins by their looks."""
    assert re.search(r"^readonly CPU_INDEX=https://\S+$", (ROOT / "scripts/setup.sh").read_text("utf-8"), re.MULTILINE)
    pins = re.findall(r"\$\(pin ([\w-]+)\)", DOCKERFILE.read_text(encoding="utf-8"))
    found = {name: re.findall(rf'"{name}==[^"]*"', (ROOT / "pyproject.toml").read_text("utf-8")) for name in pins}
    assert {name: len(lines) for name, lines in found.items()} == {"torch": 1, "fbgemm-gpu-cpu": 1, "fbgemm-gpu": 1}


# ---------------------------------------------------------------------------------------------------------------------
# Kubernetes.


def _pods() -> list[tuple[str, dict[str, Any]]]:
    """Each pod's spec, with the name of its object."""
    found = [one for path in KUBERNETES for one in lint.objects(path)]
    specs = [one["spec"] if one["kind"] == "Pod" else one["spec"]["template"]["spec"] for one in found]
    return [(one["metadata"]["name"], spec) for one, spec in zip(found, specs, strict=True)]


PODS = [pytest.param(spec, id=name) for name, spec in _pods()]
ARGUMENTS = [
    pytest.param(pod["containers"][0]["args"], id=name) for name, pod in _pods() if "args" in pod["containers"][0]
]


def understood(arguments: list[str]) -> dict[str, Any]:
    """What the CLI reads a command's arguments as; raises where it does not know one, or misses one."""
    group: Any = typer.main.get_command(app)
    name, command, rest = group.resolve_command(group.make_context("recsys-moe", list(arguments)), list(arguments))
    values: dict[str, Any] = command.make_context(name, rest).params
    return values


def test_there_is_a_job_for_each_part_of_a_scoring() -> None:
    assert [value.values[0][0] for value in ARGUMENTS] == ["score-plan", "score-shard", "score-publish"]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_the_command_line_knows_what_jobs_ask_for(arguments: list[str]) -> None:
    index = {"$(JOB_COMPLETION_INDEX)": "0"}
    values = understood([index.get(one, one) for one in arguments])
    assert str(values["config"]).startswith("/data/configs/")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["no-such-step"], "No such command"),
        (["score-plan", "--no-such-option", "x"], "No such option"),
        (["score-plan", "--config", "x.yaml"], "Missing parameter: as_of"),
        (["score-shard", "--config", "x.yaml", "--plan", "x", "--shard", "first"], "valid integer"),
    ],
)
def test_what_it_does_not_know_is_seen(arguments: list[str], problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        understood(arguments)


def test_shards_are_counted_as_the_plan_counts_them() -> None:
    (job,) = [
        one for path in KUBERNETES for one in lint.objects(path) if one["metadata"].get("labels") == {"step": "shards"}
    ]
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == int(lint.FILLED_IN["SHARDS"])


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_has_no_more_rights_than_it_needs(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/tmp"}


def written_in(pod: dict[str, Any]) -> Iterator[str]:
    """The names of settings that look secret and have their value in the file."""
    for setting in pod["containers"][0]["env"]:
        if SECRET.search(setting["name"]) and "secretKeyRef" not in setting.get("valueFrom", {}):
            yield setting["name"]
        if re.search(r"://[^/\s]*@", setting.get("value", "")):
            yield setting["name"]


@pytest.mark.parametrize("pod", PODS)
def test_no_secret_is_written_down(pod: dict[str, Any]) -> None:
    assert list(written_in(pod)) == []


@pytest.mark.parametrize(
    "setting", [{"name": "DB_PASSWORD", "value": "x"}, {"name": "DB", "value": "postgresql://a:b@c/d"}]
)
def test_a_secret_that_is_written_down_is_seen(setting: dict[str, str]) -> None:
    assert list(written_in({"containers": [{"env": [setting]}]})) == [setting["name"]]


def test_a_name_that_nothing_fills_in_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("kind: Job\nname: ${NOBODY}\n", encoding="utf-8")
    with pytest.raises(KeyError, match="NOBODY"):
        list(lint.objects(path))


def test_all_files_are_yaml_of_known_kinds() -> None:
    assert {one["kind"] for path in KUBERNETES for one in lint.objects(path)} == {"Pod", "Job"}
    assert all(yaml.safe_load(path.read_text(encoding="utf-8")) for path in KUBERNETES)


# ---------------------------------------------------------------------------------------------------------------------
# The audit. A stand-in for uv answers as pip-audit 2.10.1 did: here no service of vulnerabilities can be reached.

CLEAN = {"name": "rich", "version": "13.9.0", "vulns": []}
OLD = {
    "name": "jinja2",
    "version": "2.10",
    "vulns": [{"id": "CVE-2019-10906", "fix_versions": ["2.10.1"], "aliases": ["GHSA-462w-v97r-4m45"]}],
}
SKIPPED = {"name": "jinja2", "skip_reason": "Dependency not found on PyPI and could not be audited: jinja2 (2.10)"}


def _uv(folder: Path, of_known_bad: list[Any], of_pins: list[Any], code: int = 0) -> Path:
    """A stand-in for `uv tool run`, which answers for the known bad pin and for all others."""
    body = f"""#!{sys.executable} -IS
import json, sys
if "cyclonedx-py" in sys.argv:
    pins = sys.stdin.read().split()
    print(json.dumps({{"components": pins}}))
    sys.exit()
asked = open(sys.argv[sys.argv.index("--requirement") + 1]).read()
if {code}:
    sys.exit({code})
print(json.dumps({{"dependencies": {of_known_bad!r} if asked == "jinja2==2.10" else {of_pins!r}}}))
"""
    path = folder / "uv"
    path.write_text(body, encoding="utf-8")
    path.chmod(0o755)
    return path


def _audit(uv: Path, monkeypatch: pytest.MonkeyPatch, required: str = "") -> int:
    monkeypatch.setenv("UV", str(uv))
    monkeypatch.setenv("CI_AUDIT", required)
    code: int = audit.main(uv.parent / "sbom.json")
    return code


def test_vulnerabilities_are_named_and_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _audit(_uv(tmp_path, [OLD], [CLEAN, OLD, SKIPPED]), monkeypatch) == 1
    assert "jinja2 2.10: CVE-2019-10906, GHSA-462w-v97r-4m45; mended in 2.10.1" in capsys.readouterr().out


def test_none_is_a_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _audit(_uv(tmp_path, [OLD], [CLEAN]), monkeypatch, required="required") == 0


@pytest.mark.parametrize(
    ("of_known_bad", "of_pins", "reason"),
    [
        ([SKIPPED], [CLEAN], "pypi: 1 of 1 without an answer: Dependency not found on PyPI"),
        ([CLEAN], [CLEAN], "pypi: knows nothing wrong with jinja2==2.10"),
        ([OLD], [CLEAN, SKIPPED], "osv: 1 of 2 without an answer"),
    ],
)
def test_silence_is_a_warning_unless_an_answer_is_required(
    of_known_bad: list[Any],
    of_pins: list[Any],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uv = _uv(tmp_path, of_known_bad, of_pins)
    assert _audit(uv, monkeypatch) == 0
    said = capsys.readouterr().err
    assert "could not ask" in said
    assert reason in said
    assert _audit(uv, monkeypatch, required="required") == 1


def test_an_option_that_pip_audit_does_not_know_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="audit"):
        _audit(_uv(tmp_path, [], [], code=2), monkeypatch)


def test_what_the_image_is_made_of_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _audit(_uv(tmp_path, [OLD], [CLEAN]), monkeypatch)
    pins = json.loads((tmp_path / "sbom.json").read_text(encoding="utf-8"))["components"]
    names = [pin.partition("==")[0] for pin in pins]
    assert {"torch", "torchrec", "fbgemm-gpu-cpu", "apache-airflow"} <= set(names)
    assert not {"pytest", "pyspark", "fbgemm-gpu"} & set(names)
    assert len(names) == len(set(names))
    assert all("==" in pin and ";" not in pin for pin in pins)
