"""The record of who serves: one row a decision, each made about the champion of that moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import TryAgainError
from pipelines.promotions import CHALLENGER, CHAMPION, PREVIOUS, Entry, Measured, Outcome, Promotions, State
from pipelines.registry import Registry
from pipelines.tables import Tables
from tests.pipelines.conftest import Tiny

DAY = date(2026, 1, 5)


def entry(version: int, champion: int | None, decision: Outcome = "promoted", **changes: Any) -> Entry:
    made = Entry(version, f"run{version}", DAY, DAY, decision, champion, (f"reason {version}",))
    return replace(made, **changes)


@pytest.fixture
def record(tmp_path: Path) -> Promotions:
    return Promotions(Tables(tmp_path))


def test_nobody_serves_before_the_first(record: Promotions) -> None:
    assert record.state() == State()
    assert record.state().champion is None
    assert record.state().aliases == {}


def test_an_entry_is_read_as_it_was_added(record: Promotions) -> None:
    measured = Measured("click/auc", 0.7, 0.71, 0.01, 0.005, 0.015)
    before = datetime.now(UTC)
    record.add(entry(1, None), State())
    record.add(entry(2, 1, mode="refresh", measured=measured, as_of=date(2026, 1, 6)), record.state())
    first, second = record.state().entries
    assert (first.number, second.number) == (1, 2)
    assert second == entry(
        2, 1, mode="refresh", measured=measured, as_of=date(2026, 1, 6), number=2, at=second.at, by=second.by
    )
    assert second.at is not None
    assert before <= second.at <= datetime.now(UTC)
    assert second.by


def test_aliases_follow_the_decisions(record: Promotions) -> None:
    told = []
    for made in (
        entry(1, None),
        entry(2, 1, "kept out"),
        entry(3, 1),
        entry(4, 3, "kept out"),
        entry(1, 3, "rolled back"),
    ):
        record.add(made, record.state())
        told.append(record.state().aliases)
    assert told == [
        {CHAMPION: 1},
        {CHAMPION: 1, CHALLENGER: 2},
        {CHAMPION: 3, PREVIOUS: 1},
        {CHAMPION: 3, PREVIOUS: 1, CHALLENGER: 4},
        {CHAMPION: 1, PREVIOUS: 3},
    ]


def test_who_was_taken_back_is_known_until_a_person_puts_it_there_again(record: Promotions) -> None:
    for made in (entry(1, None), entry(2, 1), entry(1, 2, "rolled back")):
        record.add(made, record.state())
    back = record.state().taken_back(2)
    assert back is not None
    assert back.reasons == ("reason 1",)
    assert record.state().taken_back(1) is None
    record.add(entry(2, 1, "rolled back"), record.state())
    assert record.state().taken_back(2) is None


def test_a_decision_about_a_champion_of_before_is_refused(record: Promotions) -> None:
    record.add(entry(1, None), State())
    seen = record.state()
    record.add(entry(2, 1), seen)
    with pytest.raises(TryAgainError, match="version 2 became the champion while version 3 was judged beside 1"):
        record.add(entry(3, 1), seen)
    assert record.state().champion == 2


def test_a_decision_that_only_keeps_somebody_out_does_not_disturb_others(record: Promotions) -> None:
    record.add(entry(1, None), State())
    seen = record.state()
    record.add(entry(2, 1, "kept out"), seen)
    record.add(entry(3, 1), seen)
    assert [made.version for made in record.state().entries] == [1, 2, 3]


def test_the_same_decision_is_recorded_once(record: Promotions) -> None:
    record.add(entry(1, None), State())
    for _ in range(3):
        record.add(entry(2, 1, "kept out"), record.state())
    record.add(entry(2, 1, "kept out", reasons=("another",)), record.state())
    assert [made.reasons for made in record.state().entries] == [("reason 1",), ("reason 2",), ("another",)]


# Two processes, told round by round through their standard input: each promotes a version of its own over the champion.
# With a YAML, they set the aliases as well.
RACER = """
import sys
from datetime import date, timedelta
from pathlib import Path
from pipelines.errors import TryAgainError
from pipelines.promotions import Entry, Promotions
from pipelines.tables import Tables
storage, *yaml = sys.argv[1:]
record = Promotions(Tables(storage))
if yaml:
    from pipelines.config import load
    from pipelines.registry import Registry
    aliases = Registry(load(Path(yaml[0]))).aliases
print("ready", flush=True)
for line in sys.stdin:
    version, day = map(int, line.split())
    seen = record.state()
    through = date(2026, 1, 1) + timedelta(days=day)
    if seen.serving is not None and through < seen.serving.through:
        print("older", flush=True)
        continue
    made = Entry(version, f"run{version}", through, through, "promoted", seen.champion, ("a race",))
    try:
        record.add(made, seen)
        answer = "won"
    except TryAgainError:
        answer = "lost"
    if yaml:
        aliases.follow(record)
    print(answer, flush=True)
"""


class Racer:
    """A process that promotes when it is told to."""

    def __init__(self, code: str, *arguments: str) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", code, *arguments], **pipes)

    def tell(self, words: str) -> None:
        self.process.stdin.write(words + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]

    def answer(self) -> str:
        return str(self.process.stdout.readline().strip())  # type: ignore[union-attr]

    def end(self) -> None:
        self.process.communicate(timeout=60)


@contextmanager
def racing(*arguments: str) -> Iterator[list[Racer]]:
    """Two of them, ready."""
    both = [Racer(RACER, *arguments) for _ in range(2)]
    try:
        assert [one.answer() for one in both] == ["ready", "ready"]
        yield both
    finally:
        for one in both:
            one.end()


def race(racers: list[Racer], record: Promotions, number: int) -> list[str]:
    """Let both promote at once. Returns what they answered."""
    before = record.state()
    # In every other round one of the two is older than the other: if it comes second, it must not win.
    days = (number, number + number % 2)
    for one, version, day in zip(racers, (2 * number + 1, 2 * number + 2), days, strict=True):
        one.tell(f"{version} {day}")
    answers = [one.answer() for one in racers]
    entries = record.state().entries
    new = entries[len(before.entries) :]
    assert answers.count("won") == len(new) >= 1
    assert [made.champion for made in new] == [before.champion, *(made.version for made in new)][:-1]
    throughs = [made.through for made in entries]
    assert throughs == sorted(throughs)
    return answers


def test_of_two_promotions_at_once_one_wins(tmp_path: Path, record: Promotions) -> None:
    with racing(str(tmp_path)) as racers:
        for number in range(3):
            race(racers, record, number)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_promotions_raced_fifty_times_leave_one_champion(
    tiny: Tiny, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the record, and by MLflow's aliases when both are done."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    config, lost = tiny(name="raced"), 0
    registry = Registry(config)
    registry.client.create_registered_model(config.name)
    for _ in range(100):
        registry.client.create_model_version(config.name, "file:///nowhere")
    with racing(config.storage, str(tiny.folder / "configs" / "tiny.yaml")) as racers:
        for number in range(50):
            lost += race(racers, registry.promotions, number).count("lost")
            state = registry.promotions.state()
            assert registry.aliases.known()[CHAMPION] == state.champion
            assert registry.aliases.known().get(PREVIOUS) == state.aliases.get(PREVIOUS)
    assert lost > 10


def test_the_same_move_made_again_moves_again(record: Promotions) -> None:
    for made in (entry(1, None), entry(2, 1), *[entry(1, 2, "rolled back"), entry(2, 1, "rolled back")] * 2):
        record.add(made, record.state())
        assert record.state().champion == made.version
    assert len(record.state().entries) == 6
