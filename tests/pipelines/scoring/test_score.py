"""Scoring as a whole: planned, shard by shard, published at once; and what becomes of it when something fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines import sources
from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.score import engine_named, score, score_plan, score_publish, score_shard
from pipelines.scoring import engine, publish, shard
from pipelines.scoring.plan import Plan
from pipelines.tables import Tables
from recsys_moe.errors import UserError
from tests.pipelines.conftest import Tiny
from tests.pipelines.scoring.conftest import LAST, Scored

DAY = Tiny.day(LAST)


def published(config: Recommender) -> pd.DataFrame:
    frame: pd.DataFrame = Tables(config.storage).read_day("scores", DAY).to_pandas()
    return frame.drop(columns="scored_at")


def staged(config: Recommender) -> list[Path]:
    return sorted((Path(config.storage) / "scoring").glob("*/*"))


def test_a_user_gets_the_same_lists_in_however_many_shards(scored: Scored) -> None:
    whole = scored(users_per_shard=100)
    result = score(whole, DAY, 1)
    expected = published(whole)
    assert (result["users"], result["rows"]) == (5, 15)
    assert expected.groupby("user_id")["rank"].apply(list).tolist() == [[1, 2, 3]] * 5
    assert [path.name for path in staged(whole)] == ["published.json"]
    cut = scored(users_per_shard=2)
    assert score_plan(cut, DAY, 1)["shards"] == 3
    score(cut, DAY, 1)
    pd.testing.assert_frame_equal(published(cut), expected)


def test_the_parts_of_a_scoring_make_the_whole(scored: Scored) -> None:
    config = scored(users_per_shard=2)
    score(config, DAY, 1)
    expected = published(config)
    plan = score_plan(config, DAY, 1)
    with pytest.raises(UserError, match="3 of 3 shards are not scored, the first is 0; nothing was published"):
        score_publish(config, plan["plan"])
    for number in reversed(range(3)):
        assert score_shard(config, plan["plan"], number)["rows"] in (6, 3)
    with pytest.raises(UserError, match=r"--shard: 3 is none of the plan's 3 shards"):
        score_shard(config, plan["plan"], 3)
    assert score_publish(config, plan["plan"])["users"] == 5
    pd.testing.assert_frame_equal(published(config), expected)
    version = Tables(config.storage).version("scores")
    assert score_publish(config, plan["plan"])["users"] == 5  # as after a kill that came too late
    assert Tables(config.storage).version("scores") == version
    with pytest.raises(UserError, match="there is no plan"):
        score_shard(config, plan["plan"], 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_several_processes_score_what_one_does(scored: Scored) -> None:
    config = scored(users_per_shard=2)
    score(config, DAY, 1)
    expected = published(config)
    config = scored(users_per_shard=2, processes=2)
    score(config, DAY, 1)
    pd.testing.assert_frame_equal(published(config), expected)


def test_a_shard_that_fails_thrice_leaves_what_was_published(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    config = scored(users_per_shard=2)
    score(config, DAY, 1)
    before = Tables(config.storage).version("scores")
    tried: list[int] = []
    real = shard.Scorer.score

    def fails(self: Any, number: int, *rest: Any) -> int:
        tried.append(number)
        if number == 1:
            raise MemoryError("no room left for\nthe lists")
        return real(self, number, *rest)

    monkeypatch.setattr(shard.Scorer, "score", fails)
    with pytest.raises(TryAgainError, match=r"shard 1 of 3 failed 3 times, .* MemoryError: no room left for the lists"):
        score(config, DAY, 1)
    assert tried == [0, 1, 1, 1]
    assert Tables(config.storage).version("scores") == before
    monkeypatch.setattr(shard.Scorer, "score", real)
    score(config, DAY, 1)  # goes on
    assert published(config)["user_id"].nunique() == 5
    assert tried == [0, 1, 1, 1]


def test_a_shard_that_fails_once_is_tried_again(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tried = scored(users_per_shard=2), []
    real = shard.Scorer.score

    def fails_at_first(self: Any, number: int, *rest: Any) -> int:
        tried.append(number)
        if tried.count(1) == 1 and number == 1:
            raise OSError("the connection was reset")
        return real(self, number, *rest)

    monkeypatch.setattr(shard.Scorer, "score", fails_at_first)
    assert score(config, DAY, 1)["users"] == 5
    assert tried == [0, 1, 1, 2]


def test_what_a_person_has_to_put_right_is_not_tried_again(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tried = scored(), []

    def refuses(self: Any, number: int, *rest: Any) -> int:
        tried.append(number)
        raise UserError("the model reads what is not there")

    monkeypatch.setattr(shard.Scorer, "score", refuses)
    with pytest.raises(UserError, match="the model reads what is not there"):
        score(config, DAY, 1)
    assert tried == [0]


def test_contexts_are_scored_one_by_one(scored: Scored) -> None:
    config = scored(contexts={"home": {"tab": "home"}, "search": {"tab": "search"}}, users_per_shard=3)
    assert score(config, DAY, 1)["contexts"] == ["home", "search"]
    found = published(config)
    assert found.groupby(["context", "user_id"]).size().tolist() == [3] * 10
    at_home = scored(context={"tab": "home"})
    score(at_home, DAY, 1)
    same = found[found["context"] == "home"].drop(columns="context").reset_index(drop=True)
    pd.testing.assert_frame_equal(same, published(at_home).drop(columns="context"), check_categorical=False)


def test_users_of_a_list_and_new_ones_among_them(scored: Scored, tmp_path: Path) -> None:
    everyone = scored()
    score(everyone, DAY, 1)
    known = published(everyone)
    (tmp_path / "wanted.csv").write_text("band,user\nold,u3\nyoung,new\nold,u3\nyoung,u3\n,\n", encoding="utf-8")
    config = scored(users={"path": str(tmp_path / "wanted.csv")})
    assert score(config, DAY, 1)["users"] == 2
    found = published(config)
    assert found["user_id"].unique().tolist() == ["new", "u3"]
    of_known = found[found["user_id"] == "u3"].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_known, known[known["user_id"] == "u3"].reset_index(drop=True))
    assert set(found["segment"]) == {"home"}  # the segment is the tab, which a new user has, too


@pytest.mark.parametrize(
    ("content", "message"),
    [("who\nu1\n", "has no column 'user'"), ("user\n", "names nobody"), ("", "is empty")],
)
def test_a_list_that_is_none(scored: Scored, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "wanted.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        score(scored(users={"path": str(tmp_path / "wanted.csv")}), DAY, 1)


def test_a_list_that_was_mended_is_read_again(scored: Scored, tmp_path: Path) -> None:
    (tmp_path / "wanted.csv").write_text("user\nu1\n", encoding="utf-8")
    config = scored(users={"path": str(tmp_path / "wanted.csv")})
    first = score_plan(config, DAY, 1)
    assert score_plan(config, DAY, 1) == first
    (tmp_path / "wanted.csv").write_text("user\nu1\nu2\n", encoding="utf-8")
    assert score(config, DAY, 1)["users"] == 2


def test_a_list_that_breaks_off_is_told_in_one_line(scored: Scored, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "wanted.csv").write_text("user\nu1\n", encoding="utf-8")
    read = sources.read

    def breaks_off(*wanted: Any) -> Any:
        yield from read(*wanted)
        raise UserError("wanted.csv: was replaced while it was read")

    monkeypatch.setattr(sources, "read", breaks_off)
    with pytest.raises(UserError, match=r"^wanted.csv: was replaced while it was read$"):
        score(scored(users={"path": str(tmp_path / "wanted.csv")}), DAY, 1)


def test_a_shard_whose_own_files_are_gone_has_no_lists(scored: Scored) -> None:
    """As where another machine plans the same and clears the folder: without them, what was seen would come again."""
    config = scored(candidates={"source": "popular"}, exclude_seen=1, checks={"min_coverage": 0})
    plan = score_plan(config, DAY, 1)["plan"]
    (gone,) = (path for path in staged(config) if path.name == "candidates-seen-00000.parquet")
    gone.unlink()
    with pytest.raises(TryAgainError, match=r"shard 0 of 1 failed once, .*candidates-seen-00000"):
        score_shard(config, plan, 0)
    assert not [path for path in staged(config) if path.name.startswith("shard")]


def test_a_plan_that_another_run_publishes_meanwhile(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    config = scored()
    plan = Plan.read(config, score_plan(config, DAY, 1)["plan"])
    score_shard(config, plan.id, 0)
    monkeypatch.setattr(publish, "tell", lambda _: plan.finish(config, {}))
    with pytest.raises(TryAgainError, match=r"another run published it meanwhile"):
        score_publish(config, plan.id)


def test_what_the_checks_refuse_is_not_published(scored: Scored) -> None:
    config = scored(exclude_seen=True)
    with pytest.raises(UserError, match="no user got a single item, so nothing is published"):
        score(config, DAY, 1)
    assert not Tables(config.storage).exists("scores")


def test_engines_have_names() -> None:
    assert engine_named("spark") == "spark"
    with pytest.raises(UserError, match="--engine: 'flink' is none of processes, spark"):
        engine_named("flink")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_is_killed_is_started_again(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    config = scored(users_per_shard=2, processes=2)
    monkeypatch.setenv("KILLED_ONCE", str(Path(config.storage) / "killed"))
    monkeypatch.setattr(engine, "_score", _killed_once)
    assert score(config, DAY, 1)["users"] == 5
    assert (Path(config.storage) / "killed").exists()


def _killed_once(number: int) -> int:
    """In a worker: the first that comes to shard 1 kills its process."""
    import os
    import signal

    mark = Path(os.environ["KILLED_ONCE"])
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    assert engine._scorer is not None
    return engine._scorer(number)
