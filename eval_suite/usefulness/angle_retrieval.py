"""The angles of a torus head as addresses of a winding memory: retrieval, and what lies next to what."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.geometry.memory import ABSENT, WindingMemory

Array = NDArray[np.floating]
Labels = NDArray[np.integer]

ITEMS_A_CELL = 4
"""About how many items a cell holds, by which bins are chosen."""
CELLS = 32
"""Read for a query, where not all are."""
RECALL_AT = (1, 5, 10)


def angles_of(pairs: Array) -> NDArray[np.float64]:
    """Radians (n, m) of the cosines and sines (n, 2m) that the feature set `angles` holds."""
    cos, sin = np.asarray(pairs, dtype=np.float64).reshape(len(pairs), -1, 2).transpose(2, 0, 1)
    return np.arctan2(sin, cos)


def bins_for(items: int, angles: int) -> int:
    """Bins on each of so many circles, with a few items in a cell if they were spread evenly."""
    wanted = max(2, round((max(items, 1) / ITEMS_A_CELL) ** (1 / angles)))
    most = int(2 ** (63 / angles))
    return min(wanted, most, 256)


def remember(angles: NDArray[np.float64], bins: int | None = None) -> WindingMemory:
    """A memory of rows by their number. Raises UserError for bins that cannot be."""
    memory = WindingMemory(angles.shape[1], bins or bins_for(*angles.shape))
    memory.add(angles, np.arange(len(angles)))
    return memory


def retrieval(
    gallery_x: Array, gallery_y: Labels, query_x: Array, query_y: Labels, *, cells: int = CELLS
) -> dict[str, Any]:
    """Whether the nearest of a gallery by angle are of the query's class, from a few cells of a memory of it.

    Cosines and sines (n, 2m) and (q, 2m). recall_at_k: share of queries with one of their class among the
    first k found; found_at_10: share of the true ten nearest that the cells read hold. Queries whose class
    the gallery lacks are left out.
    """
    rows = np.flatnonzero(np.isin(query_y, gallery_y))
    memory, queries = remember(angles_of(gallery_x)), angles_of(query_x[rows])
    k = min(max(RECALL_AT), len(memory))
    found, exact = memory.query(queries, k, cells), memory.query(queries, k)
    same = (gallery_y[found.ids] == query_y[rows][:, None]) & (found.ids != ABSENT)
    shared = [len(set(a) & set(b)) / k for a, b in zip(found.ids, exact.ids, strict=True)]
    return {
        "bins": memory.bins,
        "occupied": memory.occupied,
        "bytes": memory.nbytes,
        "cells": cells,
        "found_at_10": float(np.mean(shared)),
        **{f"recall_at_{n}": float(same[:, :n].any(axis=1).mean()) for n in RECALL_AT},
    }
