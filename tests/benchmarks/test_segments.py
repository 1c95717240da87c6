"""The world is what it says, and on it segments keep their promises. The slow tests are the promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import segments
from benchmarks.segment_world import FEATURES, TASKS, World
from benchmarks.segments import NEWCOMERS, OWN_TASTES, SEGMENTS, TASTES, over_seeds
from recsys_moe.errors import UserError

SEEDS = range(5)
NEWCOMER_SEEDS = range(12)

# ---------------------------------------------------------------------------------------------------------------------
# The world.


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(0, SEGMENTS, OWN_TASTES)


@pytest.fixture(scope="module")
def rows(world: World) -> pa.Table:
    return world.rows(40_000, 0)


def test_truth_ranks_better_than_a_constant_and_not_perfectly(rows: pa.Table) -> None:
    best = segments.best_aucs(rows)
    constant = segments.aucs(rows, {task.name: np.zeros(rows.num_rows) for task in TASKS})
    assert set(constant.values()) == {0.5}
    assert all(0.7 < best[task.name] < 0.9 for task in TASKS), best


def test_what_happens_is_as_likely_as_said(rows: pa.Table) -> None:
    for task in TASKS:
        label, chance = (np.asarray(rows[f"{kind}_{task.name}"], np.float64) for kind in ("label", "probability"))
        errors = (label - chance).mean() / np.sqrt((chance * (1 - chance)).sum()) * len(chance)
        assert abs(errors) < 4, f"{task.name} is {errors:.1f} standard errors off"


def test_no_purchase_without_a_click(rows: pa.Table) -> None:
    click, purchase = (np.asarray(rows[f"label_{name}"]) for name in ("click", "purchase"))
    assert purchase.sum() > 0
    assert not purchase[click == 0].any()


def test_same_stream_same_rows(world: World) -> None:
    again = World.of(0, SEGMENTS, OWN_TASTES)
    assert again.rows(1000, 3, 1).equals(world.rows(1000, 3, 1))
    assert not world.rows(1000, 3, 2).equals(world.rows(1000, 3, 1))
    assert not World.of(1, SEGMENTS, OWN_TASTES).rows(1000, 3, 1).equals(world.rows(1000, 3, 1))


def test_segments_differ_as_much_as_said() -> None:
    """The correlation of two segments' tastes is the share that they have in common."""
    for common in (0.0, 0.5, 1.0):
        drawn = [World.of(seed, SEGMENTS, common).tastes[task.name] for seed in range(20) for task in TASKS]
        between = np.corrcoef(np.concatenate([tastes.trait for tastes in drawn], axis=1))
        assert between[~np.eye(SEGMENTS, dtype=bool)].mean() == pytest.approx(common, abs=0.1)


def test_users_come_from_the_regions_asked_for(world: World) -> None:
    assert set(world.rows(2000, 0, regions=[2, 5])["region"].to_pylist()) == {2, 5}
    assert set(world.rows(2000, 0)["region"].to_pylist()) == set(range(SEGMENTS))


# ---------------------------------------------------------------------------------------------------------------------
# The summary.


def test_every_model_reads_the_region_whether_it_has_segments_or_not(rows: pa.Table) -> None:
    for min_rows in NEWCOMERS.values():
        config = segments.model_config(TASTES["segmented"], min_rows)
        assert config.features == FEATURES
        assert (config.segments is None) == (min_rows is None)
    assert segments.model_config(TASTES["shared_bottom"]).experts.routed == 0


def made_up(click: dict[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {name: {"auc": dict.fromkeys((t.name for t in TASKS), v)} for name, v in click.items()}
    for name in TASTES:
        found[name]["multiply_adds"] = 1000.0
    found["segmented"]["idlest"] = click["segmented"]
    return found


def test_tables_say_how_much_of_the_gap_is_closed() -> None:
    names = ["best", *TASTES]
    first, second = ([0.8, 0.7, 0.79, 0.792, 0.75], [0.9, 0.7, 0.86, 0.862, 0.8])
    seeds = [made_up(dict(zip(names, numbers, strict=True))) for numbers in (first, second)]
    summary = segments.summarise_tastes(seeds)
    assert summary["models"]["segmented"]["closed"]["mean"] == pytest.approx((0.9 + 0.8) / 2)
    assert summary["models"]["segmented"]["idlest"] == 0.79
    assert summary["routed_loss"]["mean"] == pytest.approx(0.002)
    kinds = ("unseen", "thin", "known")
    newcomers = [{name: dict.fromkeys(kinds, 0.6 + 0.01 * n) for n, name in enumerate(("best", *NEWCOMERS))}] * 2
    gains = segments.summarise_newcomers(newcomers)
    assert gains["models"]["segments"]["thin"]["above_no_segments"]["mean"] == pytest.approx(0.01)
    shown = segments.table({"tastes": summary, "newcomers": gains})
    assert "0.850" in shown
    assert "segments: gain" in shown


@pytest.mark.parametrize("too_few", [{"seeds": 1}, {"newcomer_seeds": 1}, {"rows": 9}, {"newcomer_rows": 9}])
def test_too_little_is_refused(too_few: dict[str, int]) -> None:
    enough = {"seeds": 2, "newcomer_seeds": 2, "rows": 10_000, "newcomer_rows": 10_000}
    with pytest.raises(UserError, match="at least 2"):
        segments.run(**enough | too_few)


# ---------------------------------------------------------------------------------------------------------------------
# The promises.


@pytest.fixture(scope="module")
def tastes() -> list[dict[str, dict[str, Any]]]:
    return [segments.tastes(seed, ["shared_bottom", "segmented"]) for seed in SEEDS]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_segmented_closes_nine_tenths_of_the_gap(tastes: list[dict[str, dict[str, Any]]]) -> None:
    closed = over_seeds(segments.closed_gap(found, "segmented") for found in tastes)
    assert closed["mean"] >= 0.9, closed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_expert_is_dead_in_any_seed(tastes: list[dict[str, dict[str, Any]]]) -> None:
    idlest = [found["segmented"]["idlest"] for found in tastes]
    assert min(idlest) >= 0.1, idlest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_of_sixteen_experts_rank_as_well_as_all(tastes: list[dict[str, dict[str, Any]]]) -> None:
    """The loss is at most 0.001 even at the upper end of its interval."""
    dense = "segmented, all 16 run"
    both = [found | segments.tastes(seed, [dense]) for seed, found in zip(SEEDS, tastes, strict=True)]
    loss = over_seeds(map(segments.routed_loss, both))
    assert loss["high"] <= 0.001, loss


@pytest.fixture(scope="module")
def newcomers() -> list[dict[str, dict[str, float]]]:
    return [segments.newcomers(seed) for seed in NEWCOMER_SEEDS]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["segments", "segments, min_rows 50"])
@pytest.mark.parametrize("kind", ["unseen", "thin"])
def test_a_new_segment_loses_nothing(newcomers: list[dict[str, dict[str, float]]], kind: str, model: str) -> None:
    """At most 0.002 less AUC than without segments, even at the lower end of the interval of paired differences."""
    gain = over_seeds(found[model][kind] - found["no segments"][kind] for found in newcomers)
    assert gain["low"] >= -0.002, gain
