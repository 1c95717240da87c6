"""A plan's shards on Spark: each is a task, which runs what the plain engine runs, in a Python worker.

Only shard numbers go out and numbers of rows come back. What a worker reads and writes lies below the storage, so that
has to be a place which all of them reach. The session is the one that is there, or that `spark-submit` or Spark's
settings name; where nothing says which, it is one on this machine.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.progress import Progress
from pipelines.scoring.engine import ATTEMPTS, given_up
from pipelines.scoring.plan import Plan
from pipelines.scoring.shard import Scorer
from recsys_moe.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0
_SAYS_WHERE = ("PYSPARK_GATEWAY_PORT", "SPARK_REMOTE", "MASTER")
"""Environment variables that are set where `spark-submit` runs this, or that name a Spark."""
_TRACKING = "MLFLOW_TRACKING_URI"
_DONE = "shard long, rows long, seconds double, refused string"
_FAILED = re.compile(r"shard (\d+) failed (\d+) times: (.*)")
_LOST = re.compile(r"Task (\d+) in stage \S+ failed (\d+) times")


def run(config: Recommender, plan: Plan) -> None:
    """Score all shards of a plan that are not there yet.

    Raises:
        TryAgainError: a shard failed as often as Spark tries it, or Spark itself failed.
        UserError: something that a person has to put right; Spark or Java is not there.
    """
    todo = plan.todo(config)
    if not todo:
        return
    with warnings.catch_warnings():
        # It is of no account here, where rows are Arrow's.
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
        with (
            session(config.name, config.scoring.processes) as spark,
            Progress(f"score {plan.ds}", len(todo), "shards") as progress,
        ):

            def look() -> None:
                progress.advance(len(todo) - len(plan.todo(config)) - progress.done)

            _collect(spark, config, plan, todo, look)


def _collect(
    spark: SparkSession, config: Recommender, plan: Plan, todo: Sequence[int], look: Callable[[], None]
) -> None:
    """Run the tasks, and `look` now and then meanwhile."""
    from pyspark.errors import PySparkException

    tasks = spark.range(0, len(todo), 1, numPartitions=len(todo)).mapInArrow(_task(config, plan, todo), _DONE)
    with ThreadPoolExecutor(1, "spark") as thread:
        work = thread.submit(tasks.collect)
        try:
            while not wait([work], _SECONDS_BETWEEN_LOOKS).done:
                look()
        except BaseException:
            spark.interruptAll()  # or the thread would be waited for
            raise
    look()
    try:
        done = work.result()
    except Exception as error:
        if not isinstance(error, PySparkException) and type(error).__module__.split(".")[0] != "py4j":
            raise
        raise _failure(str(error), plan, todo) from error
    for row in done:
        if row.refused is not None:
            raise UserError(row.refused)
        log.debug("shard %d: %d rows, %.1f seconds", row.shard, row.rows, row.seconds)


def _failure(said: str, plan: Plan, todo: Sequence[int]) -> TryAgainError:
    """One line of what Spark says in hundreds."""
    if found := _FAILED.search(said):
        number, times, reason = int(found[1]), found[2], found[3]
    elif found := _LOST.search(said):
        number, times, reason = todo[int(found[1])], found[2], "its process was killed (out of memory?)"
    else:
        first = next((line.strip() for line in said.splitlines() if line.strip()), "no reason given")
        return TryAgainError(f"Spark failed, and nothing was published: {first}; run this step again")
    return given_up(plan, number, int(times), reason)


class _Failed(Exception):
    """Of a shard; Spark tries it again."""


def _task(
    config: Recommender, plan: Plan, todo: Sequence[int]
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What a task does with its rows, which are places in `todo`."""
    tracking = os.environ.get(_TRACKING)

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if tracking is not None:
            os.environ.setdefault(_TRACKING, tracking)  # a cluster may have said where it is for its machines
        for batch in batches:
            for place in batch.column(0).to_pylist():
                yield _score(config, plan, todo[place])

    return score


def _score(config: Recommender, plan: Plan, number: int) -> pa.RecordBatch:
    """Score a shard, in a worker.

    What a person has to put right is told, not raised: trying again, as Spark would, cannot help.
    """
    began, rows, refused = time.monotonic(), 0, None
    try:
        rows = _scorer(config, plan).score(number)
    except Exception as error:
        said = " ".join(str(error).split())
        if isinstance(error, UserError) and not isinstance(error, TryAgainError):
            refused = said
        else:
            from pyspark import TaskContext

            context = TaskContext.get()
            assert context is not None
            reason = said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"
            raise _Failed(f"shard {number} failed {context.attemptNumber() + 1} times: {reason}") from None
    columns = {"shard": [number], "rows": [rows], "seconds": [time.monotonic() - began], "refused": [refused]}
    types = [("shard", pa.int64()), ("rows", pa.int64()), ("seconds", pa.float64()), ("refused", pa.string())]
    return pa.RecordBatch.from_pydict(columns, pa.schema(types))


_held: Scorer | None = None
"""Of a worker, which Spark gives several tasks one after the other."""


def _scorer(config: Recommender, plan: Plan) -> Scorer:
    global _held
    if _held is None or _held.plan != plan:
        import torch
        from pyspark import TaskContext

        context = TaskContext.get()
        torch.set_num_threads(context.cpus() if context is not None else 1)
        _held = Scorer(config, plan)
    return _held


@contextmanager
def session(name: str, processes: int) -> Iterator[SparkSession]:
    """The session that there is or that is set up elsewhere, and else one of so many processes on this machine.

    What is made here is ended here, but for its JVM, which ends with this process.

    Raises:
        UserError: Spark or Java is not there.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ModuleNotFoundError:
        raise UserError("--engine spark: pyspark is not installed; run `pip install 'recsys-moe[spark]'`") from None
    if (active := SparkSession.getActiveSession()) is not None:
        yield active
        return
    builder = SparkSession.builder.appName(f"recsys-moe score {name}")
    if not is_set_up(os.environ):
        _check_java()
        builder = _here(builder, processes)
    try:
        made = builder.getOrCreate()
    except PySparkException as error:
        raise UserError(f"--engine spark: no session: {' '.join(str(error).split())[:500]}") from error
    try:
        yield made
    finally:
        made.stop()


def _here(builder: SparkSession.Builder, processes: int) -> SparkSession.Builder:
    """Spark on this machine alone: no port that others reach, no page, no word but ours."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    settings: dict[str, str | bool | int | float | None] = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "FATAL",
    }
    return builder.master(f"local[{processes},{ATTEMPTS}]").config(map=settings)


def is_set_up(environment: Mapping[str, str]) -> bool:
    """Whether `spark-submit`, the environment or Spark's file of defaults says which Spark it is."""
    if any(environment.get(name) for name in _SAYS_WHERE) or "master" in environment.get("PYSPARK_SUBMIT_ARGS", ""):
        return True
    folder = environment.get("SPARK_CONF_DIR") or (
        environment.get("SPARK_HOME", "") and f"{environment['SPARK_HOME']}/conf"
    )
    defaults = Path(folder, "spark-defaults.conf") if folder else None
    if defaults is None or not defaults.is_file():
        return False
    return any(re.match(r"\s*spark\.(master|remote)\b", line) for line in defaults.read_text().splitlines())


def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if shutil.which(str(Path(home, "bin", "java")) if home else "java") is None:
        where = f"in JAVA_HOME ({home})" if home else "on the PATH"
        raise UserError(f"--engine spark: there is no java {where}; Spark 4 needs Java 17 or newer")
