"""The design's limits, held: who may import what, how long things may be, and what must not be in the tree.

The rules are DESIGN section 3's. Tests are free to import anything, since they look at the project from outside.
Every rule is first shown to fail on a snippet that breaks it.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("recsys_moe", "pipelines", "dags", "benchmarks")
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400

# A file may import the library if its path starts with one of these.
ONLY_IN = {
    "airflow": ("dags/",),
    "mlflow": (
        "pipelines/registry.py",
        "pipelines/aliases.py",
        "pipelines/runs.py",
        "pipelines/model_files.py",
        "pipelines/served_model.py",
    ),
    "deltalake": ("pipelines/tables/",),
    "pandas": ("pipelines/", "benchmarks/"),
    "duckdb": ("pipelines/", "benchmarks/"),
    "pyarrow": ("pipelines/", "benchmarks/", "recsys_moe/encoding/"),
    "sklearn": ("recsys_moe/encoding/", "pipelines/baselines/", "benchmarks/"),
    "optuna": ("pipelines/study.py",),
    "faiss": ("pipelines/scoring/candidates/nearest.py",),
    "pyspark": ("pipelines/scoring/spark.py",),
}
# Naming a table's type in a signature costs nothing at run time and reads no data.
FOR_TYPES_ANYWHERE_IN = {"pyarrow": "recsys_moe/"}
# The direction: dags → (the command line) → pipelines → recsys_moe.
NEVER = {
    "recsys_moe/": {"pipelines", "dags", "benchmarks", "tests"},
    "pipelines/": {"dags", "benchmarks", "tests"},
    "dags/": {"recsys_moe", "pipelines", "benchmarks", "tests", "torch", "torchrec", "fbgemm_gpu"},
    "benchmarks/": {"dags", "tests"},
}
# What a served model imports, directly or through the project's own modules, must load without these.
SERVING = ("pipelines.served_model", "recsys_moe.scoring.top_n")
NOT_IN_SERVING = {"torchrec", "fbgemm_gpu", "sklearn"}

UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "torch.save"}
SAFE_ONLY_WITH = {"torch.load": ("weights_only", True)}
NEVER_WITH = {"allow_pickle": True, "shell": True}

# A path of somebody's machine, at the start of a word. (Written so that it does not find itself.)
MACHINE_PATH = re.compile(r"""(?:^|[\s"'`=(:,\[])/(?:work|root|home|Users)/[\w.-]""", re.MULTILINE)


@dataclass(frozen=True)
class Import:
    """One import statement: what it names, where, and when it happens."""

    path: str
    line: int
    module: str
    at: str  # "load", "call" or "typing"

    @property
    def library(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _named(node: ast.Import | ast.ImportFrom, path: str) -> Iterator[str]:
    """The modules that a statement may load: for `from a import b` both a and a.b, since b may be a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    package = Path(path).parts[: -node.level] if node.level else ()
    base = [*package, *([node.module] if node.module else [])]
    yield ".".join(base)
    yield from (".".join([*base, alias.name]) for alias in node.names)


def imports(source: str, path: str) -> list[Import]:
    """Every import of a file, also inside functions and under TYPE_CHECKING."""
    found: list[Import] = []

    def walk(node: ast.AST, at: str) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.extend(Import(path, node.lineno, module, at) for module in _named(node, path))
            return
        inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for name, value in ast.iter_fields(node):
            inner = "typing" if _is_type_checking(node) and name == "body" else "call" if inside_function else at
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    walk(child, inner)

    walk(ast.parse(source), "load")
    return found


def misplaced_imports(source: str, path: str) -> list[str]:
    """Libraries imported where they do not belong, and the project's own parts imported backwards."""
    problems = []
    for found in imports(source, path):
        for_types = found.at == "typing" and path.startswith(FOR_TYPES_ANYWHERE_IN.get(found.library, "never/"))
        if not for_types and not path.startswith(ONLY_IN.get(found.library, ("",))):
            problems.append(f"{found}; only {', '.join(ONLY_IN[found.library])} may")
        if any(path.startswith(folder) and found.library in names for folder, names in NEVER.items()):
            problems.append(f"{found}; dags → pipelines → recsys_moe, never backwards")
    return list(dict.fromkeys(problems))


def long_functions(source: str, path: str) -> list[str]:
    """Functions longer than the limit, their docstrings included."""
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(n, (n.end_lineno or n.lineno) - n.lineno + 1) for n in functions]
    return [f"{path}:{n.lineno} {n.name} has {size} lines" for n, size in lengths if size > MAX_FUNCTION_LINES]


def long_file(source: str, path: str) -> list[str]:
    """A file longer than the limit."""
    size = len(source.splitlines())
    return [f"{path} has {size} lines"] if size > MAX_FILE_LINES else []


def unsafe_code(source: str, path: str) -> list[str]:
    """Whatever could run code that came with the data: unpickling, eval, exec, a full YAML loader, a shell."""
    problems = [str(found) for found in imports(source, path) if found.library in UNSAFE_MODULES]
    for call in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]:
        name = ast.unparse(call.func)
        given = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
        keyword, value = SAFE_ONLY_WITH.get(name, ("", None))
        unsafe = name in UNSAFE_CALLS or (keyword and given.get(keyword) is not value)
        if unsafe or any(given.get(word) is value for word, value in NEVER_WITH.items()):
            problems.append(f"{path}:{call.lineno} calls {ast.unparse(call)}")
    return problems


