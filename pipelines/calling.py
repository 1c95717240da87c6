"""How the CLI calls a step: what it returns is told, and what goes wrong becomes one line and an exit code."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import config as recommenders
from pipelines.config import Recommender
from pipelines.errors import NotDueError, TryAgainError
from pipelines.processes import end_with_parent
from recsys_moe.errors import UserError

Config = Annotated[Path, typer.Option("--config", help="The recommender's YAML.")]
AsOf = Annotated[str, typer.Option("--as-of", metavar="YYYY-MM-DD", help="The day, in the YAML's time zone.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, too.")]

DIFFERS, USER_ERROR, TRY_AGAIN, SKIPPED = 1, 2, 75, 99


def load(path: Path) -> Recommender:
    """The recommender of a YAML."""
    return recommenders.load(path)


def day(text: str, option: str = "--as-of") -> date:
    """A day as it is written after an option.

    Raises:
        UserError: it is no date.
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{option}: {text!r} is no date; write it like 2026-01-31") from None


def call(debug: bool, step: Callable[[], dict[str, Any] | None]) -> None:
    """Run a step; its result is the last line of stdout, and the file that the environment names. A process that only
    helped another has none."""

    def work() -> None:
        if (found := step()) is not None:
            tell(found)

    guard(debug, work)


def tell(found: dict[str, Any]) -> None:
    """A result: the last line of stdout, and the file that `$RECSYS_MOE_RESULT` names."""
    result = json.dumps(found, allow_nan=False)
    if path := os.environ.get("RECSYS_MOE_RESULT"):
        Path(path).write_text(result + "\n", encoding="utf-8")
    print(result, flush=True)


def guard(debug: bool, work: Callable[[], object]) -> None:
    """Turn what can go wrong into one line and an exit code."""
    _set_up_logging()
    end_with_parent()
    try:
        code = work()
    except NotDueError as reason:
        print(f"nothing to do: {reason}", file=sys.stderr)
        raise typer.Exit(SKIPPED) from None
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(TRY_AGAIN if isinstance(error, TryAgainError) else USER_ERROR) from None
    raise typer.Exit(code if isinstance(code, int) else 0)


def _set_up_logging() -> None:
    """Our own words from INFO on, others' from WARNING on; times and levels only where no person watches."""
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        from pipelines.progress import console

        handler: logging.Handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("pipelines").setLevel(logging.INFO)
    for noisy in ("alembic", "torchrec", "mlflow", "optuna"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
