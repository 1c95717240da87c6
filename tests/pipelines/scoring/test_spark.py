"""Shards on a real Spark, in a JVM on this machine, beside the plain engine."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.score import score, score_plan, score_shard
from pipelines.scoring import spark
from pipelines.tables import Tables
from recsys_moe.errors import UserError
from tests.pipelines.conftest import Tiny
from tests.pipelines.scoring.conftest import LAST, Scored

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAY = Tiny.day(LAST)
_MISSING = [
    *(["pyspark (pip install 'recsys-moe[spark]')"] if importlib.util.find_spec("pyspark") is None else []),
    *(["java"] if shutil.which("java") is None else []),
]
needs_spark = pytest.mark.skipif(bool(_MISSING), reason=f"there is no {' and no '.join(_MISSING)}")


def without_spark(patch: pytest.MonkeyPatch) -> None:
    """No Spark of the machine; what the engine sets is taken back."""
    for name in (
        "SPARK_REMOTE",
        "MASTER",
        "SPARK_HOME",
        "SPARK_CONF_DIR",
        "PYSPARK_SUBMIT_ARGS",
        "PYSPARK_GATEWAY_PORT",
    ):
        patch.delenv(name, raising=False)
    patch.setenv("PYSPARK_PYTHON", sys.executable)
    patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")


def published(config: Recommender) -> pd.DataFrame:
    frame: pd.DataFrame = Tables(config.storage).read_day("scores", DAY).to_pandas()
    return frame.drop(columns="scored_at")


@pytest.mark.parametrize(
    ("environment", "file", "found"),
    [
        ({}, None, False),
        ({"PYSPARK_GATEWAY_PORT": "4040"}, None, True),
        ({"SPARK_REMOTE": "sc://there"}, None, True),
        ({"MASTER": ""}, None, False),
        ({"PYSPARK_SUBMIT_ARGS": "--master yarn pyspark-shell"}, None, True),
        ({}, "spark.driver.memory 4g\n", False),
        ({}, "# ours\n  spark.master   spark://there:7077\n", True),
    ],
)
def test_settings_of_spark_are_honoured(
    environment: dict[str, str], file: str | None, found: bool, tmp_path: Path
) -> None:
    if file is not None:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "spark-defaults.conf").write_text(file)
        assert spark.is_set_up(environment | {"SPARK_CONF_DIR": str(tmp_path / "conf")}) is found
    assert spark.is_set_up(environment | {"SPARK_HOME": str(tmp_path)}) is found


def test_no_spark_or_no_java_is_said(scored: Scored, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = scored()
    without_spark(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyspark.errors", None)
        with pytest.raises(UserError, match=r"pyspark is not installed; run `pip install 'recsys-moe\[spark\]'`"):
            score(config, DAY, 1, "spark")
    if not _MISSING:
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        with pytest.raises(UserError, match=r"there is no java in JAVA_HOME .* Java 17"):
            score(config, DAY, 1, "spark")


@pytest.fixture(scope="module")
def here() -> Iterator[SparkSession]:
    """A session of two processes, made as the engine makes it, for all tests: a JVM takes its time.

    It knows nothing of the tests' MLflow store, as the machines of a cluster would not.
    """
    from pyspark import SparkContext

    with pytest.MonkeyPatch.context() as patch:
        without_spark(patch)
        with spark.session("tests", 2) as made:
            yield made
        gateway = SparkContext._gateway
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(60)
        SparkContext._gateway = SparkContext._jvm = None


@needs_spark
@pytest.mark.usefixtures("here")
@pytest.mark.slow
@pytest.mark.timeout(600)
class TestOnSpark:
    def test_it_publishes_what_the_plain_engine_does(self, scored: Scored) -> None:
        contexts = {"home": {"tab": "home"}, "search": {"tab": "search"}}
        config = scored(users_per_shard=2, contexts=contexts)
        expected_result = score(config, DAY, 1)
        expected = published(config)
        assert {**score(config, DAY, 1, "spark"), "versions": None} == {**expected_result, "versions": None}
        pd.testing.assert_frame_equal(published(config), expected)
        assert len(expected) == 30

    def test_a_shard_that_fails_is_tried_three_times_and_named(self, scored: Scored) -> None:
        config = scored(users_per_shard=2)
        score(config, DAY, 1)
        before = Tables(config.storage).version("scores")
        made = planned(config)
        for number in (0, 2):
            score_shard(config, made.name, number)
        users = made / "users.parquet"
        whole = users.read_bytes()
        users.write_bytes(whole[:100])
        with pytest.raises(
            TryAgainError, match=r"^shard 1 of 3 failed 3 times, and nothing was published: Arrow[^\n]+$"
        ):
            score(config, DAY, 1, "spark")
        assert Tables(config.storage).version("scores") == before
        users.write_bytes(whole)
        assert score(config, DAY, 1, "spark")["users"] == 5  # goes on

    def test_what_a_person_has_to_put_right_is_told_at_once(self, scored: Scored) -> None:
        config = scored(users_per_shard=2)
        (planned(config) / "shard-00001-of-00003.parquet").mkdir()
        with pytest.raises(UserError, match=r"shard-00001-of-00003.parquet: cannot be written") as raised:
            score(config, DAY, 1, "spark")
        assert not isinstance(raised.value, TryAgainError)
        assert not Tables(config.storage).exists("scores")


def planned(config: Recommender) -> Path:
    """The folder of a plan that is made, and of which no shard is scored."""
    return Path(config.storage) / "scoring" / str(score_plan(config, DAY, 1)["plan"])
