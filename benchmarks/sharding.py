"""Where torchrec's planner puts 10⁹ ids on many devices, and what it expects a step to take. Nothing is allocated.

Storage and times are the planner's estimates for the assumed hardware; traffic is arithmetic. No such cluster was run.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    ParameterConstraints,
    PlannerError,
    ShardingOption,
    Stats,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ShardingType
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

GB = 10**9
ROWS_A_DAY = 10**10
FLOAT_BYTES, ID_BYTES = 4, 8
PER_NODE = 8
NARROWEST_SLICE = 16
"""Columns of a table that a column-wise shard has at least."""
KEPT_FREE = 0.15
"""Share of a device's memory that is kept for the dense part, activations and buffers."""
EXPERTS, HIDDEN = 18, (256, 128)
"""The dense part that is replicated: so many experts, for what its gradients' all-reduce costs."""


@dataclass(frozen=True)
class Hardware:
    """One device of the kind that is assumed, by its data sheet: an H200 with NVLink, and a 400 Gbit/s port of its own.

    Bandwidths are in bytes per second, those of links in one direction.
    """

    memory_bytes: float = 141e9
    memory_bandwidth: float = 4.8e12
    link_within_node: float = 450e9
    link_between_nodes: float = 50e9
    host_memory_bytes: float = 256e9
    host_link: float = 64e9


@dataclass(frozen=True)
class Table:
    """A made table: how many ids, and how many of them a row has."""

    name: str
    ids: int
    values_per_row: int = 1


TABLES = (
    Table("user", 600_000_000),
    Table("item", 250_000_000),
    Table("last 20 items", 100_000_000, 20),
    Table("author", 40_000_000),
    Table("words", 9_000_000, 5),
    *(Table(f"context {n:02d}", 50_000) for n in range(20)),
)
"""10⁹ ids in all: a few large tables, one that is read 20 times a row, and many small ones."""

CHOICES: Mapping[str, tuple[ShardingType, ...]] = {
    "table-wise": (ShardingType.TABLE_WISE,),
    "any": (
        ShardingType.TABLE_WISE,
        ShardingType.ROW_WISE,
        ShardingType.COLUMN_WISE,
        ShardingType.TABLE_ROW_WISE,
        ShardingType.DATA_PARALLEL,
    ),
}
"""What the planner may choose from. `recsys_moe.training` has table-wise alone."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Numbers of devices, widths of vectors, rows of a step."""
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64], help=f"in nodes of {PER_NODE}")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64], help="widths of the vectors")
    parser.add_argument("--rows", type=int, default=4096, help="rows of a step on each device")


def run(devices: Sequence[int], dims: Sequence[int], rows: int) -> dict[str, Any]:
    """Plan every number of devices with every width and choice."""
    plans = [
        plan_of(TABLES, count, dim, choice, rows, Hardware()) for dim in dims for count in devices for choice in CHOICES
    ]
    return {
        "hardware": asdict(Hardware()),
        "ids": sum(table.ids for table in TABLES),
        "values_per_row": sum(table.values_per_row for table in TABLES),
        "features": len(TABLES),
        "rows_per_device_and_step": rows,
        "plans": plans,
    }


def plan_of(
    tables: Sequence[Table], devices: int, dim: int, choice: str, rows: int, hardware: Hardware
) -> dict[str, Any]:
    """The planner's best plan and what it expects of it, or that there is none.

    Returns: `fits`; where it does, `sharding` (how each table is cut and into how many shards), `planner` (gigabytes
        and milliseconds) and `traffic` (arithmetic).
    """
    about = {"devices": devices, "dim": dim, "choice": choice}
    keep = _Keep()
    allowed = [kind.value for kind in CHOICES[choice]]
    planner = EmbeddingShardingPlanner(
        topology=_topology(devices, hardware),
        batch_size=rows,
        constraints={
            table.name: ParameterConstraints(
                sharding_types=allowed,
                compute_kernels=["fused", "dense"],
                min_partition=NARROWEST_SLICE,
                pooling_factors=[float(table.values_per_row)],
            )
            for table in tables
        },
        storage_reservation=FixedPercentageStorageReservation(KEPT_FREE),
        stats=keep,
        debug=False,
    )
    try:
        with _quiet():
            planner.plan(_collection(tables, dim), [EmbeddingBagCollectionSharder()])
    except PlannerError as error:
        return {**about, "fits": False, "why": str(error).strip().splitlines()[0]}
    sharding = {option.name: [_kind(option, devices), option.num_shards] for option in keep.options}
    expected = _expected(keep.options)
    traffic = _traffic(tables, sharding, devices, dim, rows)
    dense = _dense_all_reduce(len(tables) * dim, devices, hardware)
    hours = ROWS_A_DAY / (rows * devices) / 3.6e6  # an hour has 3.6e6 ms, and each step takes some
    expected["hours_for_1e10_rows"] = hours * expected["step_ms"]
    dense["hours_for_1e10_rows_with_it"] = hours * (expected["step_ms"] + dense["ms"])
    return {**about, "fits": True, "sharding": sharding, "planner": expected, "traffic": traffic, "dense": dense}