def machine_paths(source: str, path: str) -> list[str]:
    """Places that exist on one machine only."""
    return [f"{path}: {match.group().strip()}…" for match in MACHINE_PATH.finditer(source)]


def loaded_with(start: str, sources: dict[str, str]) -> list[Import]:
    """What importing module `start` imports as it loads, through the project's own modules and their packages.

    Args:
        start: a dotted name.
        sources: the project's files by path.
    """
    seen: set[str] = set()
    todo, found = [start], []
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        parts = module.split(".")
        todo += [".".join(parts[:n]) for n in range(1, len(parts))]
        for path in (f"{'/'.join(parts)}.py", f"{'/'.join(parts)}/__init__.py"):
            loaded = [found for found in imports(sources.get(path, ""), path) if found.at == "load"]
            found += loaded
            todo += [one.module for one in loaded]
    return found


def heavy_for_serving(start: str, sources: dict[str, str]) -> list[str]:
    """Imports that a serving module must do without."""
    return [str(found) for found in loaded_with(start, sources) if found.library in NOT_IN_SERVING]


# ---------------------------------------------------------------------------------------------------------------------
# The rules can fail.

_LONG = "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES
_HOME = "/" + "root/data"  # in two parts, or this file would break the rule


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        (misplaced_imports, "pipelines/train.py", "import airflow"),
        (misplaced_imports, "pipelines/train.py", "from airflow.sdk import dag"),
        (misplaced_imports, "pipelines/train.py", "def f():\n    import mlflow.pyfunc"),
        (misplaced_imports, "pipelines/score.py", "from deltalake import DeltaTable"),
        (misplaced_imports, "recsys_moe/metrics.py", "import pandas as pd"),
        (misplaced_imports, "recsys_moe/metrics.py", "import numpy, duckdb"),
        (misplaced_imports, "recsys_moe/metrics.py", "import pyarrow"),
        (misplaced_imports, "recsys_moe/metrics.py", "def f():\n    from sklearn.metrics import roc_auc_score"),
        (misplaced_imports, "pipelines/held_out.py", "from sklearn.cluster import KMeans"),
        (
            misplaced_imports,
            "recsys_moe/metrics.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas",
        ),
        (misplaced_imports, "recsys_moe/x.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import pyarrow"),
        (misplaced_imports, "recsys_moe/model.py", "from pipelines.config import Recommender"),
        (misplaced_imports, "recsys_moe/model.py", "from .. import pipelines"),
        (misplaced_imports, "pipelines/train.py", "from benchmarks import routing"),
        (misplaced_imports, "recsys_moe/model.py", "import benchmarks.experts"),
        (misplaced_imports, "benchmarks/experts.py", "def f():\n    from tests import conftest"),
        (misplaced_imports, "benchmarks/experts.py", "import dags.recommenders"),
        (misplaced_imports, "dags/recommenders.py", "from pipelines.config import load"),
        (misplaced_imports, "dags/recommenders.py", "import recsys_moe"),
        (misplaced_imports, "dags/recommenders.py", "import torch"),
        (misplaced_imports, "dags/recommenders.py", "import pandas"),
        (long_functions, "pipelines/x.py", _LONG),
        (long_functions, "pipelines/x.py", "async " + _LONG),
        (long_file, "pipelines/x.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
        (unsafe_code, "pipelines/x.py", "import pickle"),
        (unsafe_code, "pipelines/x.py", "def f():\n    from joblib import load"),
        (unsafe_code, "pipelines/x.py", "eval('1')"),
        (unsafe_code, "pipelines/x.py", "exec(source)"),
        (unsafe_code, "pipelines/x.py", "yaml.load(text)"),
        (unsafe_code, "pipelines/x.py", "torch.load(path)"),
        (unsafe_code, "pipelines/x.py", "torch.load(path, weights_only=False)"),
        (unsafe_code, "pipelines/x.py", "np.load(path, allow_pickle=True)"),
        (unsafe_code, "pipelines/x.py", "subprocess.run(command, shell=True)"),
        (machine_paths, "docs/guide.md", f"look into {_HOME}"),
        (machine_paths, "docs/guide.md", f"path={_HOME}"),
        (machine_paths, "docs/guide.md", _HOME),
    ],
)
def test_a_breach_is_seen(check: Callable[[str, str], list[str]], path: str, source: str) -> None:
    assert check(source, path)


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        (misplaced_imports, "dags/recommenders.py", "from airflow.sdk import dag\nimport yaml\nfrom . import helper"),
        (
            misplaced_imports,
            "pipelines/served_model.py",
            "import mlflow.pyfunc\nimport pandas as pd\nimport recsys_moe",
        ),
        (misplaced_imports, "recsys_moe/encoding/columns.py", "import pyarrow.compute as pc"),
        (misplaced_imports, "recsys_moe/encoding/behaviour.py", "def f():\n    from sklearn.cluster import KMeans"),
        (misplaced_imports, "recsys_moe/x.py", "if TYPE_CHECKING:\n    import pyarrow as pa"),
        (misplaced_imports, "benchmarks/experts.py", "from pipelines import config\nfrom recsys_moe.model import x"),
        (misplaced_imports, "recsys_moe/x.py", "from . import config\nfrom recsys_moe.errors import UserError"),
        (long_functions, "pipelines/x.py", _LONG.removesuffix("    pass\n")),
        (unsafe_code, "pipelines/x.py", "model.eval()\nyaml.safe_load(text)\ntorch.load(path, weights_only=True)"),
        (machine_paths, "docs/guide.md", "s3://bucket/work/x, ../root/x, var/home/x and `work/`"),
    ],
)
def test_what_is_allowed_passes(check: Callable[[str, str], list[str]], path: str, source: str) -> None:
    assert not check(source, path)


