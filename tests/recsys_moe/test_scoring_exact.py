"""The factorised scorer against the model's plain forward pass, over random models of every preset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.config import ModelConfig
from recsys_moe.encoding import Encoder
from recsys_moe.model import RankingModel, not_of_items
from recsys_moe.presets import PRESETS, with_preset
from recsys_moe.scoring import Blend, ForAll, Precision, TopN, block, score_top_n, steps, top_n
from recsys_moe.scoring.block import Block
from tests.recsys_moe.conftest import model_config, raw_rows

USERS = raw_rows(12, seed=5).select(["user_id", "country", "hour", "country_rate"])
ITEMS = raw_rows(9, seed=6).select(["item_id", "tags", "price"])
PAIRS = torch.cartesian_prod(torch.arange(USERS.num_rows), torch.arange(ITEMS.num_rows))
WEIGHTS = (1.0, 3.0)
BLEND = Blend({"click": 1.0, "buy": 3.0})
CLOSE = 1e-5
"""Routed experts whose chances differ by less may be chosen the other way round in fp32."""
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """What a YAML could say under `model:`."""
    preset = draw(st.sampled_from(sorted(PRESETS)))
    routed = PRESETS[preset]["experts"]["routed"]
    experts: dict[str, Any] = {"hidden": draw(st.sampled_from([(16,), (16, 8), (12, 9), (16, 24, 8)]))}
    experts |= {
        "dispatch": "sparse",
        "embedding_sets": 1 if preset == "shared_bottom" else draw(st.sampled_from([1, 2])),
    }
    gates: dict[str, Any] = {"input": draw(st.sampled_from(["all", "user"]))}
    if draw(st.booleans()):
        experts |= {"top_k": draw(st.sampled_from([1, 2, 3, 6, 8]))} if routed else {}
        gates |= {"score": draw(st.sampled_from(["softmax", "sigmoid"])), "renormalise": draw(st.booleans())}
        gates |= {"shared_gate": draw(st.booleans()), "routing": draw(st.sampled_from(["task", "example"]))}
        gates |= {"balance": draw(st.sampled_from(["union", "task"]))}
    return {"preset": preset, "experts": experts, "gates": gates, "towers": draw(st.sampled_from([(), (8,), (8, 4)]))}


def random_ranker(base: Encoder, shape: dict[str, Any], with_segments: bool, seed: int) -> Ranker:
    """Weights that are random in the places that start at zero, too."""
    written = with_preset(shape)
    parts = {name: written[name] for name in ("experts", "gates", "towers") if name in written}
    segments = model_config().segments if with_segments else None
    config = ModelConfig.model_validate({**model_config(segments=segments).model_dump(), **parts})
    names = base.segment_names if with_segments else base.segment_names[:1]
    encoder = Encoder(config, base.vocabularies, base.scalers, names)
    torch.manual_seed(seed)
    model = empty_model(encoder).eval().requires_grad_(False)
    _leave_zero(model)
    return Ranker(encoder, model)


def _leave_zero(model: RankingModel) -> None:
    """Draw what starts at zero, but for what pads and for the unknown segment."""
    bank, hidden, rank = model.experts, model.config.experts.hidden, model.config.experts.segment_rank
    for group in (bank.always, bank.routed):
        for weight in list(group.weights)[:1]:
            weight[:, model.input_dim, : hidden[0]].normal_(std=0.3)
        for bias, width in zip(group.biases, hidden[1:], strict=bool(len(group.biases))):
            bias[..., :width].normal_(std=0.3)
    for up, width in zip(bank.segments.up if bank.segments else (), hidden, strict=False):
        up[:, :rank, :width].normal_(std=0.3)
    for drawn in (*model.towers.biases, model.gates.offset, model.gates.segment_embedding):
        drawn.normal_(std=0.3)
    model.gates.segment_embedding[0] = 0
    model.gates.bias.normal_(std=0.05)
    model.embeddings.weight.normal_(std=0.5)  # type: ignore[operator, union-attr]


def sides(ranker: Ranker) -> tuple[Tensor, Tensor]:
    """x [P, D] and segment [P] of all pairs, as the plain forward pass reads them."""
    user, item = USERS.take(PAIRS[:, 0].numpy()), ITEMS.take(PAIRS[:, 1].numpy())
    joined = pa.table({name: table[name] for table in (user, item) for name in table.column_names})
    batch = ranker.encoder.to_batch(ranker.encoder.encode(joined))
    return ranker.model.inputs(batch), batch.segment


def factorised(ranker: Ranker, precision: Precision = "fp32") -> Tensor:
    scorer = Block(ranker, ITEMS, USERS.num_rows, precision)
    scorer.set_users(USERS)
    return scorer.logits(PAIRS)


def clear(model: RankingModel, x: Tensor, segment: Tensor) -> Tensor:
    """[P] which pairs have no gate whose last chosen and next expert are nearly equal."""
    gates = model.gates
    routed = gates.logits(x, segment)[..., gates.layout.routed_slice]
    if gates.top_k >= gates.layout.routed:
        return torch.ones(len(x), dtype=torch.bool)
    score = routed.softmax(-1) if gates.gating.score == "softmax" else routed.sigmoid()
    score = gates.bias + (score if gates.num_choices == gates.num_gates else score.mean(1, keepdim=True))
    ranked = score.sort(-1, descending=True).values
    return ((ranked[..., gates.top_k - 1] - ranked[..., gates.top_k]) > CLOSE).all(1)


@quick
@given(shape=shapes(), with_segments=st.booleans(), seed=st.integers(0, 2**31))
def test_every_pair_has_the_logits_of_the_forward_pass(
    encoder: Encoder, shape: dict[str, Any], with_segments: bool, seed: int
) -> None:
    ranker = random_ranker(encoder, shape, with_segments, seed)
    x, segment = sides(ranker)
    plain, _ = ranker.model.forward_inputs(x, segment)
    sure = clear(ranker.model, x, segment)
    assert (factorised(ranker) - plain)[sure].abs().max() < 1e-5
    ranker.model.double()
    x, segment = sides(ranker)
    plain, _ = ranker.model.forward_inputs(x.double(), segment)
    assert (factorised(ranker) - plain).abs().max() < 1e-10


@quick
@given(shape=shapes(), with_segments=st.booleans(), seed=st.integers(0, 2**31), data=st.data())
def test_lists_are_those_of_all_predictions_sorted(
    encoder: Encoder, shape: dict[str, Any], with_segments: bool, seed: int, data: st.DataObject
) -> None:
    ranker = random_ranker(encoder, shape, with_segments, seed)
    left_out = data.draw(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 8)), unique=True))
    user, item = np.array(sorted(left_out), np.int64).reshape(-1, 2).T
    shown = np.tile(np.arange(ITEMS.num_rows), (USERS.num_rows, 1))
    shown[user, item] = -1

    def unseen(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        inside = (user >= start) & (user < stop)
        return user[inside] - start, item[inside]

    listed = list(score_top_n(ranker, USERS, ITEMS, shown, BLEND, 4, users_at_once=5))
    everyone = list(score_top_n(ranker, USERS, ITEMS, ForAll(np.arange(9), unseen), BLEND, 4, users_at_once=7))
    x, segment = sides(ranker)
    plain = ranker.model.probabilities(ranker.model.forward_inputs(x, segment)[0]) @ torch.tensor(WEIGHTS)
    grid = np.where(shown >= 0, plain.view(shown.shape).numpy(), -np.inf)
    best = -np.sort(-grid, axis=1)[:, :4]
    if not clear(ranker.model, x, segment).all():
        return
    for found in (listed, everyone):
        assert whole(found, "score") == pytest.approx(best[np.isfinite(best)], abs=1e-6)
        assert grid[whole(found, "user"), whole(found, "item")] == pytest.approx(whole(found, "score"), abs=1e-6)


def whole(blocks: list[TopN], name: str) -> np.ndarray:
    return np.concatenate([getattr(found, name) for found in blocks])


@pytest.mark.parametrize("segments", [True, False])
def test_items_that_do_not_fit_are_made_again_and_tiles_are_small(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, segments: bool
) -> None:
    ranker = random_ranker(encoder, {"preset": "segmented", "experts": {"hidden": (16, 8)}}, segments, seed=1)
    wanted = list(score_top_n(ranker, USERS, ITEMS, ForAll(np.arange(9)), BLEND, 5))
    monkeypatch.setattr(block, "TABLE_BYTES", 4 * 19 * 16 * 4)
    monkeypatch.setattr(top_n, "PAIRS_AT_ONCE", 30)
    assert Block(ranker, ITEMS, 5, "fp32").items_at_once < ITEMS.num_rows
    found = list(score_top_n(ranker, USERS, ITEMS, ForAll(np.arange(9)), BLEND, 5, users_at_once=5))
    assert whole(found, "score") == pytest.approx(whole(wanted, "score"), abs=1e-6)
    assert whole(found, "rank").tolist() == whole(wanted, "rank").tolist()


@pytest.mark.parametrize("fit", [True, False])
def test_users_without_candidates_have_no_rows(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, fit: bool) -> None:
    ranker = random_ranker(encoder, {"preset": "segmented", "experts": {"hidden": (16, 8)}}, True, seed=1)
    monkeypatch.setattr(block, "TABLE_BYTES", 2**29 if fit else 1)
    lists = np.full((USERS.num_rows, 3), -1)
    assert [len(found.user) for found in score_top_n(ranker, USERS, ITEMS, lists, BLEND, 5, users_at_once=5)] == [0] * 3
    lists[7] = [4, -1, 2]
    found = list(score_top_n(ranker, USERS, ITEMS, lists, BLEND, 5, users_at_once=5))
    assert (whole(found, "user").tolist(), sorted(whole(found, "item").tolist())) == ([7, 7], [2, 4])


def test_a_candidate_that_is_no_item_is_not_read_beside_the_table(encoder: Encoder) -> None:
    ranker = random_ranker(encoder, {"preset": "mixtral"}, False, seed=1)
    with pytest.raises(AssertionError, match="a candidate is no item"):
        list(score_top_n(ranker, USERS, ITEMS, ForAll(np.arange(ITEMS.num_rows + 1)), BLEND, 5))


def test_gates_of_the_user_alone_choose_the_same_experts_for_all_items(encoder: Encoder) -> None:
    ranker = random_ranker(encoder, {"preset": "mixtral", "gates": {"input": "user"}}, True, seed=2)
    x, segment = sides(ranker)
    _, routing = ranker.model.forward_inputs(x, segment)
    weights = routing.over_experts(8).view(USERS.num_rows, ITEMS.num_rows, -1)
    assert torch.allclose(weights, weights[:, :1].expand_as(weights))
    assert weights[:, 0].std(0).max() > 0.01


def test_gates_of_the_user_alone_stay_so_as_they_learn(encoder: Encoder) -> None:
    ranker = random_ranker(encoder, {"preset": "mixtral", "gates": {"input": "user"}}, True, seed=3)
    model = ranker.model.train().requires_grad_(True)
    x, segment = sides(ranker)
    logits, _ = model.forward_inputs(x, segment)
    torch.autograd.backward(logits.square().sum())
    gradient = model.gates.weight.grad
    assert gradient is not None
    items = ~not_of_items(model.config)
    assert not gradient[items].any()
    assert not model.gates.weight[items].any()
    assert gradient[~items].any()


def test_bf16_is_near(encoder: Encoder) -> None:
    ranker = random_ranker(encoder, {"preset": "segmented", "experts": {"hidden": (16, 8)}}, True, seed=4)
    exact, rounded = factorised(ranker), factorised(ranker, "bf16")
    assert 0 < (exact - rounded).abs().max() < 0.1 * exact.std()


def test_rounded_activations_are_those_of_torch_for_every_number_and_for_none() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    expected = every.float().relu().to(every.dtype)
    assert torch.equal(steps.relu(every.clone()).nan_to_num(-1.0), expected.nan_to_num(-1.0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_no_number_is_seen_in_the_scores(encoder: Encoder, precision: Precision) -> None:
    ranker = random_ranker(encoder, {"preset": "mixtral", "towers": (8,)}, False, seed=6)
    for weight in ranker.model.experts.routed.weights:
        weight[:] = torch.nan
    (found,) = score_top_n(ranker, USERS, ITEMS, ForAll(np.arange(9)), BLEND, 9, precision=precision)
    assert np.isnan(found.score).all()


def test_what_a_block_holds_is_where_its_model_is(encoder: Encoder) -> None:
    """Even before it has users: on a GPU nothing could be added to what is elsewhere. `meta` stands for one."""
    ranker = random_ranker(encoder, {"preset": "mixtral"}, True, seed=1)
    ranker.model.to("meta")
    assert Block(ranker, ITEMS.slice(0, 0), 5, "fp32").segment.device.type == "meta"


def test_without_a_folder_to_keep_it_in_compiled_code_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from numba.core.caching import CacheImpl

    from recsys_moe.scoring import compiled

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    assert compiled._compiled(lambda x: x + 1)(1) == 2


def test_compiled_steps_are_those_of_torch(encoder: Encoder) -> None:
    pytest.importorskip("numba")
    from recsys_moe.scoring import compiled

    gates = random_ranker(encoder, {"preset": "mixtral"}, False, seed=5).model.gates
    logits, pairs = torch.randn(40, gates.num_gates, 8), torch.randint(0, 30, (40, 2))
    ours, plain = compiled.routing(gates, logits), steps.routing(gates, logits)
    assert torch.equal(ours.experts, plain.experts)
    ordered, expected = torch.zeros(2, 200, 2, dtype=torch.int64)
    counts, place = compiled.plan(plain.experts, pairs, 8, ordered)
    wanted, places = steps.plan(plain.experts, pairs, 8, expected)
    assert counts == wanted
    assert torch.equal(place, places)
    assert torch.equal(ordered, expected)
    table, bias = torch.randn(30, 16), torch.randn(16)
    assert torch.allclose(compiled.first_layer(table, pairs), steps.first_layer(table, pairs))
    assert torch.allclose(compiled.finish(table.clone(), bias), steps.finish(table.clone(), bias))
    outputs = torch.randn(sum(counts), 16)
    mixed = (compiled.mix(outputs, place, plain.weights), steps.mix(outputs, place, plain.weights))
    assert torch.allclose(*mixed, atol=1e-6)


@quick
@given(
    score=st.lists(st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.0, np.nan]), min_size=6, max_size=6), max_size=4),
    count=st.integers(0, 8),
)
def test_the_best_come_first_and_of_equals_the_left_one(score: list[list[float]], count: int) -> None:
    pytest.importorskip("numba")
    from recsys_moe.scoring import compiled

    rows = torch.tensor(score).view(-1, 6)
    expected = [sorted(range(6), key=lambda column: -np.nan_to_num(row[column], nan=9.0))[:count] for row in score]
    assert compiled.best(rows, count).tolist() == steps.best(rows, count).tolist() == expected
