from __future__ import annotations

import json

import pytest
import torch

from pipelines.expert_health import KNOCK_OUT_ROWS, ExpertHealth, _drawn
from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import Experts, Gating
from recsys_moe.encoding import Encoder
from recsys_moe.presets import PRESETS
from tests.recsys_moe.conftest import model_config, raw_rows


def health(preset: str) -> ExpertHealth:
    values = PRESETS[preset]
    config = model_config(
        experts=Experts(**{**values["experts"], "hidden": (8,)}), gates=Gating(**values.get("gates", {}))
    )
    encoder = Encoder.fit(config, raw_rows(200).to_batches())
    torch.manual_seed(0)
    rows = raw_rows(200)
    return ExpertHealth.of(Ranker(encoder, empty_model(encoder).eval()), rows, rows.column("user_id").to_numpy())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_numbers_tables_and_pictures(preset: str) -> None:
    found = health(preset)
    numbers, experts = found.numbers(), set(found.routing.expert_names)
    assert all(name.startswith("experts/") and value == value for name, value in numbers.items())
    assert any("gate_distance/click-buy" in name for name in numbers)
    tables = json.loads(json.dumps(found.tables(), allow_nan=False))
    assert tables["weight"]["click"].keys() == tables["knock_out"]["rise"].keys() == experts
    assert tables["load_by_segment"]["DE"]["buy"].keys() == set(found.routing.routed_names)
    assert tables["knock_out"]["rows"] == 200
    pictures = found.pictures()
    by_segment = {f"gate_weights_by_segment/{task}" for task in ("click", "buy")}
    is_mixture = len(experts) > 1
    assert ({"gate_weights", "gate_features", *by_segment} <= pictures.keys()) == is_mixture
    assert ("expert_load" in pictures) == bool(found.routing.routed_names)


def test_the_only_expert_has_no_worth() -> None:
    found = health("shared_bottom")
    assert "knock_out" not in found.pictures()
    assert not [name for name in found.numbers() if "knock_out" in name]
    assert found.tables()["knock_out"]["rise"] == {"shared 0": {"click": None, "buy": None}}


def test_where_rows_choose_one_expert_those_that_are_used_have_no_worth() -> None:
    found = health("switch")
    for name, load in found.tables()["load"]["click"].items():
        assert found.tables()["knock_out"]["rise"][name]["click"] == (0.0 if load == 0 else None)


def test_a_sample_is_bounded_in_order_and_the_same_again() -> None:
    drawn = _drawn(KNOCK_OUT_ROWS + 5000)
    assert len(set(drawn)) == KNOCK_OUT_ROWS
    assert (drawn == _drawn(KNOCK_OUT_ROWS + 5000)).all()
    assert (drawn[1:] > drawn[:-1]).all()
    assert _drawn(3).tolist() == [0, 1, 2]
