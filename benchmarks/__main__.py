"""`python -m benchmarks NAME [--json]`: run a benchmark; without a name, list what there is.

The result goes to stdout: a table to read, or with `--json` exactly one line. Progress goes to stderr. Exit codes:
0 done, 2 something that the user can mend, 1 a bug.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any, Protocol, cast

from recsys_moe.errors import UserError

USER_ERROR = 2

BENCHMARKS: Mapping[str, str] = {
    "boosting": "our model against gradient boosting with history, on the same real days, certainly better or not",
    "evaluate": "rows a second and memory of an evaluation's metrics, over all rows and by segment",
    "experts": "what a step of the mixture costs by the number of experts, chosen ones alone against all of them",
    "ingest": "what reading, checking and publishing a day costs beside a bare conversion of its file",
    "kuairand": "six architectures on the same twelve real days, over several seeds",
    "lists": "recall and NDCG of lists on real days, beside what is popular in a user's segment",
    "loader": "what a training from Delta tables loses to one from tensors in memory, and its memory by rows",
    "prepare": "rows a second and memory of preparing 30 days with history, and what one more day costs",
    "scoring": "pairs a second of batch scoring beside a forward pass for each, and beside two other libraries",
    "scoring-end-to-end": "seconds and memory of scoring a million users, from candidates to published lists",
    "segments": "what experts per segment are worth, where tastes differ and where a segment is new",
    "sharding": "where torchrec's planner puts 10^9 ids on 8 and 64 devices, and what it expects of a step",
    "tasks-correlation": "three ways to share experts between two tasks, by how related the tasks are (Ma et al. 2018)",
    "training": "samples a second of our training beside the MMoE of torch-rechub and DeepCTR-Torch",
    "warm-start": "how many steps a warm start takes to be as good as a cold one",
}
"""What each measures, by name: `tasks-correlation` is the module `benchmarks.tasks_correlation`."""


class Benchmark(Protocol):
    """What a benchmark's module offers."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options, which become the arguments of `run`."""

    def run(self, **options: Any) -> dict[str, Any]:
        """Measure; the result is made of what JSON can hold."""

    def table(self, result: Mapping[str, Any]) -> str:
        """The result for a person to read."""


def listing() -> str:
    """Usage, and a line for each benchmark."""
    width = max(map(len, BENCHMARKS))
    lines = [f"  {name:{width}}  {measures}" for name, measures in BENCHMARKS.items()]
    return "\n".join(["usage: python -m benchmarks NAME [--json] [options; see NAME --help]", "", *lines])


def load(name: str) -> Benchmark:
    """The module of a benchmark.

    Raises:
        UserError: there is none of that name.
    """
    if name not in BENCHMARKS:
        raise UserError(f"{name!r} is no benchmark; there are: {', '.join(BENCHMARKS)}")
    return cast(Benchmark, import_module(f"benchmarks.{name.replace('-', '_')}"))


def run(name: str, words: Sequence[str]) -> str:
    """Run a benchmark with options from the command line; returns what belongs on stdout."""
    benchmark = load(name)
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=BENCHMARKS[name])
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    benchmark.add_options(parser)
    options = vars(parser.parse_args(words))
    as_json = options.pop("json")
    with redirect_stdout(sys.stderr):
        result = benchmark.run(**options)
    return json.dumps(result, allow_nan=False) if as_json else benchmark.table(result)


def main(words: Sequence[str]) -> int:
    """Print a benchmark's result, or the list of benchmarks; returns the exit code."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("benchmarks").setLevel(logging.INFO)  # torchrec and fbgemm have much to say at this level
    if not words or words[0] in ("-h", "--help"):
        print(listing())
        return 0
    try:
        print(run(words[0], words[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
