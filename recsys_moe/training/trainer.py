"""The model under training, its optimizers, and one step at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from recsys_moe.batch import Batch, Hiding
from recsys_moe.checkpoint import Ranker
from recsys_moe.config import ModelConfig, TrainingConfig
from recsys_moe.embeddings import PlainEmbeddings, TorchrecEmbeddings
from recsys_moe.encoding import Encoder
from recsys_moe.encoding.fitting import sparse_features
from recsys_moe.model import RankingModel
from recsys_moe.routing import RoutingTally
from recsys_moe.training.objective import Objective, Seen, TrainedModel, over_processes
from recsys_moe.training.pipelining import InTurn, Overlapped
from recsys_moe.training.precision import compute_in, number_type
from recsys_moe.training.records import Means
from recsys_moe.training.schedule import rate_share
from recsys_moe.training.sharding import Tables, shard
from recsys_moe.training.trouble import memory_errors_explained
from recsys_moe.training.warm_start import move_towards, take_over

log = logging.getLogger(__name__)


class Trainer:
    """The sharded model, its two optimizers and where training stands.

    Attributes:
        step: how many steps were made.
        grad_norm: of the last step's dense gradients, before they were clipped.
    """

    def __init__(
        self, config: ModelConfig, training: TrainingConfig, encoder: Encoder, device: torch.device, steps: int
    ) -> None:
        self.config, self.training, self.encoder, self.device = config, training, encoder, device
        self.steps, self.step = steps, 0
        self.grad_norm = torch.zeros(())
        self._hiding = Hiding.of(config, training.hide_ids, training.hide_segments)
        torch.manual_seed(training.seed)
        multivalued = [n for n, f in enumerate(sparse_features(config)) if f.kind == "multivalued"]
        embeddings = TorchrecEmbeddings(encoder.vocab_sizes, config.embedding_dim, multivalued)
        self._jagged = embeddings.jagged
        self.model = self._build(embeddings)
        self.model.towers.start_at(config.tasks, encoder.label_means)
        compute_in(number_type(training, device), self.model, device)
        self.objective = Objective(self.model, training, device)
        self._sharded = shard(TrainedModel(self.model, self.objective), embeddings, training, device)
        self._fused = self._sharded.fused_optimizer
        self.tables = Tables(embeddings, self._fused, device)
        self.tables.draw(training.seed)
        self._dense = [p for name, p in self.model.named_parameters() if not name.startswith("embeddings.")]
        groups: list[dict[str, Any]] = [
            {"params": self._dense},
            {"params": list(self.objective.weights.parameters()), "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups,
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self._way = (Overlapped if device.type == "cuda" else InTurn)(self._sharded, _Update(self), device)

    def start_from(self, start: Ranker) -> None:
        """Begin with the weights of a fitted model. See `warm_start.take_over`."""
        take_over(start, self.encoder, self.model, self.tables)

    def keep_of(self, start: Ranker, share: float) -> None:
        """Make `start` a share of all weights. See `warm_start.move_towards`."""
        self._way.pause()
        move_towards(start, share, self.encoder, self.model, self.tables)

    def settle_dispatch(self, known: str | None = None) -> str:
        """Choose how routed experts are computed; of several processes the first one decides.

        Args:
            known: what a training that goes on has settled on.
        """
        experts, gates = self.model.experts, self.model.gates
        if known is None:
            rows = -(-self.training.batch_size // dist.get_world_size())
            ways = ("dense", "sparse")
            first = torch.tensor([ways.index(experts.settle_dispatch(rows, gates.top_k, gates.num_choices))])
            first = first.to(self.device)
            dist.broadcast(first, 0)
            known = ways[int(first)]
        experts.dispatch = known
        log.info("routed experts are computed in the %s way", known)
        return known

    def train(self, batches: Iterator[Batch], epoch: int) -> Iterator[Seen]:
        """Train on this process's batches; after each step, with the model as it then is, what was seen."""
        hidden = (self._jagged(self._hiding(batch, self.training.seed, epoch)) for batch in batches)
        while True:
            self._sharded.train()
            self._prepare()
            try:
                with memory_errors_explained(self.training.batch_size, self.device):
                    seen = self._way.progress(hidden)
            except StopIteration:
                return
            self.model.gates.balance(seen.chosen)
            for part in (self.model.gates, self.model.experts):
                part.decay_segments(self.training.segment_decay)
            self.step += 1
            yield seen

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Mean losses and the use of experts on batches, nothing hidden and nothing learned."""
        self._way.pause()
        self._sharded.eval()
        means, tally = Means(self.config.tasks), RoutingTally(self.model)
        for batch in batches:
            batch = self._jagged(batch).to(self.device)
            logits, routing = self.model(batch)
            sums = self.objective.loss_sums(self.model.corrected(logits), batch, batch.weight)
            means.add(*over_processes(torch.stack(sums)).tolist())
            tally.add(routing, batch.segment)
        tally.add_up_processes()
        return means.record() | {f"experts/{name}": value for name, value in tally.report().summary().items()}

    def plain_model(self) -> RankingModel:
        """The weights in the serving body, on the CPU."""
        plain = self._build(PlainEmbeddings(self.encoder.vocab_sizes, self.config.embedding_dim))
        state = {k: v for k, v in self.model.state_dict().items() if not k.startswith("embeddings.")}
        state["embeddings.weight"] = self.tables.whole_weights()
        plain.load_state_dict(state)
        return plain.cpu().eval().requires_grad_(False)

    def dense_state(self) -> dict[str, Tensor]:
        """All tensors that go on from step to step, but the tables; the same in every process."""
        of_optimizer = self._optimizer.state_dict()["state"].items()
        return {
            **{f"model.{k}": v for k, v in self.model.state_dict().items() if not k.startswith("embeddings.")},
            **{f"weights.{k}": v for k, v in self.objective.weights.state_dict().items()},
            **{f"optimizer.{number}.{k}": v for number, state in of_optimizer for k, v in state.items()},
        }

    def load_dense_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `dense_state` gave. Learning rates follow from the step, and are not part of it."""
        self.model.load_state_dict(_below("model.", state), strict=False)
        self.objective.weights.load_state_dict(_below("weights.", state))
        by_parameter: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer.", state).items():
            number, _, key = name.partition(".")
            by_parameter.setdefault(int(number), {})[key] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": by_parameter, "param_groups": groups})

    def table_state(self) -> dict[str, Tensor]:
        """This process's tables and their sums of squared gradients, the very memory that is trained."""
        parts = {"weight": self.tables.weights, "sum": self.tables.sums}
        return {f"{part}.{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}

    def update(self) -> None:
        """Move the dense weights by their gradients."""
        gradients = [p.grad for p in self._dense if p.grad is not None]
        self.grad_norm = nn.utils.get_total_norm(gradients)
        if self.device.type != "cpu" or self.grad_norm > self.training.clip_norm:  # to look at it would stop a GPU
            nn.utils.clip_grads_with_norm_(self._dense, self.training.clip_norm, self.grad_norm)
        self._optimizer.step()

    def zero_grad(self) -> None:
        """Forget the dense gradients."""
        self._optimizer.zero_grad()

    def _build(self, embeddings: nn.Module) -> RankingModel:
        encoder = self.encoder
        model = RankingModel(self.config, encoder.vocab_sizes, encoder.num_dense, encoder.num_segments, embeddings)
        for name, module in model.named_children():
            if name != "embeddings":
                module.to(self.device)
        return model

    def _prepare(self) -> None:
        """Set what the next step depends on: it follows from its number alone, so that a resumed one is the same."""
        training, rank = self.training, dist.get_rank()
        share = rate_share(self.step, self.steps, training.warm_up_steps, training.learning_rate_decay)
        for group in self._optimizer.param_groups:
            group["lr"] = share * training.learning_rate
        for group in self._fused.param_groups:
            group["lr"] = share * training.embedding_learning_rate
        self._fused.step()  # the tables learn inside backward; this only hands the rate on
        self.model.gates.all_chosen = self.step < round(self.config.gates.dense_warm_up * self.steps)
        self.objective.step = self.step + 1  # as it is counted in records
        if self.config.gates.dropout:
            key = np.random.SeedSequence((training.seed, self.step, rank)).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(key))


class _Update:
    """What torchrec's pipelines see of the trainer: an optimizer."""

    def __init__(self, trainer: Trainer) -> None:
        self.step, self.zero_grad = trainer.update, trainer.zero_grad


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
