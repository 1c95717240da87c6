#!/usr/bin/env python3
"""Takes the place of `recsys-moe` where a test is about Airflow, so that a step takes milliseconds.

It keeps the command line's contract: a JSON object in `$RECSYS_MOE_RESULT`, exit code 99 for nothing to do, 2 for a
user's error. What it does depends on the recommender: `breaks` cannot train, `hangs` never ends. The monitor asks for a
training on days that end with 31.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> int:
    """Do as if, and answer with the exit code."""
    step, as_of = sys.argv[1], sys.argv[sys.argv.index("--as-of") + 1]
    config = Path(sys.argv[sys.argv.index("--config") + 1])
    days = config.with_suffix(".days")
    if step == "ingest":
        days.mkdir(exist_ok=True)
        (days / as_of).touch()
    if config.stem == "hangs":
        time.sleep(600)
    if step == "train" and config.stem == "breaks":
        return 2
    if step == "train" and max(day.name for day in days.iterdir()) > as_of:
        return 99
    result: dict[str, object] = {"step": step, "as_of": as_of}
    if step == "train":
        result |= {"version": 1, "run_id": "abc"}
    if step == "monitor":
        due = as_of.endswith("31")
        result |= {"retrain": due, "reasons": ["it drifts"], "findings": ["it drifts"]}
        result["verdict"] = "retrain" if due else "ok"
    Path(os.environ["RECSYS_MOE_RESULT"]).write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
