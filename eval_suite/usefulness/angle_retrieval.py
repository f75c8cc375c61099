"""Retrieval by the angles of a torus head, with a winding memory as the search index."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.geometry.memory import ABSENT, WindingMemory

Array = NDArray[np.floating]
Labels = NDArray[np.integer]

ITEMS_A_CELL = 4
"""Average number of items that a cell should hold; it decides the number of bins."""
CELLS = 32
"""Number of cells that a query reads."""
RECALL_AT = (1, 5, 10)


def angles_of(pairs: Array) -> NDArray[np.float64]:
    """Convert the feature set `angles`, cosines and sines (n, 2m), to angles (n, m) in radians."""
    cos, sin = np.asarray(pairs, dtype=np.float64).reshape(len(pairs), -1, 2).transpose(2, 0, 1)
    return np.arctan2(sin, cos)


def bins_for(items: int, angles: int) -> int:
    """Return the number of bins for each angle that gives a few items per cell if items are spread evenly."""
    wanted = max(2, round((max(items, 1) / ITEMS_A_CELL) ** (1 / angles)))
    most = int(2 ** (63 / angles))
    return min(wanted, most, 256)


def remember(angles: NDArray[np.float64], bins: int | None = None) -> WindingMemory:
    """Return a memory that finds row numbers by angles (n, m) in radians.

    Raises UserError for a number of bins that the memory cannot have.
    """
    memory = WindingMemory(angles.shape[1], bins or bins_for(*angles.shape))
    memory.add(angles, np.arange(len(angles)))
    return memory


def retrieval(
    gallery_x: Array, gallery_y: Labels, query_x: Array, query_y: Labels, *, cells: int = CELLS
) -> dict[str, Any]:
    """Measure retrieval by angles when each query reads only `cells` cells of a memory of the gallery.

    `gallery_x` (n, 2m) and `query_x` (q, 2m) are cosines and sines. In the result recall_at_k is the share of
    queries with a sample of their class among the first k; found_at_10 is the share of the ten nearest
    samples that are in the cells. Queries whose class is not in the gallery are left out.
    """
    rows = np.flatnonzero(np.isin(query_y, gallery_y))
    memory, queries = remember(angles_of(gallery_x)), angles_of(query_x[rows])
    k = min(max(RECALL_AT), len(memory))
    near, exact = memory.query(queries, k, cells), memory.query(queries, k)
    same = (gallery_y[near.ids] == query_y[rows][:, None]) & (near.ids != ABSENT)
    shared = [len(set(a) & set(b)) / k for a, b in zip(near.ids, exact.ids, strict=True)]
    return {
        "bins": memory.bins,
        "occupied": memory.occupied,
        "bytes": memory.nbytes,
        "cells": cells,
        "found_at_10": float(np.mean(shared)),
        **{f"recall_at_{n}": float(same[:, :n].any(axis=1).mean()) for n in RECALL_AT},
    }
