"""What the YAML's `scoring.diversity` means for the items at hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines.config import Recommender
from recsys_moe.errors import UserError
from recsys_moe.scoring import Diversity


def diversity_of(config: Recommender, items: pa.Table) -> Diversity | None:
    """How lists of these items are re-ranked; None where the YAML says nothing.

    Args:
        config: the recommender.
        items: [I] rows of items, as `entity_rows` makes them. One without a value is like no other.

    Raises:
        UserError: what `diversity.by` names is no column of items, or one with several values an item.
    """
    wanted = config.scoring.diversity
    if wanted is None:
        return None
    of_moment = {"event_day", *(name for context in config.scoring.named_contexts.values() for name in context)}
    possible = [
        field.name for field in items.schema if field.name not in of_moment and not pa.types.is_nested(field.type)
    ]
    if wanted.by not in possible:
        raise UserError(
            f"scoring.diversity.by: {wanted.by!r} is no column of items with one value each; there is {possible}"
        )
    groups = pd.factorize(items.column(wanted.by).to_pandas())[0].astype(np.int64)
    return Diversity(groups, wanted.weight, wanted.pool)
