"""A person taken out of all tables, with a list of the models that have seen them: `recsys-moe forget`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import places
from pipelines.config import Recommender
from pipelines.maintain import remove, scratch_folders
from pipelines.registry import Registry, Training
from pipelines.scoring.staging import FOLDER, Staging
from pipelines.tables import TableName, Tables
from pipelines.tables.erasing import Traces, erase
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

Mask = Callable[[pa.RecordBatch], pa.Array]
"""[rows] whether each is the person's; null counts as no."""

_JOINT = "\x1f"
NOTES = (
    "the source is not changed: ingesting a day again brings the person back, unless the source has forgotten them",
    "sums over all rows, such as counts of an item, still count the person's events, without a name",
    "models are not changed: train again, and delete the versions listed, if they must not have seen the person",
)
"""What forgetting leaves as it is."""


def forget(config: Recommender, user: str, dry_run: bool = False) -> dict[str, Any]:
    """Take a user out of every table, in every version that is kept, and out of scratch folders and scores that are not
    published; or only count.

    No other step should run meanwhile: a writer at work on the same days loses and has to be started again.

    Returns:
        Rows and files by table, and the registered models that have seen the user. It does not hold the id.

    Raises:
        UserError: no table and no model knows the user, or the storage or MLflow cannot be reached.
    """
    if not user.strip():
        raise UserError("--user: is empty; give the user's id")
    tables, registry = Tables(config.storage), Registry(config)
    # First, since it reads what is about to go.
    models = seen_by(config, tables, registry, user)
    # Examples last, so that a run after a killed one can still say which models learned from them.
    names = sorted((name for name in get_args(TableName) if tables.exists(name)), key=lambda name: name == "examples")
    done: dict[str, Any] = {}
    for name in names:
        if (traces := traces_of(config, name, user)) is not None:
            done[name] = asdict(erase(tables.place(name), traces, dry_run))
            log.info("%s: %d rows, %d files, %d files left", name, *done[name].values())
    sure = any(model["days"] or model["in_vocabulary"] for model in models)
    if not sure and not any(count for counts in done.values() for count in counts.values()):
        raise UserError(f"--user: no table and no model of {config.name!r} knows this user; ids are compared as text")
    if any(counts["left"] for counts in done.values()):
        log.warning("files of a step at work, or killed within a day, hold this user too: run this again tomorrow")
    scratch = list(scratch_folders(config))
    removed = {"removed": 0}
    if not dry_run:
        # Scores that are not published yet hold people, too, and would bring them back into the table.
        unpublished = Staging(places.join(config.storage, FOLDER)).remove()
        removed = {"removed": len(scratch), "bytes": unpublished + sum(map(remove, scratch))}
    return {
        "step": "forget",
        "dry_run": dry_run,
        "tables": done,
        "scratch": removed,
        "models": models,
        "notes": list(NOTES),
    }


def seen_by(config: Recommender, tables: Tables, registry: Registry, user: str) -> list[dict[str, Any]]:
    """The registered versions that learned from the user's examples, or have the id in a vocabulary.

    `days` are those of the examples, None where the table's version cannot be read any more; `in_vocabulary` is None
    where the model's files cannot be read.
    """
    found = []
    for training in registry.trainings():
        for version in training.versions:
            days = _days_learned(config, tables, training, user)
            known = registry.in_vocabulary(version, _is_of_users(config), user)
            if known is not False or days != []:
                told = [day.isoformat() for day in days] if days is not None else None
                aliases = list(training.aliases[version])
                found.append({"version": version, "aliases": aliases, "days": told, "in_vocabulary": known})
                log.info("version %d has seen this user", version)
    return found


def _days_learned(config: Recommender, tables: Tables, training: Training, user: str) -> list[date] | None:
    """The days with examples of the user among those that the training learned from."""
    version = training.tables.get("examples")
    if version is None or training.as_of is None or training.through is None:
        return None
    try:
        examples = tables.dataset("examples", version)
        theirs = examples.to_table(columns=["ds"], filter=pc.field(config.columns.user) == user)
    except (UserError, FileNotFoundError):
        return None
    known = sorted({_day_of(path) for path in examples.files})
    known = [day for day in known if day <= training.as_of][-(training.window or 0) :]
    learned = {day for day in known if day <= training.through}
    return sorted(learned & set(theirs.column("ds").unique().to_pylist()))


def _day_of(path: str) -> date:
    return date.fromisoformat(path.split("ds=")[1][:10])


def _is_of_users(config: Recommender) -> Callable[[str], bool]:
    """Whether a feature holds users: the column itself, and lists of them."""
    user = config.columns.user
    return lambda feature: feature == user or _lists_users(feature, user)


def _lists_users(feature: str, user: str) -> bool:
    return "_last_" in feature and feature.endswith(f"_{user}")


