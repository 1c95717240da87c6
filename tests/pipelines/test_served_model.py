"""What a served model takes, and what it says of what it does not take. (Alone in an environment of its own:
test_registered_model.py.)"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipelines.model_files import SERVING_NEEDS
from pipelines.served_model import raw_table
from recsys_moe.config import Feature, ModelConfig, Task
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError
from tests.test_architecture import loaded_with

CONFIG = ModelConfig(
    features=(
        Feature(name="user", kind="categorical", side="user", from_keys=("user",)),
        Feature(name="item", kind="categorical", side="item", from_keys=("item",)),
        Feature(name="tags", kind="multivalued", side="item", from_keys=("tags",)),
        Feature(name="price", kind="numeric", side="item", from_keys=("price",)),
    ),
    tasks=(Task(name="click"),),
)
ROWS = pd.DataFrame({"user": ["1", "2"], "item": ["7", "8"], "tags": [["a", "b"], ["b"]], "price": [1.0, 2.0]})


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.fit(CONFIG, pa.Table.from_pandas(ROWS).to_batches())


@pytest.mark.parametrize(
    "same",
    [
        {"user": [1, 2]},
        {"user": [1.0, 2.0]},
        {"user": pd.array([1, 2], dtype="Int64")},
        {"user": pd.Categorical(["1", "2"])},
        {"item": np.array(["7", "8"], dtype=object)},
        {"tags": [("a", "b"), np.array(["b"])]},
        {"price": [1, 2]},
        {"price": np.array([1, 2], dtype=np.float32)},
        {"price": ["1", "2"]},
        {"extra": [object(), 1]},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_values_are_the_same_in_whatever_type_they_come(same: dict[str, Any], encoder: Encoder) -> None:
    rows = ROWS.assign(**same)[["price", *same, "tags", "item", "user"]]
    rows = rows.loc[:, ~rows.columns.duplicated()]
    assert encoder.encode(raw_table(CONFIG, rows)).equals(encoder.encode(raw_table(CONFIG, ROWS)))


@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("column", ROWS.columns)
def test_nulls_are_read_and_so_are_columns_of_them(nothing: Any, column: str, encoder: Encoder) -> None:
    one = ROWS.assign(**{column: pd.Series([nothing, ROWS[column][1]], dtype=object)})
    both = ROWS.assign(**{column: pd.Series([nothing, nothing], dtype=object)})
    encoded = [encoder.encode(raw_table(CONFIG, rows)) for rows in (ROWS, one, both)]
    assert encoded[1].slice(1).equals(encoded[0].slice(1))
    assert encoded[1].slice(0, 1).equals(encoded[2].slice(0, 1))
    assert not encoded[1].equals(encoded[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"price": ["cheap", "dear"]}, "column 'price' should hold numbers: .*'(cheap|dear)'"),
        ({"price": [[1], [2]]}, "column 'price' should hold texts or numbers, not list<"),
        ({"price": [1 + 2j, 1]}, "column 'price' should hold texts or numbers of one type, not complex"),
        ({"price": pd.Timestamp("2026-01-01")}, "column 'price' should hold numbers: .*timestamp"),
        ({"user": [1, "b"]}, "column 'user' should hold texts or numbers of one type, not int, str"),
        ({"user": [{"id": 1}, None]}, "column 'user' should hold texts or numbers, not struct<"),
        ({"user": [b"\xff", b"a"]}, "column 'user' should hold texts or numbers, not binary"),
        ({"user": [2**70, 1]}, "column 'user' should hold texts or numbers of one type, not int"),
        ({"tags": ["a,b", "b"]}, "column 'tags' should hold lists of texts or numbers, not .*string"),
        ({"tags": [[["a"]], []]}, "column 'tags' should hold lists of texts or numbers, not list<.*list<"),
    ],
)
def test_a_wrong_type_is_named_in_one_line(changed: dict[str, Any], message: str, encoder: Encoder) -> None:
    with pytest.raises(UserError, match=f"^{message}") as refused:
        encoder.encode(raw_table(CONFIG, ROWS.assign(**changed)))
    assert "\n" not in str(refused.value)


def test_missing_and_doubled_columns_are_named() -> None:
    with pytest.raises(UserError, match="no column 'user', 'price', which"):
        raw_table(CONFIG, ROWS[["tags", "item"]])
    with pytest.raises(UserError, match="more than one column 'price'"):
        raw_table(CONFIG, pd.concat([ROWS, ROWS[["price"]]], axis=1))
    many = CONFIG.model_copy(
        update={"features": tuple(CONFIG.features[0].model_copy(update={"name": f"f{n}"}) for n in range(9))}
    )
    with pytest.raises(UserError, match="no column 'f0', 'f1', 'f2', 'f3', 'f4' and 4 more, which"):
        raw_table(many, ROWS)


def test_it_requires_what_it_imports(project_root: Path) -> None:
    files = [path for folder in ("recsys_moe", "pipelines") for path in (project_root / folder).rglob("*.py")]
    sources = {path.relative_to(project_root).as_posix(): path.read_text(encoding="utf-8") for path in files}
    named = {found.library for found in loaded_with("pipelines.served_model", sources)}
    assert named - {"recsys_moe", "pipelines", *sys.stdlib_module_names} == set(SERVING_NEEDS)
