"""Paths that lead elsewhere. What storage, scratch files and exports may be is in test_config.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.scoring.plan import FILE, Plan
from pipelines.scoring.staging import FOLDER
from recsys_moe.errors import UserError
from tests.attacks.conftest import Called
from tests.pipelines.conftest import Tiny

ID = "2026-01-01-0123456789ab"
IDS = [
    "../../x",
    f"../{ID}",
    f"{ID}/..",
    "/x",
    "..",
    "",
    f"{ID}\n",
    f"x{ID}",
    "2026-01-01",
    ID.upper(),
    "$(touch pwned)",
]


def put_plan(folder: Path, **changes: Any) -> None:
    """What somebody could put in a folder, so that it looks like a plan's."""
    folder.mkdir(parents=True)
    plan = Plan(ID, Tiny.day(0), 1, "run", {}, 1, 1, "2026-01-02T00:00:00+00:00")
    (folder / FILE).write_text(json.dumps(vars(plan) | {"ds": plan.ds.isoformat()} | changes))


@pytest.mark.usefixtures("nothing_ran")
@pytest.mark.parametrize("plan_id", IDS)
def test_a_plan_is_named_by_its_id_alone(plan_id: str, tiny: Tiny, refusal: Called) -> None:
    """Else a plan, and with it the files that publishing removes, could be anywhere."""
    config = tiny()
    elsewhere = Path(config.storage).parent / "x"  # which ../../x is
    put_plan(elsewhere)
    (Path(config.storage) / FOLDER).mkdir(parents=True)  # without which .. leads nowhere
    arguments = ["--config", str(config.origin.file), "--plan", plan_id]
    assert "is no plan's id" in refusal("score-shard", *arguments, "--shard", "0")
    assert "is no plan's id" in refusal("score-publish", *arguments)
    assert [path.name for path in elsewhere.iterdir()] == [FILE]


def test_a_plan_that_was_changed_leads_nowhere_else(tiny: Tiny) -> None:
    config = tiny()
    put_plan(Path(config.storage) / FOLDER / ID, id="../../x")
    with pytest.raises(UserError, match=r"'\.\./\.\./x' is no plan's id"):
        Plan.read(config, ID).staging(config)


@pytest.mark.parametrize("place", ["../var/a\0b", "${HOME}/../../elsewhere", "~/../../.."])
def test_a_place_that_is_none_is_refused(place: str, tiny: Tiny) -> None:
    for changes in ({"storage": place}, {"exports": [{"name": "lake", "kind": "parquet", "path": place + "/{ds}"}]}):
        with pytest.raises(UserError, match=r"holds a character|leaves its root") as refused:
            tiny(**changes)
        assert "\n" not in str(refused.value)


def test_a_link_does_not_lead_out_of_the_root(tiny: Tiny) -> None:
    (tiny.folder / "var").symlink_to("/")
    with pytest.raises(UserError, match=r"storage: .* leaves its root"):
        tiny(storage="../var/elsewhere")
