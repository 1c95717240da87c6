"""`recsys-moe STEP --config FILE --as-of DATE`: the boundary that schedulers and people call.

Logs go to stderr. The last line of stdout is one JSON object, which is also written to the file that
`$RECSYS_MOE_RESULT` names. Exit codes: 0 done, 2 something that the user can mend, 75 something that passes by itself
(a storage that cannot be reached, a race that was lost), 99 nothing to do, 1 a bug.

Steps are imported when they are called: `--help`, `ingest` and `schema` need no torch.
"""

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

USER_ERROR, TRY_AGAIN, SKIPPED = 2, 75, 99

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Schedule training, batch-score users and compare runs of a mixture-of-experts recommender.",
)

Config = Annotated[Path, typer.Option("--config", help="The recommender's YAML.")]
AsOf = Annotated[str, typer.Option("--as-of", metavar="YYYY-MM-DD", help="The day, in the YAML's time zone.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, too.")]


@app.command()
def simulate(config: Config, debug: Debug = False) -> None:
    """Write a marketplace's logs, with known truth, to the paths that the YAML names."""
    from pipelines.simulate import simulate as step

    _call(debug, lambda: step(_load(config)))


@app.command()
def ingest(
    config: Config,
    as_of: AsOf,
    despite_limits: Annotated[
        bool, typer.Option("--despite-limits", help="Publish a day whose volume is far off those before it, too.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Read and check one day's files, set bad rows aside with a reason, publish."""
    from pipelines.ingest import ingest as step

    _call(debug, lambda: step(_load(config), _day(as_of), despite_limits))


@app.command()
def prepare(config: Config, as_of: AsOf, debug: Debug = False) -> None:
    """Make one day's examples: labels, raw features, and history as of each event."""
    from pipelines.prepare import prepare as step

    _call(debug, lambda: step(_load(config), _day(as_of)))


@app.command()
def train(
    config: Config,
    as_of: AsOf,
    if_due: Annotated[
        bool, typer.Option("--if-due", help="Exit 99 if a newer day is ingested already, or there are too few yet.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with a training that was killed, or begin anew.")
    ] = True,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="How many train together on this machine, as one a GPU.")
    ] = 1,
    debug: Debug = False,
) -> None:
    """Train on the days up to --as-of and register the result as a version."""
    from pipelines.team import Team, launch

    def work() -> dict[str, Any] | None:
        from pipelines.fitting import follow
        from pipelines.train import check_due
        from pipelines.train import train as step
        from recsys_moe.memory import keep_freed_memory

        keep_freed_memory()
        with Team() as team:
            if team.rank > 0:
                follow(team)
                return None
            loaded, day = _load(config), _day(as_of)
            if if_due:
                check_due(loaded, day)
            return step(loaded, day, resume, team)

    if processes > 1 and "RANK" not in os.environ:
        _guard(debug, lambda: launch(processes, sys.argv[1:]))
    _call(debug, work)


@app.command()
def tune(
    config: Config,
    as_of: AsOf,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="How many in the end; what the YAML says if left out.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Search for better settings (the YAML's block `tuning`), a run a trial; called again, it goes on."""

    def work() -> dict[str, Any]:
        from pipelines.tune import tune as step
        from recsys_moe.memory import keep_freed_memory

        keep_freed_memory()
        return step(_load(config), _day(as_of), trials)

    _call(debug, work)


@app.command()
def evaluate(config: Config, as_of: AsOf, debug: Debug = False) -> None:
    """Measure the version trained for --as-of beside the champion and the baselines."""
    from pipelines.evaluate import evaluate as step

    _call(debug, lambda: step(_load(config), _day(as_of)))


@app.command()
def promote(config: Config, as_of: AsOf, debug: Debug = False) -> None:
    """Let the version trained for --as-of serve, if it is better than the champion on the same rows."""
    from pipelines.promote import promote as step

    _call(debug, lambda: step(_load(config), _day(as_of)))


@app.command()
def score(
    config: Config,
    as_of: AsOf,
    model_version: Annotated[int | None, typer.Option(help="A version's number; the champion if left out.")] = None,
    debug: Debug = False,
) -> None:
    """Publish the top-N items of every user, with what is known through --as-of."""
    from pipelines.score import score as step

    _call(debug, lambda: step(_load(config), _day(as_of), model_version))


@app.command()
def explain(
    config: Config,
    user: Annotated[str, typer.Option("--user", help="The user's id.")],
    item: Annotated[str | None, typer.Option("--item", help="An item's id; the user's top list if left out.")] = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="YYYY-MM-DD", help="The day; the newest prepared if left out.")
    ] = None,
    model_version: Annotated[int | None, typer.Option(help="A version's number; the champion if left out.")] = None,
    context: Annotated[
        str | None, typer.Option("--context", help="One of scoring.contexts; the first if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    debug: Debug = False,
) -> None:
    """Show which experts speak for a user and an item, with what weight, and which features moved the gates."""

    def work() -> dict[str, Any]:
        from pipelines.explain import explain as step

        return step(_load(config), user, item, _day(as_of) if as_of else None, model_version, context)

    def in_words() -> None:
        from pipelines.explain_text import as_text

        print(as_text(work()), flush=True)

    if as_json:
        _call(debug, work)
    else:
        _guard(debug, in_words)


@app.command()
def profile(
    config: Config,
    start: Annotated[
        str | None, typer.Option("--from", metavar="YYYY-MM-DD", help="The first day; --as-of alone if left out.")
    ] = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="YYYY-MM-DD", help="The last day; the newest ingested if left out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The HTML file; one in the storage's folder `profile` if left out.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write an HTML page about the ingested data of a day or a range: volumes, rates, drift, rejected rows."""
    from pipelines.profile import profile as step

    _call(
        debug,
        lambda: step(_load(config), _day(start, "--from") if start else None, _day(as_of) if as_of else None, out),
    )


@app.command()
def maintain(
    config: Config,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what there is to do now.")] = False,
    debug: Debug = False,
) -> None:
    """Remove days that the YAML's retention no longer keeps, and files that no kept version of a table needs."""
    from pipelines.maintain import maintain as step

    _call(debug, lambda: step(_load(config), dry_run))


@app.command()
def forget(
    config: Config,
    user: Annotated[str, typer.Option("--user", help="The user's id.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what there is to remove.")] = False,
    debug: Debug = False,
) -> None:
    """Take a user out of every table and each of its versions, and say which models have seen them."""
    from pipelines.forget import forget as step

    _call(debug, lambda: step(_load(config), user, dry_run))


@app.command()
def run(
    config: Config,
    start: Annotated[
        str | None, typer.Option("--from", metavar="YYYY-MM-DD", help="The first day; the source's first if left out.")
    ] = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="YYYY-MM-DD", help="The last day; the source's last if left out.")
    ] = None,
    debug: Debug = False,
) -> None:
    """All steps in order, over a range of days."""
    from pipelines.run import run as steps

    _call(
        debug,
        lambda: steps(_load(config), _day(start, "--from") if start else None, _day(as_of) if as_of else None),
    )


@app.command()
def schema() -> None:
    """Print the JSON schema of a recommender's YAML, for editors."""
    print(json.dumps(recommenders.json_schema(), indent=2, sort_keys=True))


@app.command()
def demo(
    keep_open: Annotated[bool, typer.Option("--keep-open", help="Leave the servers up until Ctrl-C.")] = False,
    debug: Debug = False,
) -> None:
    """Run the demo's DAGs under a real scheduler over simulated days, and stop all that was started."""
    from pipelines.local.demo import demo as play

    _guard(debug, lambda: play(keep_open))


@app.command()
def up(debug: Debug = False) -> None:
    """Start Airflow and MLflow for a person, on this machine only; Ctrl-C ends all of it."""
    from pipelines.local.up import up as start

    _guard(debug, start)


def _load(path: Path) -> Recommender:
    return recommenders.load(path)


def _day(text: str, option: str = "--as-of") -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{option}: {text!r} is no date; write it like 2026-01-31") from None


def _call(debug: bool, step: Callable[[], dict[str, Any] | None]) -> None:
    """Run a step; its result is the last line of stdout, and the file that the environment names. A process that only
    helped another has none."""

    def work() -> None:
        if (found := step()) is None:
            return
        result = json.dumps(found, allow_nan=False)
        if path := os.environ.get("RECSYS_MOE_RESULT"):
            Path(path).write_text(result + "\n", encoding="utf-8")
        print(result, flush=True)

    _guard(debug, work)


def _guard(debug: bool, work: Callable[[], object]) -> None:
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


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
