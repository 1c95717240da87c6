"""Checks files of Kubernetes objects against Kubernetes' own schemas, strictly; `make check-all` runs it.

`python scripts/lint_kubernetes.py FILE…`, in an environment with the package kubernetes-validate. Exit code 1 where
something is wrong, an object without a schema too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import yaml

VERSION = "1.37"
FILLED_IN = {"AS_OF": "2026-01-31", "PLAN": "2026-01-31-0123456789ab", "SHARDS": "17"}
"""Stands for what `envsubst` fills in on a day (deploy/README.md)."""


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """Every object of a file, those in a `List` one by one.

    Raises:
        KeyError: the file has a ${NAME} that nothing fills in.
    """
    text = Template(path.read_text(encoding="utf-8").replace("$(", "$$(")).substitute(FILLED_IN)
    for found in yaml.safe_load_all(text):
        yield from found["items"] if found["kind"] == "List" else [found]


def main() -> int:
    """Print a line for each object; 1 where one is wrong."""
    import kubernetes_validate as kubernetes

    wrong = 0
    for path in map(Path, sys.argv[1:]):
        for one in objects(path):
            name = f"{path}: {one['kind']} {one['metadata']['name']}"
            try:
                kubernetes.validate(one, VERSION, strict=True)
                print(f"{name}: fits Kubernetes {VERSION}")
            except (kubernetes.ValidationError, kubernetes.SchemaNotFoundError) as error:
                print(f"{name}: {error.message}", file=sys.stderr)
                wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