@pytest.mark.parametrize("culprit", ["a/__init__.py", "a/deep.py", "a/near.py"])
def test_a_heavy_import_is_seen_wherever_it_hides(culprit: str) -> None:
    light = {
        "a/__init__.py": "",
        "a/serve.py": "from a import near\nif TYPE_CHECKING:\n    import torchrec\n\ndef f():\n    import torchrec",
        "a/near.py": "from .deep import x",
        "a/deep.py": "import torch",
    }
    assert not heavy_for_serving("a.serve", light)
    heavy = light | {culprit: light[culprit] + "\nfrom torchrec.sparse import jagged_tensor"}
    assert heavy_for_serving("a.serve", heavy)


# ---------------------------------------------------------------------------------------------------------------------
# The project keeps them.


def _sources(*folders: str) -> dict[str, str]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(files)}


def _problems(check: Callable[[str, str], list[str]], sources: dict[str, str]) -> list[str]:
    return [problem for path, source in sources.items() for problem in check(source, path)]


@pytest.mark.parametrize("folder", ["recsys_moe", "pipelines", "dags", "benchmarks", "tests"])
def test_each_part_has_code(folder: str) -> None:
    """Or the tests below would look at nothing."""
    assert _sources(folder)


@pytest.mark.parametrize("check", [misplaced_imports, unsafe_code])
def test_product_code_keeps(check: Callable[[str, str], list[str]]) -> None:
    assert not _problems(check, _sources(*PRODUCT))


@pytest.mark.parametrize("check", [long_functions, long_file])
def test_all_code_keeps(check: Callable[[str, str], list[str]]) -> None:
    assert not _problems(check, _sources(*PRODUCT, "tests"))


@pytest.mark.parametrize("start", SERVING)
def test_serving_loads_nothing_heavy(start: str) -> None:
    sources = _sources(*PRODUCT)
    assert f"{start.replace('.', '/')}.py" in sources
    assert not heavy_for_serving(start, sources)


def test_serving_loads_nothing_heavy_in_truth() -> None:
    """The same at run time, where other packages may bring them in."""
    heavy = f"import sys, {', '.join(SERVING)}; print(sorted({NOT_IN_SERVING} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_no_machine_path_in_the_tree() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so which files belong to the project is not known")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    contents = {str(file.relative_to(ROOT)): file.read_bytes() for file in files if file.is_file()}
    texts = {name: content.decode("utf-8") for name, content in contents.items() if b"\0" not in content}
    assert texts
    assert not _problems(machine_paths, texts)


def test_the_console_script_resolves() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for target in project["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
