"""Find the rows of a file of vectors that are nearest to queries, reading the file once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decoders.pixels import Pixels
from eval_suite.usefulness.neighbors import normalised
from eval_suite.vectors.vectors_file import VectorsFile
from isotorus.nearest_name import nearest as nearest_name


@dataclass(frozen=True)
class Query:
    """An image whose neighbours are wanted."""

    name: str
    """The file or the key that was given."""
    pixels: Pixels | None
    """(H, W, C) of a file; None for an image of the data set."""


class Known(NamedTuple):
    """A row of the file."""

    sample: int
    vector: NDArray[np.float32]
    """(width,)."""


class Hit(NamedTuple):
    """A row that is near to a query."""

    similarity: float
    """Cosine."""
    sample: int
    key: str
    label: str | None


def rows_of_keys(file: VectorsFile, keys: Sequence[str]) -> tuple[dict[str, Known], list[str]]:
    """Return the row of each key, and what is wrong with the keys that the file does not have."""
    if not keys:
        return {}, []
    wanted = set(keys)
    found: dict[str, Known] = {}
    some: list[str] = []
    for piece in file.pieces():
        some = some or piece.keys
        for row, key in enumerate(piece.keys):
            if key in wanted:
                found.setdefault(key, Known(int(piece.samples[row]), piece.vectors[row]))
    unknown = []
    for key in wanted - found.keys():
        near = nearest_name(key, some)
        hint = f"did you mean {near!r}?" if near else f"its keys are such as {some[0]!r}"
        unknown.append(f"{key} is neither an image file nor a key in {file.path.name}; {hint}")
    return found, sorted(unknown)


def nearest(
    file: VectorsFile, queries: NDArray[np.float32], itself: Sequence[str | None], top: int
) -> list[list[Hit]]:
    """Return for each query (m, width) the `top` rows with the largest cosine, the most similar first.

    `itself` is the key of each query that is an image of the file, whose own row does not count, else None.
    """
    unit = normalised(queries)
    best: list[list[Hit]] = [[] for _ in itself]
    for piece in file.pieces():
        cosines = normalised(piece.vectors) @ unit.T
        for number, own in enumerate(itself):
            column = cosines[:, number]
            # One row more, because the query's own may be among them.
            rows = np.argsort(-column, kind="stable")[: top + 1].tolist()
            hits = [
                Hit(float(column[i]), int(piece.samples[i]), piece.keys[i], piece.labels[i])
                for i in rows
                if piece.keys[i] != own
            ]
            best[number] = sorted(best[number] + hits, key=lambda hit: -hit.similarity)[:top]
    return best
