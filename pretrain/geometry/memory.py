"""An associative store on T^m × Z: items lie in bins of angles, and in a layer of their cell.

The address of an item is its cell, i.e. the bin of each of its m angles, and its layer n, the number of items
that came to this cell before. The position within the cell is kept to 1/256 of a bin for each angle, so an
item takes m + 12 bytes. A query reads cells in the order of the least geodesic distance that an item in them
can have. Without a limit on cells it stops when no unread cell can hold a nearer item: the answer is exact,
up to the rounding of positions.

FAISS does the same job. Against its Flat and IVF indices in equal memory this store recalls more, because its
items are smaller. FAISS's SQ8 in the same memory recalls as much and is 8 to 360 times as fast (`python -m
benchmarks.memory`, in benchmarks/RESULTS.md): prefer it where only the nearest items are wanted. What this
store adds are addresses, of which no two items share one, and geodesic distances.

Arrays are numpy: angles (n, m) in radians, ids (n,) int64.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from isotorus.errors import UserError
from isotorus.files import as_new
from pretrain.geometry.codes import address, angular_bins

FORMAT = "isotorus winding memory 1"
STEPS = 256
"""Positions within a bin that are distinguished."""
ABSENT = -1
"""Id where there are fewer items than asked for."""

Angles = NDArray[np.floating]
Ids = NDArray[np.int64]


class Found(NamedTuple):
    """The nearest items of each query, the nearest first."""

    ids: Ids
    """(q, k), -1 where there is no item."""
    distances: NDArray[np.float64]
    """Geodesic distances in radians (q, k), inf where there is no item."""
    cells: NDArray[np.int64]
    """Number of cells that were read for each query, (q,)."""


class Address(NamedTuple):
    """The cell of an item, as bins, and its layer in the cell."""

    bins: tuple[int, ...]
    layer: int


class WindingMemory:
    """Stores items by their angles, in `bins` bins on each of `angles` circles.

    Raises `UserError` for less than one angle or bin, more than 256 bins, or more than 2⁶³ cells.
    """

    def __init__(self, angles: int, bins: int) -> None:
        if angles < 1 or bins < 1:
            raise UserError(f"{angles} angles and {bins} bins: a memory needs at least one of each")
        if bins > 256 or bins**angles > 2**63:
            raise UserError(
                f"{bins} bins on {angles} angles: at most 256 bins, and 2⁶³ cells in all; use fewer bins"
            )
        self.angles, self.bins = angles, bins
        self._cells = np.zeros((0, angles), np.uint8)
        self._starts = np.zeros(1, np.int64)
        self._offsets = np.zeros((0, angles), np.uint8)
        self._layers = np.zeros(0, np.uint32)
        self._ids = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        """Return the bytes of items and cells."""
        return sum(x.nbytes for x in (self._cells, self._starts, self._offsets, self._layers, self._ids))

    @property
    def occupied(self) -> int:
        """Return the number of cells that hold an item."""
        return len(self._cells)

    def add(self, angles: Angles, ids: Ids) -> None:
        """Store items with ids of at least 0; raise `UserError` for an id that is stored already."""
        angles, ids = self._checked(angles), np.asarray(ids, dtype=np.int64)
        if len(ids) != len(angles) or (len(ids) and ids.min() < 0):
            raise ValueError(f"{len(angles)} items with {len(ids)} ids; one each is needed, of at least 0")
        both = np.concatenate([self._ids, ids])
        if len(np.unique(both)) < len(both):
            values, counts = np.unique(both, return_counts=True)
            raise UserError(f"id {values[counts > 1][0]} would be there twice; delete it first")
        digits, offsets = self._placed(angles)
        new_cells = np.concatenate([np.repeat(self._cells, np.diff(self._starts), axis=0), digits])
        # Within a cell, stored items come first in the order of their layers, then new ones as they arrive.
        layers = np.concatenate([self._layers, np.full(len(ids), np.iinfo(np.uint32).max, np.uint32)])
        self._arrange(new_cells, np.concatenate([self._offsets, offsets]), layers, both)

    def delete(self, ids: Ids) -> int:
        """Remove items and return how many were stored; the layers of the other items stay as they are."""
        keep = ~np.isin(self._ids, ids)
        cells = np.repeat(self._cells, np.diff(self._starts), axis=0)
        gone = len(self) - int(keep.sum())
        self._arrange(cells[keep], self._offsets[keep], self._layers[keep], self._ids[keep])
        return gone

    def query(self, angles: Angles, k: int, cells: int | None = None) -> Found:
        """Return the `k` nearest items of each of `angles` (q, m).

        At most `cells` cells are read, or as many as an exact answer needs. Raises `ValueError` for wrong
        arguments.
        """
        angles = self._checked(angles)
        if k < 1 or (cells is not None and cells < 1):
            raise ValueError(f"k = {k} and cells = {cells}: both must be at least 1")
        answers = [self._nearest(one, k, cells) for one in angles]
        return Found(
            np.array([ids for ids, _, _ in answers], np.int64).reshape(-1, k),
            np.array([distances for _, distances, _ in answers]).reshape(-1, k),
            np.array([read for _, _, read in answers], np.int64),
        )

    def address(self, item: int) -> Address:
        """Return the address of an item; raise `KeyError` if it is not stored."""
        (place,) = np.flatnonzero(self._ids == item) if (self._ids == item).any() else (None,)
        if place is None:
            raise KeyError(item)
        cell = int(np.searchsorted(self._starts, place, side="right")) - 1
        return Address(tuple(self._cells[cell].tolist()), int(self._layers[place]))

    def at(self, bins: Sequence[int], layer: int) -> int | None:
        """Return the id at an address, or None where nothing is; raise `UserError` for bins out of range."""
        if len(bins) != self.angles or not all(0 <= b < self.bins for b in bins):
            raise UserError(
                f"address {tuple(bins)}: expected {self.angles} bins, each of 0 to {self.bins - 1}"
            )
        same = np.flatnonzero((self._cells == np.array(bins, np.uint8)).all(axis=1))
        if not len(same):
            return None
        start, end = self._starts[same[0]], self._starts[same[0] + 1]
        place = np.flatnonzero(self._layers[start:end] == layer)
        return int(self._ids[start + place[0]]) if len(place) else None

    def save(self, file: str | Path) -> None:
        """Write a safetensors file."""
        arrays: dict[str, NDArray[Any]] = {"cells": self._cells, "starts": self._starts, "ids": self._ids}
        arrays |= {"offsets": self._offsets, "layers": self._layers}
        kept = {"format": FORMAT, "angles": str(self.angles), "bins": str(self.bins)}
        save_file(arrays, file, {"memory": json.dumps(kept)})
        as_new(Path(file))

    @classmethod
    def load(cls, file: str | Path, *, angles: int | None = None, bins: int | None = None) -> "WindingMemory":
        """Read what `save` wrote.

        Raises `UserError` for any other file, and if its `angles` or `bins` are not those given here.
        """
        try:
            with safe_open(file, "np") as stored:
                kept = json.loads((stored.metadata() or {})["memory"])
                memory = cls(int(kept["angles"]), int(kept["bins"]))
                memory._cells, memory._starts = stored.get_tensor("cells"), stored.get_tensor("starts")
                memory._offsets, memory._layers = stored.get_tensor("offsets"), stored.get_tensor("layers")
                memory._ids = stored.get_tensor("ids")
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise UserError(
                f"{file} is no winding memory ({str(error).splitlines()[0]}); name one that save() wrote"
            ) from None
        for what, asked, stored in (("angles", angles, memory.angles), ("bins", bins, memory.bins)):
            if asked is not None and asked != stored:
                raise UserError(f"{file} was saved with {stored} {what}, not {asked}; fill a new one")
        memory._verify(file)
        return memory

    def _verify(self, file: str | Path) -> None:
        """Raise `UserError` for a damaged file, so that it cannot answer queries."""
        n = len(self._ids)
        fits = (
            kept.shape == shape
            for kept, shape in (
                (self._offsets, (n, self.angles)),
                (self._layers, (n,)),
                (self._cells, (len(self._starts) - 1, self.angles)),
            )
        )
        whole = all(fits) and (np.diff(self._starts) > 0).all() and self._starts[0] == 0
        if not (whole and self._starts[-1] == n and (self._cells < self.bins).all()):
            raise UserError(f"{file} is damaged: its arrays do not fit together; fill a new memory")

    def _checked(self, angles: Angles) -> NDArray[np.float64]:
        """Return the angles in float64; raise `ValueError` for a wrong shape, infinity or NaN."""
        checked: NDArray[np.float64] = np.asarray(angles, dtype=np.float64)
        if checked.ndim != 2 or checked.shape[1] != self.angles:
            raise ValueError(f"angles are (n, {self.angles}), not {checked.shape}")
        if not np.isfinite(checked).all():
            raise ValueError("angles must be finite")
        return checked

    def _placed(self, angles: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the bins of angles, and the positions within the bins."""
        digits = angular_bins(torch.from_numpy(angles), self.bins).numpy()
        turns = np.remainder(angles / (2 * math.pi), 1) * self.bins - digits
        steps = np.clip((turns * STEPS).astype(np.int64), 0, STEPS - 1)
        return digits.astype(np.uint8), steps.astype(np.uint8)

    def _arrange(
        self,
        cells: NDArray[np.uint8],
        offsets: NDArray[np.uint8],
        layers: NDArray[np.uint32],
        ids: Ids,
    ) -> None:
        """Sort items by cell and layer; those without a layer get the next free ones of their cell."""
        key = address(torch.from_numpy(cells.astype(np.int64)), [self.bins] * self.angles).numpy()
        order = np.lexsort((layers, key))
        key, layers = key[order], layers[order]
        starts = (
            np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, int)
        )
        self._starts = np.append(starts, len(key)).astype(np.int64)
        fresh = layers == np.iinfo(np.uint32).max
        if fresh.any():
            # In each cell new items get the numbers above its highest layer.
            cell = np.repeat(np.arange(len(starts)), np.diff(self._starts))
            highest = np.full(len(starts), -1, np.int64)
            np.maximum.at(highest, cell[~fresh], layers[~fresh].astype(np.int64))
            before = np.zeros(len(starts), np.int64)
            np.add.at(before, cell[~fresh], 1)
            rank_in_cell = np.arange(len(key)) - self._starts[cell] - before[cell]
            layers = np.where(fresh, highest[cell] + 1 + rank_in_cell, layers).astype(np.uint32)
        self._cells, self._offsets = cells[order][starts], offsets[order]
        self._layers, self._ids = layers, ids[order]

    def _nearest(
        self, query: NDArray[np.float64], k: int, most: int | None
    ) -> tuple[list[int], list[float], int]:
        """Return ids and distances of the nearest items, and the number of cells that were read."""
        if not len(self):
            return [ABSENT] * k, [math.inf] * k, 0
        bounds = self._bounds(query)
        ordered = np.argsort(bounds, kind="stable") if most is None else _smallest(bounds, most)
        best_d, best_i = np.zeros(0), np.zeros(0, np.int64)
        sizes = np.diff(self._starts)[ordered]
        position = 0
        while position < len(ordered):
            if len(best_d) == k and bounds[ordered[position]] >= best_d[-1]:
                break
            # Read as many cells at a time as have 4k items, so that cells of few items are not read one by
            # one.
            end = position + 1 + int(np.searchsorted(np.cumsum(sizes[position:]), 4 * k))
            part = ordered[position:end]
            rows = _ranges(self._starts[part], self._starts[part + 1])
            distances = self._distances(query, np.repeat(part, np.diff(self._starts)[part]), rows)
            best_d, best_i = np.append(best_d, distances), np.append(best_i, self._ids[rows])
            nearest = np.lexsort((best_i, best_d))[:k]
            best_d, best_i = best_d[nearest], best_i[nearest]
            position = end
        missing = k - len(best_d)
        distance = np.sqrt(best_d).tolist() + [math.inf] * missing
        return best_i.tolist() + [ABSENT] * missing, distance, min(position, len(ordered))

    def _bounds(self, query: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the least squared distance from the query to any point of each occupied cell."""
        width = 2 * math.pi / self.bins
        middle = (np.arange(self.bins) + 0.5) * width
        away = np.abs(np.remainder(query[:, None] - middle + math.pi, 2 * math.pi) - math.pi)
        table = np.square(np.maximum(away - width / 2, 0))
        total = np.zeros(len(self._cells))
        for angle, row in enumerate(table):
            total += row[self._cells[:, angle]]
        return total

    def _distances(
        self, query: NDArray[np.float64], cells: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return squared geodesic distances from the query to stored items."""
        width = 2 * math.pi / self.bins
        angles = (self._cells[cells] + (self._offsets[rows] + 0.5) / STEPS) * width
        away = np.remainder(angles - query + math.pi, 2 * math.pi) - math.pi
        result: NDArray[np.float64] = np.square(away).sum(axis=1)
        return result


def _smallest(bounds: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Return the indices of the `most` smallest bounds, in ascending order."""
    if most >= len(bounds):
        return np.argsort(bounds, kind="stable")
    chosen = np.argpartition(bounds, most)[:most]
    result: NDArray[np.int64] = chosen[np.argsort(bounds[chosen], kind="stable")]
    return result


def _ranges(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return start, start + 1, …, end - 1 for each pair, one after the other."""
    sizes = ends - starts
    result: NDArray[np.int64] = np.repeat(starts - np.append(0, np.cumsum(sizes)[:-1]), sizes) + np.arange(
        sizes.sum()
    )
    return result
