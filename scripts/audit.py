"""Writes what the image is made of to var/sbom.json, and asks whether anything locked has known vulnerabilities.

Part of `make check-all`. Exit code 1 where a locked version has a known vulnerability. Where no service could be asked,
that is said with the reasons; it is a failure only with CI_AUDIT=required in the environment.

The tools are fetched by uv for this run, and are not in .venv.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PIP_AUDIT, CYCLONEDX = "pip-audit==2.10.1", "cyclonedx-bom==7.5.0"
SERVICES = ("pypi", "osv")
KNOWN_BAD = "jinja2==2.10"
"""Has had known vulnerabilities for years. A mirror may answer without knowing any, and is not to be believed."""
IMAGE = {
    "python_version": "3.11",
    "python_full_version": "3.11.14",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
}
"""Where deploy/Dockerfile installs the lock; of lines for one Python or another these decide."""


class CannotAskError(Exception):
    """No service could say whether there are vulnerabilities."""


def locked(*names: str, extras: tuple[str, ...] = ()) -> list[str]:
    """The pins of some lock files, of torch, which is not in them, and of some of pyproject.toml's extras."""
    lines = [line for name in names for line in (ROOT / "requirements" / name).read_text("utf-8").splitlines()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines += [line for line in project["dependencies"] if line.startswith("torch==")]
    lines += [line for extra in extras for line in project["optional-dependencies"][extra]]
    asked = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [one for one in asked if one.marker is None or one.marker.evaluate(IMAGE)]
    return sorted({f"{one.name}{one.specifier}" for one in here})


def tool(package: str, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of a package in an environment of its own. `UV` may name another uv than .venv's."""
    uv = os.environ.get("UV") or str(Path(sys.executable).with_name("uv"))
    line = [uv, "tool", "run", "--quiet", "--python", "3.11", "--from", package, *command]
    return subprocess.run(line, input=text, capture_output=True, text=True, check=False, timeout=900)


def write_sbom(path: Path, pins: list[str]) -> int:
    """Write CycloneDX JSON that depends on the pins alone; the number of its components."""
    path.parent.mkdir(exist_ok=True)
    project = ("--pyproject", str(ROOT / "pyproject.toml"))
    done = tool(CYCLONEDX, "cyclonedx-py", "requirements", "-", *project, "--output-reproducible", text="\n".join(pins))
    if done.returncode:
        sys.exit(f"audit: no SBOM was written: {_last_line(done.stderr)}")
    path.write_text(done.stdout, encoding="utf-8")
    return len(json.loads(done.stdout)["components"])


def vulnerabilities(pins: list[str]) -> list[str]:
    """What is known of them, a line each, by the first service that can be asked.

    Raises:
        CannotAskError: there is none, with what was wrong with each.
    """
    reasons = []
    for service in SERVICES:
        try:
            if not _ask(service, [KNOWN_BAD]):
                raise CannotAskError(f"knows nothing wrong with {KNOWN_BAD}, so it has no vulnerabilities to tell of")
            return _ask(service, pins)
        except CannotAskError as reason:
            reasons.append(f"{service}: {reason}")
    raise CannotAskError("\n  ".join(reasons))


def _ask(service: str, pins: list[str]) -> list[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(pins))
        file.flush()
        options = ("--vulnerability-service", service, "--requirement", file.name, "--format", "json")
        done = tool(PIP_AUDIT, "pip-audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", *options)
    if done.returncode == 2:  # it was not understood, which says nothing about the service
        sys.exit(f"audit: {_last_line(done.stderr)}")
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        raise CannotAskError(_last_line(done.stderr)) from None
    found = [_in_words(one, known) for one in packages for known in one.get("vulns", [])]
    skipped = [one["skip_reason"] for one in packages if "skip_reason" in one]
    if skipped and not found:
        raise CannotAskError(f"{len(skipped)} of {len(packages)} without an answer: {skipped[0]}")
    return found


def _in_words(package: dict[str, Any], known: dict[str, Any]) -> str:
    names, mended = ", ".join([known["id"], *known["aliases"]]), ", ".join(known["fix_versions"])
    return f"{package['name']} {package['version']}: {names}; mended in {mended or 'no version yet'}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def main(sbom: Path = ROOT / "var" / "sbom.json") -> int:
    """Write the SBOM, then ask; the exit code."""
    count = write_sbom(sbom, locked("base.txt", extras=("cpu",)))
    print(f"audit: {os.path.relpath(sbom)}: {count} components")
    pins = locked("dev.txt", "spark.txt", extras=("cpu", "cuda"))
    try:
        found = vulnerabilities(pins)
    except CannotAskError as reason:
        required = os.environ.get("CI_AUDIT") == "required"
        rest = "" if required else "\n(a warning; with CI_AUDIT=required it would be an error)"
        print(f"audit: could not ask about {len(pins)} pins:\n  {reason}{rest}", file=sys.stderr)
        return int(required)
    print("\n".join([f"audit: {len(pins)} pins, known vulnerabilities: {len(found)}", *found]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
