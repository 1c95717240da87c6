"""What a run's page says, in a real MLflow store, after each step."""

from __future__ import annotations

import json
import uuid
from datetime import date
from typing import Any

import pytest

from pipelines import run_page, saved_view, settings
from pipelines.figures import new_figure
from pipelines.registry import Registry, Version
from pipelines.run_page import Page
from pipelines.runs import NOTE, Facts
from tests.pipelines.conftest import Tiny
from tests.pipelines.test_findings import EXPERTS, evaluation


@pytest.fixture
def registry(tiny: Tiny, store: str, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return Registry(tiny(name=f"page_{uuid.uuid4().hex[:8]}"))


def trained(registry: Registry, tiny: Tiny) -> Version:
    """A version whose run has what `train` tells it."""
    with registry.run(f"{tiny.day(5)} own", {"as_of": "2026-01-06", "trained_from": "2026-01-01"}) as run:
        run.tags({"trained_through": "2026-01-05", "preset": "mmoe", "warm_start": "no (training.warm_start is false)"})
        run.params(settings.compared(tiny(name=registry.name)))
        run.inputs({"examples": ("somewhere", 7)})
        run.metrics({"train/rows": 90.0, "refit/rows": 120.0})
        run.picture(new_figure(1, 1), "pictures/training.png")
    client = registry.client
    if not client.search_registered_models(f"name = '{registry.name}'"):
        client.create_registered_model(registry.name)
    made = client.create_model_version(registry.name, "somewhere", run.run_id)
    return registry.version(int(made.version))


def described(registry: Registry, version: Version) -> tuple[str, dict[str, str]]:
    """The run's description, and its tags."""
    run_page.refresh(registry, version)
    tags = registry.client.get_run(version.run_id).data.tags
    return tags[NOTE], dict(tags)


def evaluate(registry: Registry, version: Version, **changes: Any) -> None:
    """As the step leaves the run."""
    run = registry.open_run(version.run_id)
    run.table(evaluation(rows=8000, users=300, days=["2026-01-06"], **changes), "evaluation.json")
    run.table(EXPERTS, "experts.json")
    run.tags({"loses_to": "none"})
    for name in ("calibration", "knock_out", "auc_by_segment/click"):
        run.picture(new_figure(1, 1), f"pictures/{name}.png")


def test_a_page_grows_with_what_the_run_has(registry: Registry, tiny: Tiny) -> None:
    champion, version = trained(registry, tiny), trained(registry, tiny)
    registry.client.set_registered_model_alias(registry.name, "champion", str(champion.number))
    page, tags = described(registry, version)
    assert page.startswith("**Trained** for 2026-01-06; not evaluated yet")
    for fact in ("2026-01-01 to 2026-01-05", "120", "examples at version 7", "click, like given click"):
        assert fact in page
    assert "1 shared, 1 per segment, 1 of 2 routed experts" in page
    assert "[training](#/experiments/" in page
    assert f"beside the champion, version {champion.number}" in page
    assert (tags["verdict"], tags["champion_at_the_time"]) == ("trained", str(champion.number))

    evaluate(registry, version)
    page, tags = described(registry, version)
    lines = page.splitlines()
    files = f"#/experiments/{registry.experiment_id}/runs/{version.run_id}/artifacts"
    assert lines[0].startswith("**Evaluated** for 2026-01-06")
    assert [line[:2] for line in lines[2:5]] == ["1.", "2.", "3."]
    assert lines[2].endswith(f"[Picture]({files}/pictures/auc_by_segment/click.png)")
    assert "2026-01-06, 8,000 rows, 300 users." in page
    row = next(line for line in lines if line.startswith("| click"))
    for value in ("0.7400 (0.7300 to 0.7500)", "+0.0010 (-0.0040 to +0.0060)", "0.7200 (boosting)", "1.02"):
        assert value in row
    assert f"get-artifact?path=pictures%2Fauc_by_segment%2Fclick.png&run_uuid={version.run_id})" in page
    assert tags["verdict"] == "evaluated"

    decision = {"promoted": True, "reasons": ["click/auc is 0.01 better.", "no guard is worse."], "table": []}
    registry.open_run(version.run_id).table(decision, "decision.json")
    registry.client.set_registered_model_alias(registry.name, "champion", str(version.number))
    page, tags = described(registry, version)
    assert page.splitlines()[0] == "**Promoted**: click/auc is 0.01 better; no guard is worse."
    assert (tags["verdict"], tags["champion_at_the_time"]) == ("promoted", str(champion.number))
    found = registry.client.get_model_version(registry.name, str(version.number))
    assert found.description.startswith("Promoted: click/auc")
    assert found.tags == {"preset": "mmoe", "verdict": "promoted", "loses_to": "none"}


def page_of(**changes: Any) -> Page:
    """Of a version that another one is champion beside."""
    facts = Facts("2026-01-06 own", 0, {"tasks": "click, like given click"}, {"preset": "own"}, {}, {})
    version, champion = (Version(number, f"run{number}", date(2026, 1, 6), date(2026, 1, 5)) for number in (2, 1))
    known = {"evaluation": None, "decision": None, "experts": None, "pictures": {}}
    return Page("tiny", "1", version, facts, champion, **known | changes)


def test_one_that_is_kept_out_says_why() -> None:
    page = page_of(evaluation=evaluation(), decision={"promoted": False, "reasons": ["its data are older"]})
    assert page.tags() == {"verdict": "kept out"}
    assert page.tags_of_version() == {"verdict": "kept out", "preset": "own"}
    assert page.markdown().startswith("**Kept out**: its data are older.")


def test_a_regression_has_a_row() -> None:
    evaluated = {
        "overall": {"model": {"minutes": {"rmse": 1.25, "rows": 10}}, "popularity": {"minutes": {"rmse": 2.0}}}
    }
    assert "| minutes&emsp; | RMSE 1.2500&emsp; |" in page_of(evaluation=evaluated).markdown()


def test_a_run_without_files_or_params_has_a_page(registry: Registry) -> None:
    with registry.run("bare", {"as_of": "2026-01-06", "trained_through": "2026-01-05"}) as run:
        pass
    registry.client.create_registered_model(registry.name)
    made = registry.client.create_model_version(registry.name, "somewhere", run.run_id)
    page, _ = described(registry, registry.version(int(made.version)))
    assert "through 2026-01-05" in page
    assert "None" not in page
    model = registry.client.get_registered_model(registry.name)
    assert f'mlflow.pyfunc.load_model("models:/{registry.name}@champion")' in model.description
    assert f"(#/models/{registry.name})" in registry.client.get_experiment(registry.experiment_id).tags[NOTE]


def test_the_view_of_trainings_has_what_tells_them_apart() -> None:
    view = json.loads(saved_view.trainings(["click", "like"]))
    state = json.loads(view["state"])
    assert {"tags.`verdict`", "metrics.`test/like/auc`"} <= set(state["selectedColumns"])
    assert state["columnOrder"] == state["selectedColumns"]
    assert saved_view.TAG.endswith(saved_view.address("1").partition("viewStateShareKey=")[2])


def test_params_are_few_short_and_without_paths(tiny: Tiny) -> None:
    values = settings.compared(tiny(model={"preset": "mmoe"}))
    assert values["model.preset"] == "mmoe"
    assert values["model.experts.hidden"] == "64 x 32"
    assert values["features.history"] == "3 keys, 1, 3 days"
    assert str(values["features"]).startswith("4 categorical, 1 multivalued, 2 numeric (")
    assert not [name for name in values if "threads" in name or "device" in name]
    assert all(len(str(value)) < 60 and "/" not in str(value) for value in values.values())
    assert settings.compared(tiny())["model.preset"] == settings.OWN


def test_other_features_show_in_the_comparison(tiny: Tiny) -> None:
    before = settings.compared(tiny())["features"]
    features = tiny().features.model_dump(mode="json")
    other = features | {"categorical": [*features["categorical"][:-1], {"name": "liked_tab"}]}
    del other["history"]
    assert settings.compared(tiny(features=other))["features"] != before


def test_a_decision_without_an_evaluation_is_the_headline() -> None:
    page = page_of(decision={"promoted": True, "reasons": ["there was no champion yet"]})
    assert page.markdown().startswith("**Promoted**: there was no champion yet.")
    assert page.tags() == {"verdict": "promoted"}