class _Keep(Stats):  # type: ignore[misc]
    """Keeps the plan with its estimates, which the planner hands to whoever prints statistics."""

    options: list[ShardingOption]

    def log(self, *args: Any, best_plan: list[ShardingOption], **kwargs: Any) -> None:
        self.options = best_plan


def _topology(devices: int, hardware: Hardware) -> Topology:
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=devices, local_world_size=min(devices, PER_NODE)),
        HardwareConfig(
            hbm_cap_bytes=int(hardware.memory_bytes),
            ddr_cap_bytes=int(hardware.host_memory_bytes),
            intra_host_bw=hardware.link_within_node / 1e3,
            inter_host_bw=hardware.link_between_nodes / 1e3,
            hbm_mem_bw=hardware.memory_bandwidth / 1e3,
            hbm_to_ddr_mem_bw=hardware.host_link / 1e3,
        ),
        KernelConfig(compute_device="cuda"),
    )


def _collection(tables: Sequence[Table], dim: int) -> nn.Module:
    collection = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                num_embeddings=table.ids,
                embedding_dim=dim,
                feature_names=[table.name],
                pooling=PoolingType.MEAN,
            )
            for table in tables
        ],
    )
    apply_optimizer_in_backward(RowWiseAdagrad, collection.parameters(), {"lr": 0.05})
    return nn.Sequential(collection)


@contextmanager
def _quiet() -> Iterator[None]:
    """The planner logs the whole plan, and every proposal that did not fit."""
    loud = logging.getLogger("torchrec")
    before, loud.level = loud.level, logging.CRITICAL
    try:
        yield
    finally:
        loud.level = before


def _kind(option: ShardingOption, devices: int) -> str:
    """How a table is cut. One shard is the whole table, and rows cut within the only node are rows cut everywhere."""
    if option.num_shards == 1:
        return str(ShardingType.TABLE_WISE.value)
    if option.sharding_type == ShardingType.TABLE_ROW_WISE.value and devices <= PER_NODE:
        return str(ShardingType.ROW_WISE.value)
    return str(option.sharding_type)


def _expected(options: Sequence[ShardingOption]) -> dict[str, Any]:
    """The planner's storage and times of the fullest and of the busiest device."""
    memory: Counter[int] = Counter()
    times: dict[int, Counter[str]] = defaultdict(Counter)
    for shard in (shard for option in options for shard in option.shards):
        assert shard.rank is not None
        assert shard.storage is not None
        assert shard.perf is not None
        memory[shard.rank] += shard.storage.hbm
        perf = shard.perf
        times[shard.rank].update(
            lookup_ms=perf.fwd_compute,
            forward_exchange_ms=perf.fwd_comms,
            update_ms=perf.bwd_compute,
            backward_exchange_ms=perf.bwd_comms,
        )
    busiest = max(times.values(), key=lambda parts: sum(parts.values()))
    return {
        "fullest_device_gb": max(memory.values()) / GB,
        "all_devices_gb": sum(memory.values()) / GB,
        **busiest,
        "step_ms": sum(busiest.values()),
    }


def _traffic(
    tables: Sequence[Table], sharding: Mapping[str, Sequence[Any]], devices: int, dim: int, rows: int
) -> dict[str, float]:
    """What crosses links for a row, in bytes: ids on their way to tables, vectors back, and gradients to tables again.

    And what is read and written in memory: every vector once forward, and read and written once backward.
    """
    away = (devices - 1) / devices
    ids = sum(table.values_per_row * _places(*sharding[table.name]) for table in tables) * ID_BYTES * away
    vectors = 2 * sum(dim * FLOAT_BYTES * _copies_sent(sharding[table.name][0], devices) for table in tables)
    replicated = sum(table.ids for table in tables if sharding[table.name][0] == ShardingType.DATA_PARALLEL.value)
    all_reduce = 2 * (devices - 1) * replicated * dim * FLOAT_BYTES / (rows * devices)
    memory = 3 * sum(table.values_per_row for table in tables) * dim * FLOAT_BYTES
    sent = ids + vectors + all_reduce
    return {
        "sent_bytes_per_row": sent,
        "sent_mb_per_device_and_step": sent * rows / 1e6,
        "sent_tb_for_1e10_rows": sent * ROWS_A_DAY / 1e12,
        "memory_bytes_per_row": memory,
        "memory_tb_for_1e10_rows": memory * ROWS_A_DAY / 1e12,
    }


