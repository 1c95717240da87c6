"""The planner's benchmark on small tables: what fits, what the estimates add up to, and the arithmetic by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.sharding import TABLES, Hardware, Table, plan_of, run, table

SMALL = (Table("user", 1_000_000), Table("last items", 200_000, 20), Table("hour", 24))


def plan(choice: str, devices: int = 8, dim: int = 16, hardware: Hardware | None = None) -> dict[str, Any]:
    return plan_of(SMALL, devices, dim, choice, 1024, hardware or Hardware())


def test_whole_tables_hold_their_weights_and_a_sum_a_row() -> None:
    found = plan("table-wise")
    assert found["sharding"] == {name: ["table_wise", 1] for name in ("user", "last items", "hour")}
    # 16 floats and one of row-wise Adagrad; the planner adds what it takes for inputs and outputs.
    least = sum(table.ids for table in SMALL) * 17 * 4 / 1e9
    assert least < found["planner"]["all_devices_gb"] < 1.5 * least
    assert 1_000_000 * 17 * 4 / 1e9 <= found["planner"]["fullest_device_gb"] < found["planner"]["all_devices_gb"]


def test_traffic_of_whole_tables_by_hand() -> None:
    traffic = plan("table-wise", devices=4)["traffic"]
    ids, vectors = 22 * 8, 2 * 3 * 16 * 4  # 22 values a row; three vectors of 16 floats, there and back
    assert traffic["sent_bytes_per_row"] == pytest.approx(0.75 * (ids + vectors))
    assert traffic["sent_mb_per_device_and_step"] == pytest.approx(0.75 * (ids + vectors) * 1024 / 1e6)
    assert traffic["sent_tb_for_1e10_rows"] == pytest.approx(0.75 * (ids + vectors) * 1e10 / 1e12)
    assert traffic["memory_bytes_per_row"] == 3 * 22 * 16 * 4


def test_hours_follow_from_the_step() -> None:
    found = plan("any")
    parts = ("lookup_ms", "update_ms", "forward_exchange_ms", "backward_exchange_ms")
    step = sum(found["planner"][part] for part in parts)
    assert found["planner"]["step_ms"] == pytest.approx(step)
    assert found["planner"]["hours_for_1e10_rows"] == pytest.approx(1e10 / (8 * 1024) * step / 1e3 / 3600)
    with_dense = 1e10 / (8 * 1024) * (step + found["dense"]["ms"]) / 1e3 / 3600
    assert found["dense"]["hours_for_1e10_rows_with_it"] == pytest.approx(with_dense)


def test_a_table_larger_than_a_device_is_cut_or_does_not_fit() -> None:
    tight = Hardware(memory_bytes=60e6)  # the user table alone takes 68 MB
    whole = plan("table-wise", hardware=tight)
    assert whole == {"devices": 8, "dim": 16, "choice": "table-wise", "fits": False, "why": whole["why"]}
    cut = plan("any", hardware=tight)
    assert cut["sharding"]["user"][1] > 1
    assert cut["planner"]["fullest_device_gb"] < 0.06


def test_the_result_is_json_and_a_table_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(table.ids for table in TABLES) == 10**9
    monkeypatch.setattr("benchmarks.sharding.TABLES", SMALL)
    result = run([2], [16], 512)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    result["plans"].append({"devices": 2, "dim": 64, "choice": "any", "fits": False, "why": "too large"})
    shown = table(result)
    assert "does not fit" in shown
    assert "2, 16, table-wise: table_wise: user, last items, hour" in shown
