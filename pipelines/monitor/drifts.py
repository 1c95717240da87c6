"""How far what the model reads, and what it says, are spread otherwise than on the days that it learned from.

The measure is the profile's (`pipelines.profile.drift`): its index over tenths of the numbers before, or over the most
frequent values and the rest. Scores are columns like others here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from pipelines import sql
from pipelines.config import Recommender
from pipelines.monitor.checks import Check
from pipelines.monitor.said import Said
from pipelines.profile.drift import Spread, spreads
from pipelines.profile.relations import Profiled, Relations
from pipelines.profile.span import Span
from pipelines.tables import Tables
from recsys_moe.config import ModelConfig

_SCORE = "score of "
_NOW, _SEGMENT = "__now", "__segment"
_CLEAR_OF_CHANCE = 2
"""Times what chance gives, from where on a drift is believed; the profile's reading has the same."""


@dataclass(frozen=True)
class Drifts:
    """The spread of every column, largest drift first: of all rows, and of each segment that has enough of them."""

    overall: tuple[Spread, ...]
    by_segment: Mapping[str, tuple[Spread, ...]]

    def checks(self, config: Recommender) -> Iterator[Check]:
        """One of each column and segment."""
        monitoring = config.monitoring
        for segment, found in ({None: self.overall} | dict(self.by_segment)).items():
            for spread in found:
                of_score = spread.column.name.startswith(_SCORE)
                limits = monitoring.score_drift if of_score else monitoring.drift
                where = f" in {segment}" if segment is not None else ""
                yield Check(
                    group="score_drift" if of_score else "drift",
                    name=spread.column.name.removeprefix(_SCORE),
                    text=f"{spread.column.name}{where} drifted by {spread.psi:.2f} from the days that were learned",
                    value=spread.psi,
                    limits=limits,
                    segment=segment,
                    rows=spread.now,
                    is_sure=spread.psi >= _CLEAR_OF_CHANCE * spread.by_chance,
                )


def drifts(config: Recommender, tables: Tables, span: Span, model: ModelConfig, now: Said, before: Said) -> Drifts:
    """Compare the rows of a day with those of the days before."""
    columns = tuple(_columns(config, model))
    both = pa.concat_tables([_marked(said, is_now) for said, is_now in ((now, True), (before, False))])
    with sql.connect(spill=config.workspace / "scratch", given=both) as connection:
        texts = [_text(config, column) for column in columns]
        chosen = ", ".join([f'"{_NOW}"', f'"{_SEGMENT}"', *texts])
        connection.execute(f"CREATE TABLE rows AS SELECT {chosen} FROM given")

        def compare(condition: str) -> tuple[Spread, ...]:
            with connection.cursor() as part:  # the measure leaves temporary tables of fixed names
                part.execute(f"CREATE TEMP VIEW log AS SELECT * FROM rows WHERE {condition}")
                return tuple(spreads(Relations(part, config, tables, span, columns)))

        enough = _segments(connection, config.monitoring.min_rows)
        by_segment = {name: compare(f'"{_SEGMENT}" = {sql.text(name)}') for name in enough}
        return Drifts(compare("true"), by_segment)


def _columns(config: Recommender, model: ModelConfig) -> Iterator[Profiled]:
    """What the sources bring, and the scores. History is left out: its rates lean on the rates of all rows of before,
    which are others every day. So are ids: who came is chance. What of them matters shows in the scores."""
    features = config.features
    written = {*(f.name for f in features.categorical), *features.multivalued, *(f.name for f in features.numeric)}
    for feature in model.features:
        if feature.name in written - {*config.monitoring.ignore, config.columns.user, config.columns.item}:
            yield Profiled(feature.name, feature.kind, "log", feature.name)
    for task in model.tasks:
        yield Profiled(f"{_SCORE}{task.name}", "numeric", "log", f"{_SCORE}{task.name}")


def _marked(said: Said, is_now: bool) -> pa.Table:
    rows = said.rows.append_column(_NOW, pa.repeat(is_now, said.rows.num_rows))
    rows = rows.append_column(_SEGMENT, said.segments)
    for task, scores in said.scores.items():
        rows = rows.append_column(f"{_SCORE}{task}", pa.array(scores, pa.float32()))
    return rows


def _text(config: Recommender, column: Profiled) -> str:
    """An SQL expression: the column, a list as the text that the profile splits."""
    name = sql.name(column.name)
    if column.kind != "multivalued":
        return name
    return f"array_to_string({name}, {sql.text(config.features.separator)}) AS {name}"


def _segments(connection: duckdb.DuckDBPyConnection, min_rows: int) -> list[str]:
    """The segments with enough rows on both sides, where there are several at all."""
    query = (
        f'SELECT "{_SEGMENT}" FROM rows GROUP BY ALL '
        f'HAVING least(count(*) FILTER ("{_NOW}"), count(*) FILTER (NOT "{_NOW}")) >= {min_rows} ORDER BY 1'
    )
    several = sql.value(connection, f'SELECT count(DISTINCT "{_SEGMENT}") FROM rows') > 1
    return [name for (name,) in connection.execute(query).fetchall()] if several else []
