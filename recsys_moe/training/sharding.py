"""What torchrec does: processes, tables cut among them, and the optimizer inside their backward pass.

Every table lies whole in one process (table-wise). What comes out does not depend on how many there are: tables start
from generators of their own, and are saved under their own names.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from recsys_moe.config import TrainingConfig
from recsys_moe.embeddings import INIT_RANGE, TorchrecEmbeddings
from recsys_moe.errors import UserError
from recsys_moe.training.row_wise_adagrad import use_own_kernel

DRAWN_ROWS = 1 << 18
"""Rows of a table that are drawn at once, on the CPU."""


def device_of(training: TrainingConfig) -> torch.device:
    """The device that this process trains on.

    Raises:
        UserError: CUDA is asked for and is not there.
    """
    has_cuda = torch.cuda.is_available()
    if training.device == "cuda" and not has_cuda:
        raise UserError("training.device: this machine has no CUDA device that torch can use; set cpu or auto")
    if training.device == "cpu" or not has_cuda:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The caller's process group, torchrun's, or one of this process alone, met through a file: no port is taken."""
    if dist.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with tempfile.TemporaryDirectory() as folder:
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, init_method=(Path(folder) / "store").as_uri(), rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what torch, torchrec and fbgemm say about their own use of each other."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # one line at the first forward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def shard(model: nn.Module, tables: TorchrecEmbeddings, training: TrainingConfig, device: torch.device) -> Any:
    """Put the tables under DistributedModelParallel, also in one process: only there is the kernel fused.

    Dense parameters are averaged over processes as they get gradients; one process has no such wrapper.

    Returns: the wrapped model, whose `fused_optimizer` works inside `backward`.

    Raises:
        UserError: the tables do not fit into the processes' memory.
    """
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import KernelConfig, ParameterConstraints, TopologyFactory
    from torchrec.distributed.types import ShardingType
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    if device.type == "cpu":
        use_own_kernel()
    rate = {"lr": training.embedding_learning_rate, "eps": 1e-8}
    apply_optimizer_in_backward(RowWiseAdagrad, tables.parameters(), rate)
    sharders = [EmbeddingBagCollectionSharder()]
    # Tables are read and written here, beside torchrec: that rules out kernels with a cache of their own.
    kernels = [EmbeddingComputeKernel.FUSED.value, EmbeddingComputeKernel.FUSED_UVM.value]
    whole_tables = ParameterConstraints(sharding_types=[ShardingType.TABLE_WISE.value], compute_kernels=kernels)
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            _trainer_config(device), kernel_config=KernelConfig(compute_device=device.type)
        ),
        batch_size=-(-training.batch_size // dist.get_world_size()),
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        constraints=dict.fromkeys(tables.keys, whole_tables),
        debug=False,
    )
    with _lack_of_memory_explained(tables):
        plan = planner.collective_plan(model, sharders, dist.group.WORLD)
    return DistributedModelParallel(
        model, device=device, plan=plan, sharders=sharders, init_data_parallel=dist.get_world_size() > 1
    )


@contextmanager
def _lack_of_memory_explained(tables: TorchrecEmbeddings) -> Iterator[None]:
    """Turn torchrec's "no plan" into what to do about it. Nothing else than memory can keep a whole table out."""
    from torchrec.distributed.planner.types import PlannerError

    try:
        yield
    except PlannerError as error:
        gibibytes = sum(table.numel() * table.element_size() for table in tables.parameters()) / 2**30
        raise UserError(
            f"training: embedding tables of {gibibytes:.1f} GiB do not fit into the memory of {dist.get_world_size()} "
            "process(es), each table whole in one; raise model.min_count, set hash_buckets, lower model.embedding_dim, "
            "or train on more machines"
        ) from error


def _trainer_config(device: torch.device) -> Any:
    """What torchrec's planner is told of the processes and their devices."""
    from torchrec.distributed.planner.types import TrainerConfig

    world = dist.get_world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    of_machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return TrainerConfig(
        world_size=world, local_world_size=local, hbm_cap_bytes=memory, ddr_cap_bytes=of_machine // local
    )


class Tables:
    """The tables' weights and sums of squared gradients (of row-wise Adagrad), as far as they lie in this process.

    Attributes:
        weights: [rows, dim] by key; sums: [rows] by key. Both are the very memory that is trained.
    """

    def __init__(self, embeddings: TorchrecEmbeddings, fused: Any, device: torch.device) -> None:
        self.keys, self._dim, self._device = embeddings.keys, embeddings.dim, device
        self._sizes = {key: tuple(t.size()) for key, t in zip(self.keys, embeddings.state_dict().values(), strict=True)}
        self.weights = _here(dict(zip(self.keys, embeddings.state_dict().values(), strict=True)))
        states = fused.state_dict()["state"]
        self.sums = _here({key: states[_name(key)][f"{key}.momentum1"] for key in self.weights})

    @torch.no_grad()
    def draw(self, seed: int, epoch: int = 0) -> None:
        """Start every table uniform in ±`INIT_RANGE`, from a generator of its own, as if it had never learned."""
        for number, key in enumerate(self.keys):
            if key in self.weights:
                own = int(np.random.SeedSequence((seed, number, epoch)).generate_state(1, np.uint64)[0])
                generator = torch.Generator().manual_seed(own)
                for rows in torch.split(self.weights[key], DRAWN_ROWS):
                    rows.copy_(torch.empty(rows.shape).uniform_(-INIT_RANGE, INIT_RANGE, generator=generator))
                self.sums[key].zero_()

    def whole_weights(self) -> Tensor:
        """[rows of all tables, dim] in every process, on the CPU."""
        tables = [self._everywhere(self.weights.get(key), self._sizes[key]) for key in self.keys]
        return torch.cat([torch.zeros(0, self._dim), *tables])

    def whole_sums(self) -> Tensor:
        """[rows of all tables] in every process, on the CPU."""
        sums = [self._everywhere(self.sums.get(key), self._sizes[key][:1]) for key in self.keys]
        return torch.cat([torch.zeros(0), *sums])

    def _everywhere(self, here: Tensor | None, size: tuple[int, ...]) -> Tensor:
        if dist.get_world_size() == 1:
            assert here is not None
            return here.detach().cpu()
        whole = torch.zeros(size, device=self._device) if here is None else here.detach().clone()
        dist.all_reduce(whole)
        return whole.cpu()


def _name(key: str) -> str:
    """What torchrec's optimizer calls a table, below the model that was wrapped."""
    return f"model.embeddings.collection.embedding_bags.{key}.weight"


def _here(sharded: dict[str, Any]) -> dict[str, Tensor]:
    """The tables of this process: each is one shard, the whole table."""
    local = {key: tensor.local_shards() for key, tensor in sharded.items()}
    assert all(shard.tensor.shape == sharded[key].size() for key, shards in local.items() for shard in shards)
    return {key: shards[0].tensor for key, shards in local.items() if shards}