def traces_of(config: Recommender, name: TableName, user: str) -> Traces | None:
    """How a user is found in a table; None where it has nothing of users."""
    column = config.columns.user
    if name == "rejected":
        return Traces(("row",), _rows(_rejected(config, user)))
    if name == "daily_counts":
        return Traces(("key", "value"), _rows(_counted(column, user)))
    if name == "daily_recent":
        return Traces(("key", "value", "item"), _rows(_recent(column, user)))
    if name == "examples":
        return _examples(config, user)
    key = {"interactions": column, "users": column, "outcomes": "user", "scores": "user_id"}.get(name)
    return Traces((key,), _rows(_equal(key, user))) if key else None


def _rows(mask: Mask) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """Takes out the rows of a mask."""
    return lambda batch: batch.filter(pc.invert(pc.fill_null(mask(batch), False)))


def _equal(column: str, user: str) -> Mask:
    return lambda batch: pc.equal(batch[column], user)


def _examples(config: Recommender, user: str) -> Traces:
    """Rows of the user; and, in others' rows, the user in lists of users."""
    own, recents = config.columns.user, config.features.history.recent if config.features.history else ()
    lists = tuple(recent.feature for recent in recents if recent.of == own)
    rows = _rows(_equal(own, user))

    def without(batch: pa.RecordBatch) -> pa.RecordBatch:
        kept = rows(batch)
        for column in set(lists) & set(kept.schema.names):
            place = kept.schema.get_field_index(column)
            kept = kept.set_column(place, kept.schema.field(place), _without_element(kept[column], user))
        return kept

    return Traces((own, *lists), without)


def _without_element(lists: pa.ListArray, user: str) -> pa.ListArray:
    """Lists of texts without one of them; a list that had nothing else is empty, a null one stays null."""
    flat, lengths = lists.flatten(), pc.fill_null(pc.list_value_length(lists), 0)
    stays = pc.fill_null(pc.not_equal(flat, user), True)
    seen = pa.concat_arrays([pa.array([0]), pc.cumulative_sum(stays.cast(pa.int64()))])
    ends = pa.concat_arrays([pa.array([0]), pc.cumulative_sum(lengths.cast(pa.int64()))])
    offsets = seen.take(ends).cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, flat.filter(stays), type=lists.type, mask=lists.is_null())


def _counted(column: str, user: str) -> Mask:
    """Keys that are the user's column alone or in a pair, with the id as the value or as a part of it.

    Keys are told by their names, not by the YAML, which may have changed since."""
    name = f"(^|_x_){re.escape(column)}($|_x_)"

    def mask(batch: pa.RecordBatch) -> pa.Array:
        value = batch["value"]
        parts = [pc.equal(value, user), pc.starts_with(value, user + _JOINT), pc.ends_with(value, _JOINT + user)]
        theirs = pc.or_kleene(pc.or_kleene(parts[0], parts[1]), parts[2])
        return pc.and_kleene(pc.match_substring_regex(batch["key"], name), theirs)

    return mask


def _recent(column: str, user: str) -> Mask:
    """Lists of a user's, and a user in lists of others; both are told by the feature's name, which is the key."""

    def mask(batch: pa.RecordBatch) -> pa.Array:
        own = pc.and_kleene(pc.starts_with(batch["key"], f"{column}_last_"), pc.equal(batch["value"], user))
        others = pc.and_kleene(pc.ends_with(batch["key"], f"_{column}"), pc.equal(batch["item"], user))
        return pc.or_kleene(own, others)

    return mask


def _rejected(config: Recommender, user: str) -> Mask:
    """Rows with the id in a user column; and lines that could not be cut, with the id as one of their words."""
    columns = {config.columns.user, *(outcome.user or config.columns.user for outcome in config.source.outcomes)}
    word = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, _spelled(user)))})(?![\w-])")
    anywhere = "|".join(map(re.escape, {again for once in _spelled(user) for again in _spelled(once)}))

    def is_theirs(text: str) -> bool:
        row = json.loads(text)
        if isinstance(row, dict):
            return any(_cleaned(row.get(column)) == user for column in columns)
        return bool(word.search(str(row)))

    def mask(batch: pa.RecordBatch) -> pa.Array:
        # Few rows have the id in them at all; only these are taken apart.
        maybe = pc.fill_null(pc.match_substring_regex(batch["row"], anywhere), False)
        sure = pa.array([is_theirs(text) for text in batch["row"].filter(maybe).to_pylist()], pa.bool_())
        return pc.replace_with_mask(maybe, maybe, sure)

    return mask


def _cleaned(value: object) -> str:
    """As ingest cleans ids: 7.0 is 7."""
    return re.sub(r"^(-?[0-9]+)\.0+$", r"\1", str(value).strip())


def _spelled(text: str) -> set[str]:
    """A text as it may stand in JSON."""
    return {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
