"""Limits past which a day is not published: too many rows that broke the contract, or a volume far off the usual."""

from __future__ import annotations

import statistics
from datetime import date

import pyarrow.compute as pc

from pipelines.config import Recommender
from pipelines.ingest.judging import Counts
from pipelines.tables import Tables
from recsys_moe.errors import UserError

_FEWEST_DAYS = 3


def check_rejected(config: Recommender, ds: date, source: str, counts: Counts) -> None:
    """Raise `UserError` if a larger share of a source's rows broke the contract than `contract.max_rejected`."""
    limit = config.contract.max_rejected
    if counts.rejected > limit * counts.read:
        raise UserError(
            f"{source}: {counts.rejected} of {counts.read} rows for {ds} break the contract, "
            f"more than contract.max_rejected ({limit:g}) allows; most often {counts.reasons.most_common()}; "
            "nothing was published: mend the source, or raise the limit"
        )


def check_volume(config: Recommender, tables: Tables, ds: date, read: int) -> None:
    """Raise `UserError` if the day's rows are far off the median of the days before (`contract.volume`)."""
    volume = config.contract.volume
    if volume is None or not config.source.interactions.is_daily or not tables.exists("ingested"):
        return
    before = tables.dataset("ingested").to_table(columns=["ds", "read"], filter=pc.field("ds") < ds)
    recent = before.sort_by([("ds", "descending")]).column("read").to_pylist()[: volume.days]
    if len(recent) < _FEWEST_DAYS:
        return
    usual = statistics.median(recent)
    if not volume.min * usual <= read <= volume.max * usual:
        raise UserError(
            f"{config.source.interactions.title}: {ds} has {read} rows, the {len(recent)} days before it had "
            f"{usual:g} in the median, and contract.volume allows {volume.min:g} to {volume.max:g} times that; nothing "
            "was published: deliver the day whole, widen contract.volume, or ingest it with --despite-limits"
        )
