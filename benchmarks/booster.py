"""Gradient boosting on the examples of KuaiRand-Pure, by the recipe in the data's README: a baseline, not a product.

scikit-learn's histogram booster with 300 trees of 63 leaves, one for each task, on static columns of users and videos,
tab, hour, duration, and, with `history`, on counts and smoothed rates of six keys over the days before. The learning
rate, which the recipe does not name, was the best of 0.02, 0.05 and 0.1 on 3 and 4 May.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from pipelines.config import Recommender, history_feature

TASKS = ("click", "long_view", "like")
TREES, LEAVES, LEARNING_RATE = 300, 63, 0.02
KEYS = (("user_id",), ("video_id",), ("author_id",), ("tag",), ("user_id", "tab"), ("video_id", "tab"))
WINDOW = 30
"""Days, more than there are: all days before."""
IDS = ("user_id", "video_id", "author_id", "music_id")
"""Trees get the rates of these, not the ids themselves."""


def boosted(
    config: Recommender, learned: pa.Table, asked: pa.Table, *, history: bool = True
) -> dict[str, NDArray[np.float64]]:
    """By task, what boosters fitted to the examples `learned` say of the examples `asked`: probabilities [rows]."""
    x = _inputs(config, pa.concat_tables([learned, asked], promote_options="permissive"), history)
    found = {}
    for task in TASKS:
        booster = HistGradientBoostingClassifier(
            max_iter=TREES, max_leaf_nodes=LEAVES, learning_rate=LEARNING_RATE, early_stopping=False, random_state=0
        )
        booster.fit(x[: learned.num_rows], learned.column(f"label_{task}").to_numpy())
        found[task] = booster.predict_proba(x[learned.num_rows :])[:, 1]
    return found


def columns(config: Recommender, history: bool = True) -> list[str]:
    """The columns of the examples that trees read."""
    names = [f.name for f in config.features.categorical if f.name not in IDS]
    names += [*config.features.multivalued, *(f.name for f in config.features.numeric)]
    for key in KEYS if history else ():
        names += [history_feature(key, WINDOW, what) for what in ("rows", *(f"{task}_rate" for task in TASKS))]
    return names


def _inputs(config: Recommender, rows: pa.Table, history: bool) -> NDArray[np.float64]:
    """[rows, columns] numbers as they are, values of other columns numbered, NaN where missing."""
    return np.stack([_numbers(rows.column(name)) for name in columns(config, history)], axis=1)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    values = column.to_pandas()
    if not pd.api.types.is_numeric_dtype(values):
        values = values.map(lambda one: ",".join(one) if isinstance(one, np.ndarray) else one)
        codes = pd.factorize(values)[0].astype(np.float64)
        return np.where(codes < 0, np.nan, codes)
    numbers: NDArray[np.float64] = values.to_numpy(np.float64, na_value=np.nan)
    return numbers
