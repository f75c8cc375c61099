"""Compare the layers of two encoders, beside two untrained encoders and beside shuffled images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite import progress
from eval_suite.attempts import attempt
from eval_suite.layers.compare.similarity import Cloud, Estimate, cka, overlap, prepared, procrustes
from eval_suite.layers.compare.vectors import EMBEDDING
from eval_suite.usefulness.resampling import Groups
from isotorus.randomness import generator

MEASURES: dict[str, Callable[[Cloud, Cloud, Groups], Estimate]] = {
    "cka": cka,
    "procrustes": procrustes,
    "neighbours": overlap,
}
"""The measures by their name in compare.json."""
SHUFFLED = 0xC0A
"""Stream of the random numbers that shuffle the images."""
Layers = Mapping[str, NDArray[np.floating]]
"""Features (n, d) by layer, in the order of depth; the last one is the embedding."""


@dataclass(frozen=True)
class Comparison:
    """How the layers of two encoders are compared."""

    k: int
    """Number of neighbours."""
    groups: Groups
    """Group of each image (n,), such as its patient, 0 for none; None if there are no groups."""
    seed: int

    def of(self, a: Layers, b: Layers, left_out: dict[str, str]) -> list[dict[str, Any]]:
        """Return a row for each pair of layers: their names, and of each measure the value and its interval.

        Encoders of equal depth are compared layer by layer, others in all pairs of blocks. Each measure has
        also its value for the images of b in random order, as `shuffled`. A layer that cannot be compared, as
        one that has collapsed, is put into `left_out` with the reason.
        """
        clouds_a, clouds_b = self._prepared("A", a, left_out), self._prepared("B", b, left_out)
        order = generator(self.seed, SHUFFLED).permutation(len(a[EMBEDDING]))
        shuffled = {name: cloud.reordered(order) for name, cloud in clouds_b.items()}
        rows = []
        for one, other in paired(list(a), list(b)):
            if one not in clouds_a or other not in clouds_b:
                continue
            progress.doing(f"comparing {one} with {other}")
            row: dict[str, Any] = {"a": one, "b": other}
            for name, measure in MEASURES.items():
                found = measure(clouds_a[one], clouds_b[other], self.groups)
                chance = measure(clouds_a[one], shuffled[other], self.groups).value
                row[name] = {**found._asdict(), "shuffled": chance}
            rows.append(row)
        return rows

    def _prepared(self, encoder: str, layers: Layers, left_out: dict[str, str]) -> dict[str, Cloud]:
        """Prepare the layers that can be compared."""
        clouds = {
            name: attempt(f"{name} of {encoder}", lambda x=x: prepared(x, self.k), left_out)  # type: ignore[misc]
            for name, x in layers.items()
        }
        return {name: cloud for name, cloud in clouds.items() if cloud is not None}


def paired(a: list[str], b: list[str]) -> list[tuple[str, str]]:
    """Return the pairs of layers that are compared, given the names of the layers of both encoders.

    These are the layers at equal depth, or all pairs of blocks and the two embeddings if the depths differ.
    """
    if len(a) == len(b):
        return list(zip(a, b, strict=True))
    return [*product(a[:-1], b[:-1]), (a[-1], b[-1])]


def beside(rows: list[dict[str, Any]], untrained: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each measure of each row, as `untrained`, its value for two untrained encoders.

    It is None for a layer that could not be compared in them.
    """
    known = {(row["a"], row["b"]): row for row in untrained}
    for row in rows:
        other = known.get((row["a"], row["b"]))
        for name in MEASURES:
            row[name]["untrained"] = other[name]["value"] if other else None
    return rows
