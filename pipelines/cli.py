"""`recsys-moe STEP --config FILE --as-of DATE`: the boundary that schedulers and people call.

Logs go to stderr. The last line of stdout is one JSON object, which is also written to the file that
`$RECSYS_MOE_RESULT` names. Exit codes: 0 done, 2 something that the user can mend, 75 something that passes by itself
(a storage or server that cannot be reached, a full disk, a race that was lost), 99 nothing to do, 1 a bug, or for
`reproduce` that the result differs.

Steps are imported when they are called: `--help`, `ingest` and `schema` need no torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import config as recommenders
from pipelines import serving_commands
from pipelines.calling import DIFFERS, AsOf, Config, Debug, call, day, guard, load, tell

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Schedule training, batch-score users and compare runs of a mixture-of-experts recommender.",
)

app.add_typer(serving_commands.app)


@app.command()
def simulate(config: Config, debug: Debug = False) -> None:
    """Write a marketplace's logs, with known truth, to the paths that the YAML names."""
    from pipelines.simulate import simulate as step

    call(debug, lambda: step(load(config)))


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

    call(debug, lambda: step(load(config), day(as_of), despite_limits))


@app.command()
def prepare(
    config: Config,
    as_of: AsOf,
    alone: Annotated[
        bool, typer.Option("--alone", help="Leave later days that look back at it to the next training.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make one day's examples: labels, raw features, and history as of each event."""
    from pipelines.prepare import prepare as step

    call(debug, lambda: step(load(config), day(as_of), alone))


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
            loaded, ds = load(config), day(as_of)
            if if_due:
                check_due(loaded, ds)
            return step(loaded, ds, resume, team)

    if processes > 1 and "RANK" not in os.environ:
        guard(debug, lambda: launch(processes, sys.argv[1:]))
    call(debug, work)


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
        return step(load(config), day(as_of), trials)

    call(debug, work)


@app.command()
def evaluate(config: Config, as_of: AsOf, debug: Debug = False) -> None:
    """Measure the version trained for --as-of beside the champion and the baselines."""
    from pipelines.evaluate import evaluate as step

    call(debug, lambda: step(load(config), day(as_of)))


@app.command()
def promote(
    config: Config,
    as_of: AsOf,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be decided, and why.")] = False,
    debug: Debug = False,
) -> None:
    """Let the version trained for --as-of serve, if the gate holds beside the champion on the same rows."""
    from pipelines.promote import promote as step

    call(debug, lambda: step(load(config), day(as_of), dry_run))


@app.command()
def rollback(
    config: Config,
    reason: Annotated[str, typer.Option("--reason", help="Why, for those who read the record.")],
    to: Annotated[int | None, typer.Option("--to", help="A version's number; who served before if left out.")] = None,
    debug: Debug = False,
) -> None:
    """Put the champion of before, or another version, in the champion's place, and record why."""
    from pipelines.promote import rollback as step

    call(debug, lambda: step(load(config), reason, to))


@app.command()
def compare(
    config: Config,
    first: Annotated[int, typer.Argument(metavar="A", help="A version's number.")],
    second: Annotated[int, typer.Argument(metavar="B", help="Another's, measured against it.")],
    as_of: AsOf,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the table to this HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Measure two versions on the same rows: the test days of --as-of that neither has learned from."""

    def work() -> dict[str, Any]:
        from pipelines.compare import compare as step

        return step(load(config), first, second, day(as_of), out)

    def in_a_table() -> None:
        from pipelines.compare import show

        show(work())

    if as_json:
        call(debug, work)
    else:
        guard(debug, in_a_table)


@app.command()
def monitor(config: Config, as_of: AsOf, debug: Debug = False) -> None:
    """Look at a day's freshness, volume, drift, calibration and experts, and say whether a training is due."""
    from pipelines.monitor import monitor as step

    call(debug, lambda: step(load(config), day(as_of)))


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

        return step(load(config), user, item, day(as_of) if as_of else None, model_version, context)

    def in_words() -> None:
        from pipelines.explain_text import as_text

        print(as_text(work()), flush=True)

    if as_json:
        call(debug, work)
    else:
        guard(debug, in_words)


@app.command()
def reproduce(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The id of a training's run in MLflow.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="The recommender's YAML: where MLflow and the tables are. Or MLFLOW_TRACKING_URI."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train again what a run trained, from the same rows, and exit 0 only if the metrics match to the last digit."""

    def work() -> int:
        from pipelines.reproduce import in_words
        from pipelines.reproduce import reproduce as step
        from recsys_moe.memory import keep_freed_memory

        keep_freed_memory()
        done = step(run_id, config)
        print(in_words(done))
        tell(done.result())
        return 0 if done.same else DIFFERS

    guard(debug, work)


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

    call(
        debug,
        lambda: step(load(config), day(start, "--from") if start else None, day(as_of) if as_of else None, out),
    )


@app.command()
def maintain(
    config: Config,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what there is to do now.")] = False,
    debug: Debug = False,
) -> None:
    """Remove days that the YAML's retention no longer keeps, and files that no kept version of a table needs."""
    from pipelines.maintain import maintain as step

    call(debug, lambda: step(load(config), dry_run))


@app.command()
def forget(
    config: Config,
    user: Annotated[str, typer.Option("--user", help="The user's id.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what there is to remove.")] = False,
    debug: Debug = False,
) -> None:
    """Take a user out of every table and each of its versions, and say which models have seen them."""
    from pipelines.forget import forget as step

    call(debug, lambda: step(load(config), user, dry_run))


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

    call(
        debug,
        lambda: steps(load(config), day(start, "--from") if start else None, day(as_of) if as_of else None),
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

    guard(debug, lambda: play(keep_open))


@app.command()
def up(debug: Debug = False) -> None:
    """Start Airflow and MLflow for a person, on this machine only; Ctrl-C ends all of it."""
    from pipelines.local.up import up as start

    guard(debug, start)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
