"""Assemble the file of vectors from its finished parts, with the columns that need all rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from eval_suite import progress
from eval_suite.usefulness.neighbors import normalised
from eval_suite.vectors import anomaly, nearest_rows, vectors_file
from eval_suite.vectors.about import About
from eval_suite.vectors.table import ANOMALY, NEIGHBOURS, Tables, vectors_of
from eval_suite.vectors.vectors_file import VectorsFile
from isotorus.errors import UserError


@dataclass(frozen=True)
class Extras:
    """What is added to each row beside its vector."""

    neighbours: int | None = None
    """Number of nearest other rows."""
    reference: VectorsFile | None = None
    """File of the vectors that anomaly is measured against."""
    anomaly_k: int = 5

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are added."""
        near = NEIGHBOURS if self.neighbours is not None else ()
        return (*near, *(ANOMALY if self.reference is not None else ()))

    def are_in(self, about: About) -> bool:
        """Say whether a file with this description has them all."""
        k = self.neighbours
        near = k is None or (about.neighbours is not None and about.neighbours.k == k)
        if self.reference is None or about.anomaly is None:
            return near and self.reference is None
        other = self.reference.about
        measured = about.anomaly.k, about.anomaly.identity, about.anomaly.rows
        return near and measured == (self.anomaly_k, other.identity, other.rows)


def write(path: Path, tables: Tables, about: About, extras: Extras) -> About:
    """Write a file of vectors from its rows, and return what it says about itself.

    Without extras one table is in memory at a time. Raises UserError where the disk refuses, for vectors
    that do not fit into memory, and for extras that the vectors do not have, such as too many neighbours.
    """
    if not extras.columns:
        vectors_file.write(path, tables, about)
        return about
    _require_memory(about, extras)
    keys: list[str] = []
    samples, start = np.empty(about.rows, np.int64), 0
    unit = np.empty((about.rows, about.width), np.float32)
    for table in tables():
        rows = slice(start, start + len(table))
        keys += table["key"].to_pylist()
        samples[rows] = table["sample"].to_numpy()
        unit[rows] = normalised(vectors_of(table))
        start += len(table)
    added: dict[str, pa.Array] = {}
    if extras.neighbours is not None:
        progress.doing(f"nearest neighbours of {about.rows:,} vectors")
        k = extras.neighbours
        found = nearest_rows.find(unit, k)
        # Large, because the keys of all neighbours together may have more than 2³¹ bytes.
        near = pa.array(keys, pa.large_string()).take(pa.array(found.ids.reshape(-1)))
        cosines = pa.array(found.similarities.reshape(-1))
        lists = (pa.FixedSizeListArray.from_arrays(values, k) for values in (near, cosines))
        added |= dict(zip(NEIGHBOURS, lists, strict=True))
        about = about.model_copy(update={"neighbours": found.about})
    if extras.reference is not None:
        progress.doing(f"anomaly of {about.rows:,} vectors")
        reference = extras.reference
        scored = anomaly.scores(unit, samples, about.set_fingerprint, reference, extras.anomaly_k)
        values = (pa.array(scored.distance), pa.array(scored.percentile))
        added |= dict(zip(ANOMALY, values, strict=True))
        about = about.model_copy(update={"anomaly": scored.about})
    del unit

    def with_added(*, features: bool = True) -> Iterator[pa.Table]:
        start = 0
        for table in tables(features=features):
            for name, values in added.items():
                table = table.append_column(name, values.slice(start, len(table)))
            start += len(table)
            yield table

    vectors_file.write(path, with_added, about)
    return about


def _require_memory(about: About, extras: Extras) -> None:
    """Raise UserError if the vectors that are compared do not fit into the free memory."""
    rows = max(about.rows, extras.reference.about.rows if extras.reference else 0)
    # The search holds them in float32 and, while it centres or normalises them, in float64.
    need, free = 24 * rows * about.width, psutil.virtual_memory().available
    if need > free:
        raise UserError(
            f"neighbours and anomaly of {rows:,} vectors need about {need / 2**30:,.0f} GiB of memory, and "
            f"{free / 2**30:,.0f} GiB are free; embed without them, or on a machine with more"
        )
