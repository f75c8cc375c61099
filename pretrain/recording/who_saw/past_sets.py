"""The data sets of a run as they were when it trained, found by their fingerprints."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import withdrawn
from data_pipeline.dataset.description import Former, Generation, describe
from data_pipeline.dataset.index import Dataset
from data_pipeline.sources import mixed_fingerprint
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import is_remote
from data_pipeline.withdrawal.choose import Names, mask
from isotorus.errors import UserError

_MOST_MIXTURES = 100_000
"""Largest number of combinations of generations that are tried to find those of a mixture."""


@dataclass(frozen=True)
class State:
    """One generation of a data set, perhaps one that `compact` has dropped."""

    count: int
    """Number of samples."""
    bytes: int
    """Size of its shards in bytes, on which the windowed order depends."""
    images: tuple[int, ...]
    """Indices of the samples that are asked for."""
    fingerprint: str


States = dict[str, State]
"""States by their fingerprints."""


def states(path: str, names: Names) -> States:
    """Return all states of a data set, with the samples that `names` means in each.

    Raises `UserError` if it cannot be read.
    """
    described = describe(path, CacheConfig())
    if described.former and is_remote(path):
        raise UserError(f"images were removed from {path}; give a folder on a disk with a copy of its tables")
    found: States = {}
    dataset = Dataset(path)
    table, newest = withdrawn.of(dataset), mask(dataset, names)
    asked = (
        np.isin(table["key"], names.keys)
        | np.isin(table["file"], names.keys)
        | np.isin(table["group"], names.groups)
    )
    for former in described.former:
        held = asked & (table["generation"] == withdrawn.number(former.fingerprint))
        left = withdrawn.left_of(table, former.fingerprint, former.count)
        images = np.union1d(table["position"][held].astype(np.int64), left[newest[: len(left)]])
        found[former.fingerprint] = _state(former, images)
    for number, generation in enumerate(described.generations, start=1):
        chosen = mask(Dataset(path, generation=number), names)
        found[generation.fingerprint] = _state(generation, np.flatnonzero(chosen))
    return found


def _state(record: Former | Generation, images: NDArray[np.int64]) -> State:
    return State(record.count, record.bytes, tuple(images.tolist()), record.fingerprint)


def of_run(fingerprint: str, sources: Sequence[tuple[str, float]], asked: States) -> list[State] | None:
    """Return the state of each source, given by path and weight, of a run with this fingerprint.

    `asked` are the states of the data sets that are asked about. A copy of one of them, with another path, is
    known by its fingerprint. Returns None if the run trained on other data. Raises `UserError` if that cannot
    be found out.
    """
    if len(sources) == 1 and fingerprint in asked:
        return [asked[fingerprint]]
    candidates = [_elsewhere(path) | asked for path, _ in sources]
    if math.prod(map(len, candidates)) > _MOST_MIXTURES:
        raise UserError("its mixture has too many possible states of its data sets")
    weights = [weight for _, weight in sources]
    for prints in itertools.product(*candidates):
        if mixed_fingerprint(list(prints), weights) == fingerprint:
            found = [each[one] for each, one in zip(candidates, prints, strict=True)]
            return found if any(one in asked for one in prints) else None
    named = ", ".join(path for path, _ in sources)
    raise UserError(f"no state of {named} that is known has the fingerprint {fingerprint} that it trained on")


def _elsewhere(path: str) -> States:
    """Return the states of another data set, of which no image is asked for; {} if it cannot be read."""
    try:
        described = describe(path, CacheConfig())
    except UserError:
        return {}
    nothing = np.empty(0, np.int64)
    known: list[Former | Generation] = [*described.former, *described.generations]
    return {each.fingerprint: _state(each, nothing) for each in known}
