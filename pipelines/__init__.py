"""The steps from raw logs to top-N lists: each one function, tables in, tables out."""

import os

# Before any module of ours imports mlflow: it would otherwise report usage to its makers, and put lines and bars of its
# own between ours.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
