"""A marketplace's rows as tables of an export: raw columns under the YAML's names, with dirt, and the truth beside."""

from __future__ import annotations

from datetime import date
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import marketplace as world
from pipelines.config import Recommender, Simulation

ACTIONS = ("click", "like", "purchase")
CONTEXT_COLUMNS = ("surface", "position")
USER_COLUMNS = ("age_band", "country", "joined")
ITEM_COLUMNS = ("creator", "topics", "price", "uploaded")
DIRT = ("null_user", "null_item", "bad_timestamp", "bad_label")
"""Rows that no reader should accept: one in 2,000 of each kind, at least one a day."""


class Day(NamedTuple):
    """What one day's files hold, before they are written."""

    log: pa.Table
    truth: pa.Table
    counts: dict[str, int]


def column_names(config: Recommender) -> list[str]:
    """Every column of the log, the users and the items; only the ids stand in more than one file."""
    columns = config.columns
    shown = [columns.user, columns.item, columns.timestamp.name, *CONTEXT_COLUMNS, *label_names(config).values()]
    return [*shown, *USER_COLUMNS, *ITEM_COLUMNS]


def label_names(config: Recommender) -> dict[str, str]:
    """The label column of each action; one that the YAML leaves out is logged under its own name."""
    return {action: action for action in ACTIONS} | {task.name: task.label for task in config.tasks if task.label}


def make_day(config: Recommender, size: Simulation, market: world.Market, number: int) -> Day:
    """Make day `number` (0 = the first): the log delivered on it, and the truth of its sound rows.

    `size.rows_per_day` rows are sound, some of them late; spoiled and doubled ones come on top. `counts` has the rows
    of each kind.
    """
    rng = world.stream(size.seed, "actions", number)
    num_each = max(1, round(size.rows_per_day / 2000))
    shown = world.show(market, size, number, size.rows_per_day + num_each * len(DIRT))
    chances = world.probabilities(market, shown)
    event_time = _event_times(config, shown, size.start)
    rows = pd.DataFrame({**_shown_columns(config, shown, event_time), **_label_columns(config, chances, rng)})

    flaw = np.full(len(rows), "", dtype=object)
    flaw[rng.choice(len(rows), num_each * len(DIRT), replace=False)] = np.repeat(DIRT, num_each)
    sound = np.flatnonzero(flaw == "")
    key = [config.columns.user, config.columns.item, config.columns.timestamp.name]
    truth = rows[key].assign(event_time=event_time, **_truth_columns(chances)).iloc[sound].drop_duplicates(key)
    delivered = np.sort(np.concatenate([np.arange(len(rows)), rng.choice(sound, num_each, replace=False)]))
    counts = {"rows": len(delivered), **dict.fromkeys((*DIRT, "duplicate"), num_each)}
    counts["late"] = int((shown.day[sound] < number).sum())
    return Day(_to_arrow(_spoil(config, rows, flaw).iloc[delivered]), _in_utc(_to_arrow(truth)), counts)


def user_table(config: Recommender, size: Simulation, users: world.Users) -> pa.Table:
    """Who the users are; one in a hundred has not said where from."""
    silent = np.arange(size.users) % 100 == 99
    return pa.table(
        {
            config.columns.user: _ids("u", np.arange(size.users)),
            "age_band": np.array(world.AGE_BANDS, dtype=object)[users.age_band],
            "country": pa.array(np.array(world.COUNTRIES, dtype=object)[users.country], mask=silent),
            "joined": _dates(size.start, users.joined),
        }
    )


def item_table(config: Recommender, size: Simulation, items: world.Items) -> pa.Table:
    """What the items are; one in a hundred has no price in the export."""
    names = np.array(world.TOPICS)
    return pa.table(
        {
            config.columns.item: _ids("i", np.arange(len(items.price))),
            "creator": _ids("c", items.creator),
            "topics": [config.features.separator.join(names[mix > 0]) for mix in items.topics],
            "price": pa.array(items.price, mask=np.arange(len(items.price)) % 100 == 99),
            "uploaded": _dates(size.start, items.uploaded),
        }
    )


def _event_times(config: Recommender, shown: world.Exposures, start: date) -> NDArray[np.datetime64]:
    """[N] UTC, as exact as the log's unit. A local hour that is skipped in spring is read as the next one."""
    local = pd.DatetimeIndex(np.datetime64(start, "ms") + shown.day * 86_400_000 + shown.millisecond)
    first_of_two = np.ones(len(local), dtype=bool)
    placed = local.tz_localize(config.columns.timezone, nonexistent=pd.Timedelta(hours=1), ambiguous=first_of_two)
    utc = placed.tz_convert("UTC").tz_localize(None).to_numpy()
    return utc.astype("datetime64[s]" if config.columns.timestamp.unit == "s" else "datetime64[ms]")


def _shown_columns(config: Recommender, shown: world.Exposures, event_time: NDArray[np.datetime64]) -> dict[str, Any]:
    columns = config.columns
    return {
        columns.user: _ids("u", shown.user),
        columns.item: _ids("i", shown.item),
        columns.timestamp.name: _written_time(event_time, columns.timestamp.unit),
        "surface": np.array(world.SURFACES, dtype=object)[shown.surface],
        "position": shown.position,
    }


def _written_time(event_time: NDArray[np.datetime64], unit: str) -> Any:
    if unit == "iso":
        return np.char.add(np.datetime_as_string(event_time), "Z").astype(object)
    return event_time.astype(f"datetime64[{unit}]").astype(np.int64)


def _ids(prefix: str, numbers: world.Ints) -> Any:
    """Names such as u17; made once per distinct number, since rows are many."""
    names = np.array([f"{prefix}{number}" for number in range(int(numbers.max()) + 1)], dtype=object)
    return names[numbers]


def _label_columns(config: Recommender, chances: dict[str, world.Floats], rng: np.random.Generator) -> dict[str, Any]:
    done = {action: rng.random(len(chances[action])) < chances[action] for action in ACTIONS}
    done["purchase"] &= done["click"]
    labels = label_names(config)
    return {labels[action]: done[action].astype(np.int64) for action in ACTIONS}


def _truth_columns(chances: dict[str, world.Floats]) -> dict[str, world.Floats]:
    both = chances["click"] * chances["purchase"]
    return {f"p_{action}": chances[action] for action in ACTIONS} | {"p_click_purchase": both}


def _spoil(config: Recommender, rows: pd.DataFrame, flaw: NDArray[np.object_]) -> pd.DataFrame:
    """Put its flaw, one of DIRT, into each row that has one. Timestamps become text, as they are in a CSV file."""
    columns, labels = config.columns, label_names(config)
    time = rows[columns.timestamp.name].astype(object).where(flaw != "bad_timestamp", "n/a").astype(str)
    return rows.assign(
        **{
            columns.user: rows[columns.user].where(flaw != "null_user"),
            columns.item: rows[columns.item].where(flaw != "null_item"),
            columns.timestamp.name: time,
            labels["click"]: rows[labels["click"]].where(flaw != "bad_label", 2),
        }
    )


def _dates(start: date, days: world.Ints) -> Any:
    return np.datetime64(start, "D") + days


def _to_arrow(rows: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)


def _in_utc(truth: pa.Table) -> pa.Table:
    """`event_time` typed as the tables of later steps have it."""
    place = truth.schema.get_field_index("event_time")
    return truth.set_column(place, "event_time", truth.column(place).cast(pa.timestamp("us", "UTC")))
