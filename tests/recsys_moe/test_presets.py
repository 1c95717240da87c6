"""A preset is values: of the library's own config classes, under what is written beside it."""

from __future__ import annotations

import pytest

from recsys_moe.config import Experts, Gating
from recsys_moe.presets import PRESETS, with_preset


@pytest.mark.parametrize("name", PRESETS)
def test_its_values_are_those_of_the_config(name: str) -> None:
    values = with_preset({"preset": name})
    experts, gates = Experts(**values["experts"]), Gating(**values.get("gates", {}))
    assert all(getattr(experts, key) == value for key, value in PRESETS[name]["experts"].items())
    assert all(getattr(gates, key) == value for key, value in PRESETS[name].get("gates", {}).items())


def test_what_is_written_stands_above_it() -> None:
    written = {"preset": "switch", "experts": {"routed": 32}, "gates": {"z_loss": 0.0}, "towers": [8]}
    merged = with_preset(written)
    assert merged["experts"] == {"shared": 0, "per_task": 0, "per_segment": 0, "routed": 32, "top_k": 1}
    assert merged["gates"] == {"renormalise": False, "balance_rate": 0.0, "auxiliary_loss": 0.01, "z_loss": 0.0}
    assert merged["towers"] == [8]
    assert with_preset(merged) == merged  # a stored config is read again
    assert with_preset({"towers": [8]}) == {"towers": [8]}


@pytest.mark.parametrize("name", ["mmoes", "", ["mmoe"], 5])
def test_an_unknown_one_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="is none of shared_bottom, jacobs"):
        with_preset({"preset": name})
