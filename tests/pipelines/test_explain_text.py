from __future__ import annotations

from rich.cells import cell_len

from pipelines.explain_text import WIDTH, as_text


def test_long_names_many_tasks_and_wide_letters_fit_too() -> None:
    moves = [
        {"feature": "f" * 90, "value": ["x" * 50, "東京" * 30], "expert": "routed " + "9" * 40, "added": -12.5},
        {"feature": "price", "value": None, "expert": "shared 0", "added": 0.1},
        {"feature": "age", "value": 0.123456, "expert": "shared 0", "added": 0.01},
    ]
    experts = {"shared 0": 0.5, "東京" * 30: 0.48, "routed 0": 0.02, "routed 1": 0.0}
    task = {"task": "t" * 60, "kind": "regression", "prediction": 1234.5678, "experts": experts, "moved": moves}
    result = {
        "user": "u" * 200,
        "item": None,
        "items": ["a", "b"],
        "as_of": "2026-01-06",
        "context": {"name": "default"},
        "model_version": 3,
        "champion": False,
        "segment": "DE:*",
        "segment_source": "parent",
        "score": "sigmoid",
        "tasks": [task] * 4,
    }
    text = as_text(result)
    assert max(map(cell_len, text.splitlines())) <= WIDTH
    assert text.count("Predicted") == 2  # three tasks beside each other, then one
    for said in ("best 2 items", "too few rows", "price = (missing)", "age = 0.123", "1235", "1 others", "above 0"):
        assert said in text


def test_one_expert_has_nothing_to_explain() -> None:
    task = {"task": "click", "kind": "binary", "prediction": 0.5, "experts": {"shared 0": 1.0}, "moved": []}
    fixed = {"user": "u", "item": "i", "items": ["i"], "as_of": "2026-01-06", "context": {"name": "default"}}
    rest = {"model_version": 1, "champion": True, "segment": None, "segment_source": None, "score": "softmax"}
    text = as_text({**fixed, **rest, "tasks": [task]})
    assert "nothing to decide" in text
    assert "Segment" not in text
