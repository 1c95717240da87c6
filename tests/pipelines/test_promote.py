"""Who serves, as far as it needs no model: rules before the gate, rollback, and aliases that follow the record."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from pipelines import promote
from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.promotions import CHALLENGER, CHAMPION, PREVIOUS, Entry
from pipelines.registry import Registry, Version
from pipelines.runs import NOTE
from recsys_moe.errors import UserError
from tests.pipelines.conftest import Tiny


class Candidates:
    """Versions without a model, each trained for a day and on all before it."""

    def __init__(self, config: Recommender) -> None:
        self.config, self.registry = config, Registry(config)
        self.registry.client.create_registered_model(config.name)

    def add(self, through: int) -> Version:
        client, day = self.registry.client, Tiny.day(through)
        tags = {"as_of": Tiny.day(through + 1).isoformat(), "trained_through": day.isoformat()}
        run = client.create_run(self.registry.experiment_id, tags=tags)
        client.set_terminated(run.info.run_id)
        made = client.create_model_version(self.config.name, "file:///nowhere", run.info.run_id)
        return self.registry.version(int(made.version))

    def promoted(self, through: int) -> Version:
        """One that serves, as the gate would have it."""
        version, seen = self.add(through), self.registry.promotions.state()
        made = Entry(version.number, version.run_id, version.as_of, version.through, "promoted", seen.champion, ("ok",))
        self.registry.promotions.add(made, seen)
        return version

    def called(self) -> dict[str, int]:
        return self.registry.aliases.known()

    def decide(self, as_of: date) -> dict[str, Any]:
        return promote.promote(self.config, as_of, dry_run=True)


@pytest.fixture
def candidates(tiny: Tiny, store: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Candidates:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return Candidates(tiny(name=f"promote_{abs(hash(request.node.name))}"))


def test_the_first_version_is_promoted(candidates: Candidates) -> None:
    version = candidates.add(1)
    assert candidates.decide(version.as_of)["decision"] == "promoted"
    assert candidates.registry.champion() is None  # it was a dry run
    result = promote.promote(candidates.config, version.as_of)
    assert (result["champion"], result["reasons"]) == (1, ["there was no champion yet"])
    assert candidates.registry.champion() == version
    assert candidates.called() == {CHAMPION: 1}
    assert candidates.registry.client.get_run(version.run_id).data.tags["verdict"] == "promoted"
    again = promote.promote(candidates.config, version.as_of)
    assert (again["decision"], again["reasons"]) == ("kept", ["it is the champion already"])
    assert len(candidates.registry.promotions.state().entries) == 1


def test_a_promotion_that_was_killed_before_the_aliases_is_complete(candidates: Candidates) -> None:
    first, second = candidates.promoted(1), candidates.promoted(2)
    assert candidates.called() == {}
    assert candidates.registry.champion() == second
    assert candidates.called() == {CHAMPION: second.number, PREVIOUS: first.number}


def test_an_alias_that_was_moved_by_hand_is_set_back(candidates: Candidates) -> None:
    first, second = candidates.promoted(1), candidates.promoted(2)
    for alias, number in ((CHAMPION, first.number), (CHALLENGER, second.number)):
        candidates.registry.client.set_registered_model_alias(candidates.config.name, alias, str(number))
    assert candidates.registry.champion() == second
    assert candidates.called() == {CHAMPION: second.number, PREVIOUS: first.number}


def test_a_champion_of_before_there_was_a_record_is_taken_from_the_alias(candidates: Candidates) -> None:
    version = candidates.add(1)
    candidates.registry.client.set_registered_model_alias(candidates.config.name, CHAMPION, str(version.number))
    assert candidates.registry.champion() == version


def test_an_alias_of_a_deleted_version_is_left_out(candidates: Candidates) -> None:
    first, second = candidates.promoted(1), candidates.promoted(2)
    candidates.registry.client.delete_model_version(candidates.config.name, str(first.number))
    assert candidates.registry.champion() == second
    assert candidates.called() == {CHAMPION: second.number}


def test_a_record_of_another_mlflow_is_told(candidates: Candidates) -> None:
    version = candidates.promoted(1)
    candidates.registry.client.delete_model_version(candidates.config.name, str(version.number))
    with pytest.raises(UserError, match=f"the champion is version 1 of run {version.run_id}, which MLflow at"):
        candidates.registry.champion()


def test_older_data_never_take_over(candidates: Candidates) -> None:
    old = candidates.add(1)
    champion = candidates.promoted(2)
    result = candidates.decide(old.as_of)
    assert (result["decision"], result["champion"]) == ("kept", champion.number)
    assert result["reasons"] == ["its data are older: through 2026-01-02, champion 2 learned through 2026-01-03"]


def test_who_was_kept_out_is_recorded_as_the_challenger(candidates: Candidates) -> None:
    old = candidates.add(1)
    champion = candidates.promoted(2)
    for _ in range(2):
        promote.promote(candidates.config, old.as_of)
    entries = candidates.registry.promotions.state().entries
    assert [(made.version, made.decision, made.champion) for made in entries] == [
        (champion.number, "promoted", None),
        (old.number, "kept out", champion.number),
    ]
    assert candidates.called() == {CHAMPION: champion.number, CHALLENGER: old.number}


def test_a_rollback_puts_the_one_before_in_its_place_and_keeps_the_other_out(candidates: Candidates) -> None:
    first, second = candidates.promoted(1), candidates.promoted(2)
    result = promote.rollback(candidates.config, "lists are empty")
    assert (result["champion"], result["instead_of"]) == (first.number, second.number)
    assert candidates.registry.champion() == first
    assert candidates.called() == {CHAMPION: first.number, PREVIOUS: second.number}
    kept = candidates.decide(second.as_of)
    assert kept["decision"] == "kept"
    assert "lists are empty" in kept["reasons"][0]
    with pytest.raises(UserError, match="was put there by a rollback from 2 already; name a version with --to"):
        promote.rollback(candidates.config, "again")
    promote.rollback(candidates.config, "it was the shop's page", to=second.number)
    assert candidates.registry.champion() == second


@pytest.mark.parametrize(
    ("reason", "to", "message"),
    [
        (" ", None, "--reason: is empty"),
        ("why", None, "no champion of before to go back to"),
        ("why", 1, "version 1 is the champion already"),
        ("why", 7, "^the registered model .* has no version 7"),
    ],
)
def test_a_rollback_that_cannot_be_is_told(candidates: Candidates, reason: str, to: int | None, message: str) -> None:
    candidates.promoted(1)
    with pytest.raises(UserError, match=message):
        promote.rollback(candidates.config, reason, to)


def test_a_promotion_that_was_killed_before_its_run_was_told_is_told_when_run_again(candidates: Candidates) -> None:
    version = candidates.promoted(1)
    assert candidates.decide(version.as_of)["decision"] == "kept"
    run = candidates.registry.open_run(version.run_id)
    assert run.read("decision.json") is None  # it was a dry run
    promote.promote(candidates.config, version.as_of)
    decision = run.read("decision.json")
    assert decision is not None
    assert (decision["promoted"], decision["reasons"]) == (True, ["ok"])
    assert run.facts().tags["verdict"] == "promoted"
    assert run.facts().tags[NOTE].startswith("**Promoted**: ok.")
    assert len(candidates.registry.promotions.state().entries) == 1


def test_a_server_that_does_not_answer_has_not_no_champion(
    candidates: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MlflowException("out of order")

    version = candidates.add(1)
    monkeypatch.setattr(candidates.registry.client, "get_registered_model", fails)
    with pytest.raises(TryAgainError, match="does not say who the champion"):
        candidates.registry.champion()
    assert version.number == 1


def test_versions_that_no_training_made_are_told_and_passed_over(candidates: Candidates) -> None:
    candidates.promoted(1)
    client, name = candidates.registry.client, candidates.config.name
    run = client.create_run(candidates.registry.experiment_id)
    for made in (client.create_model_version(name, "file:///nowhere", run_id) for run_id in (None, run.info.run_id)):
        with pytest.raises(UserError, match=f"version {made.version} of .* is of no training"):
            promote.rollback(candidates.config, "why", int(made.version))
    assert {training.versions for training in candidates.registry.trainings()} == {(1,), (3,)}


def test_files_of_a_version_that_are_gone_are_told(candidates: Candidates) -> None:
    version = candidates.promoted(1)
    with pytest.raises(UserError, match=r"the files of version 1 of .* cannot be read \(.*rollback --to"):
        candidates.registry.checkpoint(version)
