#!/usr/bin/env python3
"""Takes the place of `recsys-moe` where a test is about Airflow, so that a step takes milliseconds.

It keeps the command line's contract: a JSON object in `$RECSYS_MOE_RESULT`, exit code 99 for nothing to do, 2 for a
user's error. What it does depends on the recommender: `breaks` cannot train, `hangs` never ends; `loses` and `stumbles`
have three shards, of which number 1 always fails for the one, and the first time for the other. The monitor asks for a
training on days that end with 31.
"""

import json
import os
import sys
import time
from pathlib import Path

SHARDS = {"loses": 3, "stumbles": 3}


def main() -> int:
    """Do as if, and answer with the exit code."""
    step = sys.argv[1]
    options = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=False))
    config = Path(options["--config"])
    as_of = options.get("--as-of") or options["--plan"].removeprefix("plan-")
    if step == "ingest":
        days_of(config).mkdir(exist_ok=True)
        (days_of(config) / as_of).touch()
    if config.stem == "hangs":
        time.sleep(600)
    if code := refusal(step, config, as_of, options):
        return code
    result = {"step": step, "as_of": as_of} | told(step, config, as_of)
    Path(os.environ["RECSYS_MOE_RESULT"]).write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 0


def days_of(config: Path) -> Path:
    """Where it is noted which days came in."""
    return config.with_suffix(".days")


def refusal(step: str, config: Path, as_of: str, options: dict[str, str]) -> int:
    """The exit code where a step does not end well, else 0."""
    if step == "train" and config.stem == "breaks":
        return 2
    if step == "train" and max(day.name for day in days_of(config).iterdir()) > as_of:
        return 99
    if step == "score-shard" and options["--shard"] == "1":
        return of_shard_1(config)
    return 0


def of_shard_1(config: Path) -> int:
    """The exit code of the shard that fails for some."""
    if config.stem == "loses":
        print("error: loses.yaml: shard 1 has no columns", file=sys.stderr)
        return 2
    stumbled = config.with_suffix(".stumbled")
    if config.stem == "stumbles" and not stumbled.exists():
        stumbled.touch()
        return 75
    return 0


def told(step: str, config: Path, as_of: str) -> dict[str, object]:
    """What a step returns, beside its name and day."""
    if step == "train":
        return {"version": 1, "run_id": "abc"}
    if step == "monitor":
        due = as_of.endswith("31")
        verdict = "retrain" if due else "ok"
        return {"retrain": due, "reasons": ["it drifts"], "findings": ["it drifts"], "verdict": verdict}
    if step == "score-plan":
        return {"plan": f"plan-{as_of}", "shards": SHARDS.get(config.stem, 1), "users": 3, "model_version": 1}
    return {"step": "score"} if step == "score-publish" else {}


if __name__ == "__main__":
    sys.exit(main())
