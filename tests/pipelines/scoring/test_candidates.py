"""Candidates of a small log: each source against plain Python over the same rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines import sql
from pipelines.catalog import model_config
from pipelines.config import Recommender
from pipelines.entities import entity_rows, moments
from pipelines.ingest import ingest
from pipelines.prepare import prepare, sides_of
from pipelines.scoring.candidates import Shared, UserCandidates, co_visited, of_users
from pipelines.scoring.candidates.co_visited import POWER
from pipelines.scoring.candidates.met import HALF_LIVES
from pipelines.scoring.candidates.similar import item_vectors
from pipelines.split import batches_of
from pipelines.tables import Tables
from recsys_moe.checkpoint import Ranker, empty_model
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError
from recsys_moe.scoring import ForAll
from tests.pipelines.conftest import CONFIG, Tiny

DAYS, USERS, ITEMS = 2, 9, 30


@dataclass(frozen=True)
class Row:
    """A row of the log."""

    user: str
    item: str
    day: date
    tab: str
    click: int
    second: int


@dataclass
class Small:
    """Two days of nine users and thirty items, ingested and prepared.

    Attributes:
        log: every row, in order of time.
    """

    tiny: Tiny
    log: list[Row]
    ranker: Ranker
    users: pa.Table
    items: pa.Table

    @property
    def ds(self) -> date:
        return self.tiny.day(DAYS - 1)

    def config(self, candidates: Any, **scoring: Any) -> Recommender:
        return self.tiny(scoring=CONFIG["scoring"] | {"candidates": candidates} | scoring)

    def last(self, days: int) -> list[Row]:
        """The rows of the last days."""
        return [row for row in self.log if row.day > self.ds - timedelta(days=days)]

    def lists(self, candidates: Any, shards: int = 2, **scoring: Any) -> dict[str, dict[str, str]]:
        """The source of each item, by user and item: what all shards give."""
        found = {}
        for users, made in self.made(candidates, shards, **scoring):
            given = made.given()
            if isinstance(given, ForAll):
                block = np.concatenate([np.where(t.valid, t.item, -1) for t in given.tiles(0, len(users), 40)], axis=1)
            else:
                block = given(0, len(users))
            user, place = np.nonzero(block >= 0)
            source = made.sources(user, block[user, place]).to_pylist()
            ids, names = self.items.column("item").to_pylist(), users.column("user").to_pylist()
            found |= {name: {} for name in names}
            for row, (owner, item) in enumerate(zip(user, block[user, place], strict=True)):
                assert ids[item] not in found[names[owner]]
                found[names[owner]][ids[item]] = source[row]
        return found

    def made(
        self, candidates: Any, shards: int, segments: list[str] | None = None, place: str | None = None, **scoring: Any
    ) -> Iterator[tuple[pa.Table, UserCandidates]]:
        config = self.config(candidates, **scoring)
        folder = f"{place or self.tiny.folder}/staging-{random.randrange(2**60)}"
        size = -(-len(self.users) // shards)
        bounds = self.users.column("user").combine_chunks()[::size]
        Shared.make(config, Tables(config.storage), self.ds, self.items, self.ranker, bounds, folder)
        shared = Shared.open(config, folder, self.items)
        for shard in range(len(bounds)):
            users = self.users.slice(shard * size, size)
            names = pa.array(segments[shard * size :][: len(users)]) if segments else None
            yield users, shared.of_shard(shard, users, names or self.ranker.encoder.segment_of(users)[0])


def logged(draw: random.Random, tiny: Tiny, number: int) -> list[str]:
    """Lines of a log; user u8 is never there, and item x0 is in no table of items."""
    lines = []
    for second in range(70):
        item = draw.choice(
            [f"i{min(draw.randrange(60), draw.randrange(60)) % ITEMS:02}", "x0"][: 1 + (second % 9 == 0)]
        )
        where, click = draw.choice(["home", "home", "search"]), draw.randrange(2)
        lines.append(f"u{draw.randrange(USERS - 1)},{item},{tiny.at(number, second)},{where},{click},0")
    return lines


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RECSYS_MOE_STORAGE_ROOT", raising=False)
        tiny, draw, log = Tiny(tmp_path_factory.mktemp("candidates")), random.Random(0), []
        users = "".join(f"u{n},{'old' if n % 2 else 'young'}\n" for n in range(USERS))
        items = "".join(f"i{n:02},{n}.5,{'sport' if n % 2 else 'news'}|t{n % 3},{_born(n)}\n" for n in range(ITEMS))
        tiny.write("users.csv", "user,band\n" + users)
        tiny.write("items.csv", "item,price,tags,born\n" + items)
        config = tiny()
        for number in range(DAYS):
            lines = logged(draw, tiny, number)
            tiny.log(number, lines)
            cells = [line.split(",") for line in lines]
            day = tiny.day(number)
            log += [Row(who, what, day, tab, int(click), int(at)) for who, what, at, tab, click, _ in cells]
            ingest(config, tiny.day(number))
            prepare(config, tiny.day(number))
        yield Small(tiny, log, *parts(config, tiny.day(DAYS - 1)))


def _born(number: int) -> str:
    """Days around the one that is scored for, the 3rd of January; some items have none."""
    return "" if number % 7 == 0 else str(date(2026, 1, 3) + timedelta(days=number % 5 - 3))


def parts(config: Recommender, ds: date) -> tuple[Ranker, pa.Table, pa.Table]:
    tables = Tables(config.storage)
    rows = tables.dataset("examples").to_table()
    torch.manual_seed(1)
    encoder = Encoder.fit(model_config(config, sides_of(config, tables)), batches_of([rows]))
    moment = moments(config, ds)["default"]
    with sql.connect() as connection:
        users = entity_rows(connection, config, tables, moment, "user")
        items = entity_rows(connection, config, tables, moment, "item")
    return Ranker(encoder, empty_model(encoder).eval().requires_grad_(False)), users, items


def most(items: Iterable[str], limit: int) -> list[str]:
    """The most frequent ones, ties by id."""
    counts = Counter(item for item in items if item != "x0")
    return sorted(counts, key=lambda item: (-counts[item], item))[:limit]


def all_of(items: Iterable[str], source: str) -> dict[str, str]:
    return dict.fromkeys(sorted(items), source)


def name(number: int) -> str:
    return f"i{number:02}"


def test_all(small: Small) -> None:
    found = small.lists({"source": "all"})
    assert found == {f"u{n}": {name(i): "all" for i in range(ITEMS)} for n in range(USERS)}


@pytest.mark.parametrize("seen", [True, 1])
def test_what_was_seen_is_left_out(small: Small, seen: bool | int) -> None:
    met = {(row.user, row.item) for row in small.last(DAYS if seen is True else seen)}
    everything = small.lists({"source": "all"}, exclude_seen=seen)
    popular = small.lists({"source": "popular", "limit": 12}, exclude_seen=seen)
    best = most((row.item for row in small.log), 12)
    for user in everything:
        assert list(everything[user]) == [name(i) for i in range(ITEMS) if (user, name(i)) not in met]
        assert sorted(popular[user]) == sorted(item for item in best if (user, item) not in met)
    assert len(everything["u8"]) == ITEMS


@pytest.mark.parametrize("days", [1, 7])
def test_popular_with_everyone(small: Small, days: int) -> None:
    wanted = all_of(most((row.item for row in small.last(days)), 5), "popular")
    assert small.lists({"source": "popular", "limit": 5, "days": days}) == {f"u{n}": wanted for n in range(USERS)}


def test_popular_with_the_segment_filled_up_by_everyone(small: Small) -> None:
    wanted = {"source": "popular", "limit": 28, "days": 1, "by": "segment"}
    rows = small.last(1)
    everyone = most((row.item for row in rows), 28)
    home, search = (most((row.item for row in rows if row.tab == tab), 28) for tab in ("home", "search"))
    assert len(search) < len(everyone)  # or nothing would be filled up
    found = small.lists(wanted, segments=["home", "search", "unknown"] * 3)
    filled = (search + [item for item in everyone if item not in search])[:28]
    home = (home + [item for item in everyone if item not in home])[:28]
    assert [found[f"u{n}"] for n in range(3)] == [all_of(each, "popular") for each in (home, filled, everyone)]


def test_the_newest_by_their_column(small: Small) -> None:
    born = {name(n): _born(n) for n in range(ITEMS)}
    came = [item for item, day in born.items() if day and day <= str(small.ds + timedelta(days=1))]
    newest = sorted(sorted(came), key=lambda item: born[item], reverse=True)
    assert max(born.values()) > born[newest[0]] == "2026-01-03"
    found = small.lists({"source": "recent", "limit": 9, "column": "born"})
    assert found["u1"] == found["u8"] == all_of(newest[:9], "recent")


def test_the_newest_by_the_log(small: Small) -> None:
    came: dict[str, date] = {}
    for row in small.log:
        came.setdefault(row.item, row.day)
    newest = sorted(sorted(set(came) - {"x0"}), key=lambda item: came[item], reverse=True)
    assert small.lists({"source": "recent", "limit": 7})["u1"] == all_of(newest[:7], "recent")


def seeds_of(rows: list[Row], count: int) -> dict[str, list[str]]:
    """The last distinct items of each user, the last first."""
    seeds: dict[str, list[str]] = {f"u{n}": [] for n in range(USERS)}
    for row in reversed(rows):
        if row.item != "x0" and row.item not in seeds[row.user]:
            seeds[row.user].append(row.item)
    return {user: items[:count] for user, items in seeds.items()}


def best_sums(seeds: list[str], near: dict[str, list[tuple[str, float]]], limit: int, without: set[str]) -> list[str]:
    sums: Counter[str] = Counter()
    for seed in seeds:
        for item, score in near.get(seed, []):
            sums[item] += np.float32(score)  # type: ignore[assignment]
    found = sorted(set(sums) - without, key=lambda item: (-sums[item], item))
    return found[:limit]


@pytest.mark.parametrize(
    ("task", "seen", "most_pairs"), [(None, False, 10**6), ("click", True, 10**6), (None, False, 1)]
)
def test_co_visited(
    small: Small, monkeypatch: pytest.MonkeyPatch, task: str | None, seen: bool, most_pairs: int
) -> None:
    monkeypatch.setattr(co_visited, "MOST_PAIRS", most_pairs)
    monkeypatch.setattr(co_visited, "_PAIRS_AT_ONCE", 40)
    rows = [row for row in small.last(1) if task is None or row.click]
    met = {user: set(items) for user, items in seeds_of(rows, 200 if most_pairs > 1 else 2).items()}
    users = Counter(item for items in met.values() for item in items)
    last = {(row.user, row.item): row.second for row in rows if row.item != "x0"}
    fresh = {pair: 0.5 ** ((max(last.values()) - second) * HALF_LIVES / 86400) for pair, second in last.items()}
    near: dict[str, list[tuple[str, float]]] = {}
    for one in users:
        scores: Counter[str] = Counter()
        for user, items in met.items():
            for other in items - {one} if one in items else ():
                share = fresh[user, other] / (len(items) ** 0.5 * (users[one] + 1) ** POWER)
                scores[other] += share  # type: ignore[assignment]
        near[one] = sorted(scores.items(), key=lambda pair: (-np.float32(pair[1]), pair[0]))[:6]
    wanted = {"source": "co_visited", "limit": 8, "days": 1, "seeds": 4, "neighbours": 6, "task": task}
    found = small.lists(wanted, exclude_seen=seen)
    for user, seeds in seeds_of(rows, 4).items():
        out = {row.item for row in small.log if row.user == user} if seen else set()
        assert found[user] == all_of(best_sums(seeds, near, 8, out), "co_visited")
    assert found["u8"] == {}


def test_similar(small: Small) -> None:
    vectors = item_vectors(small.ranker, small.items)
    products = vectors @ vectors.T
    near = {}
    for one in range(ITEMS):
        order = sorted((n for n in range(ITEMS) if n != one), key=lambda n: -products[one, n])[:5]
        near[name(one)] = [(name(n), float(products[one, n])) for n in order if products[one, n] > 0]
    found = small.lists({"source": "similar", "limit": 7, "days": 2, "seeds": 3, "neighbours": 5})
    for user, seeds in seeds_of(small.log, 3).items():
        assert found[user] == all_of(best_sums(seeds, near, 7, set()), "similar")


def test_vectors_are_as_near_as_what_the_experts_make_of_the_items(small: Small) -> None:
    encoded = small.ranker.encoder.encode(small.items, ("item",))
    inputs = small.ranker.model.inputs(small.ranker.encoder.to_batch(encoded))
    bank = small.ranker.model.experts
    first = [(inputs @ w[: inputs.shape[1]]) for group in (bank.always, bank.routed) for w in group.weights[0]]
    made = torch.cat(first, dim=1)
    made = made - made.mean(dim=0)
    expected = torch.nn.functional.cosine_similarity(made[:, None], made[None], dim=2)
    vectors = item_vectors(small.ranker, small.items)
    np.testing.assert_allclose(vectors @ vectors.T, expected.numpy(), atol=1e-4)


def test_a_table_of_ones_own(small: Small) -> None:
    rows = ["u1,i03", "u1,i01", "u1,i03", "u1,x9", "nobody,i01", "u8,i29", ",i02", "u1,i02", "u1,i07"]
    path = small.tiny.write(f"own/{small.ds}.csv", "\n".join(["user,item", *rows]) + "\n")
    own = {"source": "table", "rows": {"path": f"{path.parent}/{{ds}}.csv"}, "limit": 3}
    found = small.lists(own)
    assert found.pop("u1") == all_of(["i01", "i02", "i03"], "table")
    assert found.pop("u8") == {"i29": "table"}
    assert not any(found.values())
    met = {row.item for row in small.log if row.user == "u1"}
    assert list(small.lists(own, exclude_seen=True)["u1"]) == sorted({"i01", "i02", "i03", "i07"} - met)


def test_an_empty_table(small: Small) -> None:
    path = small.tiny.write("own/none.csv", "user,item\n")
    assert not any(small.lists({"source": "table", "rows": {"path": str(path)}}).values())


def test_the_first_source_has_the_pair(small: Small) -> None:
    path = small.tiny.write("own/two.csv", "user,item\nu1,i00\nu1,i29\n")
    own = {"source": "table", "rows": {"path": str(path)}}
    popular = most((row.item for row in small.log), 10)
    for candidates in ([{"source": "popular", "limit": 10}, own], [own, {"source": "popular", "limit": 10}]):
        lists = [all_of(popular, "popular"), {"i00": "table", "i29": "table"}]
        first, second = lists if candidates[1] is own else lists[::-1]
        assert "i29" not in popular
        assert "i00" in popular
        assert small.lists(candidates)["u1"] == {item: (second | first)[item] for item in sorted(second | first)}


@pytest.mark.parametrize("names", [["all"], ["popular", "recent", "co_visited", "similar"]])
def test_what_may_not_be_shown_is_in_no_list(small: Small, names: list[str]) -> None:
    wanted = {"available": {"since": "born"}, "rules": [{"column": "tags", "one_of": ["t0", "t1"]}]}
    lists = small.lists([{"source": one, "limit": 4} if one != "all" else {"source": one} for one in names], **wanted)
    may = {name(n) for n in range(ITEMS) if _born(n) <= "2026-01-03" and n % 3 < 2}
    assert {item for items in lists.values() for item in items} <= may
    assert {source for items in lists.values() for source in items.values()} == set(names)
    assert {item for items in lists.values() for item in items} == may or names != ["all"]


def test_shards_together_are_as_one(small: Small) -> None:
    sources = [{"source": "popular", "limit": 3}, {"source": "co_visited"}, {"source": "similar", "limit": 5}]
    assert small.lists(sources, 1, exclude_seen=1) == small.lists(sources, 4, exclude_seen=1)


def test_of_many_users_some_speak_for_all(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = small.lists({"source": "co_visited"})
    monkeypatch.setattr(co_visited, "MOST_ROWS", 8)
    some = small.lists({"source": "co_visited"})
    assert 0 < sum(map(len, some.values())) < sum(map(len, everyone.values()))


def test_some_users_get_what_a_scoring_would_give_them(small: Small) -> None:
    sources = [{"source": "popular", "limit": 3}, {"source": "similar", "limit": 5}]
    wanted, config = small.lists(sources, exclude_seen=True), small.config(sources, exclude_seen=True)
    users = small.users.take([1, 3, 4])
    made = of_users(config, Tables(config.storage), small.ds, users, small.items, small.ranker).given()
    assert callable(made)
    ids = small.items.column("item").to_pylist()
    for user, items in zip(users.column("user").to_pylist(), made(0, 3), strict=True):
        assert [ids[item] for item in items if item >= 0] == list(wanted[user])
    assert not [*(small.tiny.folder / "var" / "tiny" / "scratch").glob("candidates-*")]


def test_segments_need_prepared_days(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tables, "days", lambda tables, name: [])
    with pytest.raises(UserError, match="by segment: no day from 2026-01-01 to 2026-01-02 is prepared"):
        small.lists({"source": "popular", "by": "segment", "days": 2})


def test_on_s3(small: Small, s3: str) -> None:
    sources = [{"source": "popular", "limit": 3}, {"source": "co_visited"}]
    assert small.lists(sources, exclude_seen=True, place=s3) == small.lists(sources, exclude_seen=True)
