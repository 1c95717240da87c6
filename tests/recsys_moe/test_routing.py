from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import Experts
from recsys_moe.encoding import Encoder, Loader
from recsys_moe.gates import Routing
from recsys_moe.routing import RoutingReport, RoutingTally, routing_report
from tests.recsys_moe.conftest import model_config, raw_rows

SHARED, OWN = 0, 2
"""Slots of the small model: shared 0, shared 1, the task's own, two chosen, the segment's."""


def report(ranker: Ranker, segment: Tensor, chosen: Tensor, *slots: int) -> RoutingReport:
    """Of made-up rows: segments [B], choices [B, T, 2], and for each task the slot that has all the weight."""
    gates = ranker.model.gates
    chosen = chosen.expand(-1, 2, -1)
    weights = torch.zeros(len(segment), 2, 6)
    for task, slot in enumerate(slots or (SHARED, SHARED)):
        weights[:, task, slot] = 1.0
    tally = RoutingTally(ranker.model)
    for part in range(2):  # in two batches
        rows = slice(part, None, 2)
        tally.add(Routing(gates._slots(chosen[rows]), weights[rows], chosen[rows], torch.zeros(())), segment[rows])
    return tally.report()


def test_experts_that_are_segments_tell_all_of_them(ranker: Ranker) -> None:
    segment = torch.arange(40) % 2 + 1
    found = report(ranker, segment, torch.tensor([[[0, 1]], [[2, 3]]])[segment - 1])
    assert found.segment_entropy == pytest.approx(math.log(2))
    assert found.mutual_information.tolist() == pytest.approx([math.log(2)] * 2)
    assert found.segment_information.tolist() == pytest.approx([1.0, 1.0])
    assert found.entropy == pytest.approx(1.0)
    assert found.dead == ()
    assert found.load_by_segment[1].tolist() == [[0.5, 0.5, 0.0, 0.0]] * 2
    assert found.load_by_segment[3].isnan().all()
    assert found.rows.tolist() == [0, 20, 20, 0]


def test_routing_that_is_the_same_everywhere_tells_nothing_of_segments(ranker: Ranker) -> None:
    found = report(ranker, torch.arange(40) % 4, torch.tensor([[[1, 2]]]).expand(40, -1, -1))
    assert found.mutual_information.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert found.busiest == ("routed 1", 0.5)
    assert found.idlest == ("routed 0", 0.0)
    assert found.dead == ("routed 0", "routed 3")
    assert found.entropy == pytest.approx(0.5)


def test_with_one_segment_there_is_nothing_to_tell(ranker: Ranker) -> None:
    found = report(ranker, torch.ones(10, dtype=torch.int64), torch.tensor([[[1, 2]]]).expand(10, -1, -1))
    assert found.segment_information.isnan().all()
    assert found.summary().keys() == {
        "load_entropy",
        "dead",
        "busiest_share",
        "idlest_share",
        "gate_distance/click-buy",
    }


@pytest.mark.parametrize(("slots", "distance"), [((SHARED, SHARED), 0.0), ((SHARED, OWN), 1.0), ((OWN, OWN), 1.0)])
def test_gates_are_as_far_apart_as_their_weights(ranker: Ranker, slots: tuple[int, int], distance: float) -> None:
    """The own experts of two tasks are different ones."""
    found = report(ranker, torch.ones(4, dtype=torch.int64), torch.tensor([[[1, 2]]]).expand(4, -1, -1), *slots)
    assert found.gate_distance.tolist() == [[0.0, distance], [distance, 0.0]]


def test_a_report_is_of_what_the_model_does(ranker: Ranker, encoder: Encoder) -> None:
    encoded = encoder.encode(raw_rows(500, seed=5))
    found = routing_report(ranker.model, Loader(encoder, encoded, 200).batches())
    _, routing = ranker.model(encoder.to_batch(encoded))
    weights = routing.over_experts(9).double()
    assert torch.allclose(found.weight, weights.mean(0))
    distance = (weights[:, 0] - weights[:, 1]).abs().sum(-1).mean() / 2
    assert float(found.gate_distance[0, 1]) == pytest.approx(float(distance))
    pairs = torch.zeros(500, 4).scatter(1, routing.chosen.flatten(1), 1.0)
    assert torch.allclose(found.union_load, (pairs.sum(0) / pairs.sum()).double())


@pytest.mark.parametrize("shared", [1, 3])
def test_without_routed_experts_weights_tell(shared: int) -> None:
    rows = raw_rows(300)
    experts = Experts(shared=shared, per_segment=0, routed=0, hidden=(8,))
    encoder = Encoder.fit(model_config(experts=experts), rows.to_batches())
    model = empty_model(encoder)
    with torch.no_grad():
        model.gates.segment_embedding[1:].normal_(0, 3)
    found = routing_report(model, Loader(encoder, encoder.encode(rows), 100).batches())
    assert (found.busiest, found.idlest, found.dead) == (None, None, ())
    assert "load_entropy" not in found.summary()
    information = found.segment_information
    assert (information > 0.01).all() if shared > 1 else torch.allclose(information, torch.zeros(2).double())
