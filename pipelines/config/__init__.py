"""One YAML describes a recommender: read, checked whole, and frozen before anything runs."""

from pipelines.config.data import (
    DERIVED_COLUMNS,
    Columns,
    Features,
    History,
    NumericFeature,
    Source,
    Sources,
    TaskSource,
    Timestamp,
    history_feature,
)
from pipelines.config.reading import json_schema, load
from pipelines.config.recommender import RESERVED_COLUMNS, Recommender, feature_columns, segment_columns
from pipelines.config.steps import (
    Candidates,
    ColumnSplit,
    Evaluation,
    Gate,
    ModelShape,
    RandomSplit,
    Schedule,
    Scoring,
    Simulation,
    TimeSplit,
)

__all__ = [
    "DERIVED_COLUMNS",
    "RESERVED_COLUMNS",
    "Candidates",
    "ColumnSplit",
    "Columns",
    "Evaluation",
    "Features",
    "Gate",
    "History",
    "ModelShape",
    "NumericFeature",
    "RandomSplit",
    "Recommender",
    "Schedule",
    "Scoring",
    "Simulation",
    "Source",
    "Sources",
    "TaskSource",
    "TimeSplit",
    "Timestamp",
    "feature_columns",
    "history_feature",
    "json_schema",
    "load",
    "segment_columns",
]