def _places(kind: str, shards: int) -> int:
    """To how many shards an id goes: to the one that has its row; to all that have some of its row's columns."""
    unusual = {ShardingType.COLUMN_WISE.value: shards, ShardingType.DATA_PARALLEL.value: 0}
    return unusual.get(kind, 1)


def _dense_all_reduce(inputs: int, devices: int, hardware: Hardware) -> dict[str, float]:
    """What averaging the dense gradients costs a step: float32, over the slowest link, nothing hidden behind it."""
    parameters = EXPERTS * (inputs * HIDDEN[0] + HIDDEN[0] * HIDDEN[1])
    sent = 2 * (devices - 1) / devices * parameters * FLOAT_BYTES
    link = hardware.link_within_node if devices <= PER_NODE else hardware.link_between_nodes
    return {"parameters": parameters, "sent_mb_per_device_and_step": sent / 1e6, "ms": 1e3 * sent / link}


def _copies_sent(kind: str, devices: int) -> float:
    """How often a row's pooled vector of a table crosses a link, forward.

    Where a table lies whole, or cut by columns, it goes from there to the row's device. Where its rows lie on several,
    each has a part of every sum, and all parts but one travel.
    """
    nodes, within = max(devices // PER_NODE, 1), min(devices, PER_NODE)
    return {
        ShardingType.ROW_WISE.value: devices - 1.0,
        ShardingType.TABLE_ROW_WISE.value: within - 1.0 + (nodes - 1) / nodes,
        ShardingType.DATA_PARALLEL.value: 0.0,
    }.get(kind, (devices - 1) / devices)


def table(result: Mapping[str, Any]) -> str:
    """Two tables, of the planner's estimates and of arithmetic, and how each plan cuts the made tables."""
    fitting = [plan for plan in result["plans"] if plan["fits"]]
    estimates = [[*_about(plan), *(_estimates(plan) if plan["fits"] else ["does not fit"])] for plan in result["plans"]]
    columns = ["devices", "dim", "choice", "GB, fullest", "lookup ms", "update ms", "exchange ms", "step ms", "h, 1e10"]
    sums = ["devices", "dim", "choice", "B sent a row", "MB a step", "TB, 1e10", "dense MB", "dense ms", "h with dense"]
    return "\n\n".join(
        [
            "the planner's estimates\n" + _aligned([columns, *estimates]),
            "arithmetic\n" + _aligned([sums, *([*_about(plan), *_arithmetic(plan)] for plan in fitting)]),
            "\n".join(f"{', '.join(_about(plan))}: {_cuts(plan['sharding'])}" for plan in fitting),
        ]
    )


def _about(plan: Mapping[str, Any]) -> list[str]:
    return [str(plan["devices"]), str(plan["dim"]), plan["choice"]]


def _estimates(plan: Mapping[str, Any]) -> list[str]:
    p = plan["planner"]
    exchange = p["forward_exchange_ms"] + p["backward_exchange_ms"]
    times = (p["lookup_ms"], p["update_ms"], exchange, p["step_ms"], p["hours_for_1e10_rows"])
    return [f"{p['fullest_device_gb']:.1f}", *(f"{value:.3f}" for value in times)]


def _arithmetic(plan: Mapping[str, Any]) -> list[str]:
    t, d = plan["traffic"], plan["dense"]
    sent = (t["sent_bytes_per_row"], t["sent_mb_per_device_and_step"], t["sent_tb_for_1e10_rows"])
    dense = (d["sent_mb_per_device_and_step"], d["ms"], d["hours_for_1e10_rows_with_it"])
    return [f"{sent[0]:.0f}", *(f"{value:.1f}" for value in (*sent[1:], dense[0])), *(f"{v:.3f}" for v in dense[1:])]


def _cuts(sharding: Mapping[str, Sequence[Any]]) -> str:
    """Tables that are cut in one way, together: `table_wise: user, context (20)`."""
    ways: dict[str, Counter[str]] = defaultdict(Counter)
    for name, (kind, shards) in sharding.items():
        ways[kind if shards == 1 else f"{kind} in {shards}"]["context" if name.startswith("context") else name] += 1
    named = {way: [f"{n} ({c})" if c > 1 else n for n, c in names.items()] for way, names in ways.items()}
    return "; ".join(f"{way}: {', '.join(names)}" for way, names in named.items())


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[n]) for row in rows if n < len(row)) for n in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)
