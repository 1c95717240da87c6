"""What an encoder of before gives to the next one, so that a model can be trained further: indices never move."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from recsys_moe.config import Feature, ModelConfig
from recsys_moe.errors import UserError


def grown(known: pa.Array, found: pa.Array) -> pa.Array:
    """The known values in their order, then those of `found` that are new, in theirs."""
    is_new = pc.invert(pc.is_in(found, value_set=known))
    return pa.concat_arrays([known, found.filter(is_new)])


def check_same_shape(before: ModelConfig, now: ModelConfig) -> None:
    """Raise a `UserError` where an index would mean something else: other features, or other segments."""
    old, new = ([_told(feature) for feature in config.features] for config in (before, now))
    changed = sorted(set(old) ^ set(new)) or [name for name, other in zip(new, old, strict=True) if name != other]
    if changed:
        raise UserError(
            f"features: {', '.join(changed)} differ from those of the model that is to be trained further; "
            "train a new one, or take the features back"
        )
    by_old, by_new = (config.segments.by if config.segments else None for config in (before, now))
    if by_old != by_new:
        raise UserError(
            "segments.by: differs from that of the model that is to be trained further "
            f"({before.segments.title if before.segments else 'none'}); train a new one, or take it back"
        )


def _told(feature: Feature) -> str:
    """What decides a feature's place and indices, for a person."""
    hashed = f", hash_buckets {feature.hash_buckets}" if feature.hash_buckets else ""
    return f"{feature.name!r} ({feature.kind}{hashed})"
