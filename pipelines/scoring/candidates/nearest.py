"""Nearest neighbours among vectors, by FAISS (Douze et al. 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.scoring.candidates.lists import Positions

EXACT = 50_000
"""Among so many vectors every one is looked at; among more, those of the nearest cells."""
CELLS_LOOKED_AT = 32
_ASKED_AT_ONCE = 8192

Vectors = NDArray[np.float32]


def find(vectors: Vectors, among: Positions, asked: Positions, count: int) -> tuple[Positions, Vectors]:
    """The `count` vectors with the greatest inner product with each one that is asked for, itself left out.

    Args:
        vectors: [I, D], of length 1.
        among: [C] positions of those that may be found, ascending.
        asked: [A] positions of those that are asked for.
        count: how many of each.

    Returns: positions [A, count], -1 where there are no more, and the inner products, greatest first, ties by
        position.
    """
    rows, products = np.full((len(asked), count), -1), np.zeros((len(asked), count), np.float32)
    if not len(among):
        return rows, products
    index = _index(np.ascontiguousarray(vectors[among]))
    for start in range(0, len(asked), _ASKED_AT_ONCE):
        some = asked[start : start + _ASKED_AT_ONCE]
        product, place = index.search(np.ascontiguousarray(vectors[some]), count + 1)
        row = np.where(place >= 0, among[place], -1)
        # Itself behind all others, and what is not there behind it.
        product = np.where(place < 0, -np.inf, np.where(row == some[:, None], -2.0, product))
        order = np.lexsort((row, -product))[:, :count]
        row, product = np.take_along_axis(row, order, 1), np.take_along_axis(product, order, 1)
        there = product > -2.0
        rows[start : start + len(some)] = np.where(there, row, -1)
        products[start : start + len(some)] = np.where(there, product, 0.0)
    return rows, products


def _index(vectors: Vectors) -> Any:
    """Exact up to `EXACT` vectors; beyond, an inverted file of 4·√n cells, the same on every run."""
    import faiss  # takes a second

    flat = faiss.IndexFlatIP(vectors.shape[1])
    if len(vectors) <= EXACT:
        flat.add(vectors)
        return flat
    cells = int(4 * len(vectors) ** 0.5)
    index = faiss.IndexIVFFlat(flat, vectors.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    index.nprobe = CELLS_LOOKED_AT
    return index
