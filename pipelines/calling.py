"""How the CLI calls a step: what it returns is told, and what goes wrong becomes one line and an exit code."""

from __future__ import annotations

import errno
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
    except Exception as error:
        if not (isinstance(error, UserError) or _is_of_a_full_disk(error)):
            raise
        if debug:
            traceback.print_exc()
        said = str(error) if isinstance(error, UserError) else " ".join(str(error).split())
        print(f"error: {said}", file=sys.stderr)
        raise typer.Exit(_exit_code(error)) from None
    raise typer.Exit(code if isinstance(code, int) else 0)


def _exit_code(error: Exception) -> int:
    return TRY_AGAIN if isinstance(error, TryAgainError) or _is_of_a_full_disk(error) else USER_ERROR


def _is_of_a_full_disk(error: BaseException | None) -> bool:
    """Whether this, or what led to it, is that a disk is full: other steps that end, or a person, make room.

    Libraries say so in their own exceptions, with the system's words.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:  # an error may be named as its own cause
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


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
