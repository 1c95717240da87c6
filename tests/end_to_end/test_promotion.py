"""Two versions that were really trained: compared, and one put in the other's place by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.registry import Registry
from tests.end_to_end.loop import SECOND_NIGHT, Played, call, call_step

AS_OF = ("--as-of", SECOND_NIGHT.isoformat())


def test_a_dry_run_decides_the_same_and_changes_nothing(played: Played) -> None:
    record, before = Registry(played.config).promotions, Registry(played.config).champion()
    assert before is not None
    seen = record.state()
    decided = call_step("promote", "--config", played.path, *AS_OF, "--dry-run")
    assert decided["dry_run"]
    assert decided["champion"] == before.number
    assert record.state() == seen


def test_a_rollback_changes_who_scores_and_is_recorded(played: Played) -> None:
    before = Registry(played.config).champion()
    assert before is not None
    other = 3 - before.number
    done = call_step("rollback", "--config", played.path, "--reason", "a test", "--to", str(other))
    assert (done["champion"], done["instead_of"]) == (other, before.number)
    champion = Registry(played.config).champion()
    call_step("rollback", "--config", played.path, "--reason", "the test is over", "--to", str(before.number))
    assert champion is not None
    assert champion.number == other
    last = Registry(played.config).promotions.state().entries[-2:]
    assert [(made.decision, made.reasons) for made in last] == [
        ("rolled back", ("a test",)),
        ("rolled back", ("the test is over",)),
    ]


def test_two_versions_are_compared_on_the_same_rows(played: Played, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "compare.html"
    code, stdout, _ = call("compare", "1", "2", "--config", played.path, *AS_OF, "--out", page)
    assert code == 0
    assert "version 2 against version 1" in stdout
    assert "click/auc" in stdout
    assert '<th scope="col">verdict</th>' in page.read_text(encoding="utf-8")
    found = json.loads(call("compare", "1", "2", "--config", played.path, *AS_OF, "--json")[1])
    back = json.loads(call("compare", "2", "1", "--config", played.path, *AS_OF, "--json")[1])
    assert found["rows"] == back["rows"] == played.nights[SECOND_NIGHT]["evaluate"]["tasks"]["click"]["rows"]
    assert found["table"][0]["difference"] == pytest.approx(-back["table"][0]["difference"])
    same = json.loads(call("compare", "2", "2", "--config", played.path, *AS_OF, "--json")[1])
    assert {line["difference"] for line in same["table"]} <= {0.0, None}


def test_versions_that_know_the_test_days_cannot_be_compared(played: Played) -> None:
    code, _, stderr = call("compare", "1", "2", "--config", played.path, "--as-of", "2026-01-04")
    assert code == 2
    assert "there are no rows to judge by: version 2 learned through 2026-01-04" in stderr
