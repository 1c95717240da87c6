"""The commands that make and hand on scores, as `pipelines.cli` offers them."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.calling import AsOf, Config, Debug, call, day, load

app = typer.Typer()

ModelVersion = Annotated[int | None, typer.Option(help="A version's number; the champion if left out.")]
Plan = Annotated[str, typer.Option("--plan", help="What `score-plan` told.")]


@app.command()
def score(
    config: Config,
    as_of: AsOf,
    model_version: ModelVersion = None,
    engine: Annotated[
        str, typer.Option("--engine", help="Who does the shards: processes (of this machine) or spark.")
    ] = "processes",
    debug: Debug = False,
) -> None:
    """Publish the top-N items of every user, with what is known through --as-of."""
    from pipelines.score import engine_named
    from pipelines.score import score as step

    call(debug, lambda: step(load(config), day(as_of), model_version, engine_named(engine)))


@app.command("score-plan")
def score_plan(config: Config, as_of: AsOf, model_version: ModelVersion = None, debug: Debug = False) -> None:
    """Only plan a scoring, and say how many shards it has."""
    from pipelines.score import score_plan as step

    call(debug, lambda: step(load(config), day(as_of), model_version))


@app.command("score-shard")
def score_shard(
    config: Config,
    plan: Plan,
    shard: Annotated[int, typer.Option("--shard", help="Its number, from 0.")],
    debug: Debug = False,
) -> None:
    """Score one shard of a plan."""
    from pipelines.score import score_shard as step

    call(debug, lambda: step(load(config), plan, shard))


@app.command("score-publish")
def score_publish(config: Config, plan: Plan, debug: Debug = False) -> None:
    """Publish the scores of a plan whose shards are all done."""
    from pipelines.score import score_publish as step

    call(debug, lambda: step(load(config), plan))


@app.command()
def export(
    config: Config,
    as_of: AsOf,
    to: Annotated[str | None, typer.Option("--to", help="One of the YAML's exports; all if left out.")] = None,
    debug: Debug = False,
) -> None:
    """Bring a day's scores to the files, key-value stores and databases that the YAML names."""
    from pipelines.export import export as step

    call(debug, lambda: step(load(config), day(as_of), to))
