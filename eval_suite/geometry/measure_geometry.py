"""All geometry of one cloud of features: rank, dimension, shape, neighbour graph, homology and verdict."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from eval_suite import attempts
from eval_suite.geometry import (
    angle_uniformity,
    circular,
    dimension,
    landmarks,
    normality,
    rank,
    spectral_gap,
    uniformity,
    verdict,
)
from eval_suite.metrics import GEOMETRY
from isotorus import randomness
from isotorus.section import Section

Array = NDArray[np.floating]
T = TypeVar("T")

CLOUDS = ("embedding", "projector", "angles")
"""Feature sets whose geometry is measured. Training shapes the last two; the first is used afterwards."""
MOST_CIRCLES = 2
"""Largest number of loops for which circular coordinates are computed."""
MOST_PAIRS = 6
"""Largest number of pairs of angles that are judged: all pairs of four angles."""
PAIR_SAMPLES = 2_000
"""Largest number of samples for the verdict on a pair of angles; verdicts are calibrated with as many."""


class Options(Section):
    """Which geometry of a cloud of features is measured, and how."""

    metrics: tuple[str, ...] = GEOMETRY
    """Names from `metrics.GEOMETRY`; homology includes the verdict."""
    samples: PositiveInt = 10_000
    """Largest number of samples of the training split that is measured."""
    neighbours: PositiveInt = 15
    """k of the k-nearest-neighbour graph."""
    landmarks: PositiveInt | None = None
    """Number of points that persistent homology is computed on; None takes a tenth of them, 100 to 300."""
    draws: PositiveInt = 20
    """Number of shuffled clouds that the bars of homology are compared with."""
    seed: int = 0
    """Seed of all random choices."""


def clouds(features: Mapping[str, Mapping[str, Mapping[str, Array]]]) -> dict[str, Array]:
    """Return the clouds (n, d) to measure by name, from features by representation, feature set and split.

    These are the feature sets in `CLOUDS` of the pretrained encoder and, as "untrained", the embedding of
    the untrained one, all of the training split.
    """
    selected = {name: x["train"] for name, x in features["pretrained"].items() if name in CLOUDS}
    if "untrained" in features:
        selected["untrained"] = features["untrained"]["embedding"]["train"]
    return selected


def measure(
    x: Array,
    labels: NDArray[np.integer] | None,
    options: Options,
    jobs: int = 1,
    *,
    circles: bool = False,
) -> dict[str, Any]:
    """Measure what `options.metrics` names on the cloud `x` (n, d); the result is ready for JSON.

    With `circles`, `x` holds the cosine and sine of angles in turn, and their uniformity is measured too.
    `labels` (n,) are class indices, negative where a sample has no label. `jobs` is the number of processes
    for homology. A metric that cannot be computed is missing from the result, and `left_out` says why.
    docs/geometry.md explains each metric.
    """
    chosen = randomness.rows(len(x), options.samples, options.seed)
    x = x[chosen]
    measured: dict[str, Any] = {"samples": len(x), "width": x.shape[1], "left_out": {}}

    def attempt(name: str, compute: Callable[[], T]) -> T | None:
        return attempts.attempt(name, compute, measured["left_out"])

    if "rank" in options.metrics:
        measured["rank"] = attempt("rank", lambda: rank.summary(x))
    if "shape" in options.metrics:
        measured["dimension"] = attempt("dimension", lambda: dimension.summary(x))
        measured["shape"] = attempt("shape", lambda: uniformity.summary(x, seed=options.seed))
        measured["normality"] = attempt("normality", lambda: normality.summary(x, seed=options.seed))
        if circles:
            measured["uniformity_over_null"] = attempt(
                "uniformity of angles", lambda: angle_uniformity.of_circles(x, options.seed)
            )
        if labels is not None:
            measured["collisions"] = attempt(
                "collisions", lambda: uniformity.collisions(x, labels[chosen], seed=options.seed)
            )
    if "graph" in options.metrics:
        measured["graph"] = attempt(
            "graph", lambda: spectral_gap.summary(x, options.neighbours, seed=options.seed)
        )
    if "homology" in options.metrics:
        evidence = attempt(
            "homology",
            lambda: verdict.measure(
                x, count=options.landmarks, draws=options.draws, jobs=jobs, seed=options.seed
            ),
        )
        if evidence:
            decision = verdict.decide(evidence.measured)
            measured["verdict"] = decision.to_json() | {"measured": asdict(evidence.measured)}
            measured["homology"] = evidence.homology.to_json()
            if loops := min(numbers[1] for numbers in evidence.homology.betti.values()):
                samples = chosen[landmarks.distinct(x, options.seed)]
                count, cloud = min(loops, MOST_CIRCLES), evidence.cloud
                measured["circular"] = attempt("circular", lambda: _circular(cloud, samples, count))
    return {name: value for name, value in measured.items() if value is not None}


def measure_pairs(x: Array, options: Options, jobs: int = 1) -> dict[str, Any]:
    """Give a verdict on pairs of angles of `x` (n, 2m), which holds cosine and sine of m ≥ 3 angles in turn.

    The product of three or more circles has too many dimensions for homology, but any two of them are a flat
    torus. The first `MOST_PAIRS` pairs are judged, those of the first angles first. The result is ready for
    JSON: `pairs` has the places of two angles and their verdict, `of` the number of all pairs, and `left_out`
    what failed.
    """
    x = x[randomness.rows(len(x), min(options.samples, PAIR_SAMPLES), options.seed)]
    angles = np.reshape(x, (len(x), -1, 2))
    # Sorted by the later angle: (0, 1), (0, 2), (1, 2), (0, 3), …
    together = sorted(combinations(range(angles.shape[1]), 2), key=lambda pair: pair[::-1])
    judge = partial(verdict.measure, draws=options.draws, jobs=jobs, seed=options.seed)
    judged: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for first, second in together[:MOST_PAIRS]:
        cloud = angles[:, [first, second]].reshape(len(x), 4)
        name = f"angles {first + 1} and {second + 1}"
        if evidence := attempts.attempt(name, partial(judge, cloud), left_out):
            decision = verdict.decide(evidence.measured).to_json()
            judged.append({"angles": [first, second], **decision, "measured": asdict(evidence.measured)})
    return {"samples": len(x), "of": len(together), "pairs": judged, "left_out": left_out}


def _circular(cloud: landmarks.Cloud, samples: NDArray[np.int64], count: int) -> dict[str, Any]:
    """Return the angles of the landmarks along the `count` longest loops; `samples` indexes the cloud's rows.

    `angles` is (count, landmarks) in radians, `samples` the landmarks' sample numbers, and `map` their first
    two principal components.
    """
    points = cloud.denoised[cloud.landmarks]
    angles = circular.circular_coordinates(points, count).angles
    coordinates: dict[str, Any] = {
        "angles": angles.T.tolist(),
        "samples": samples[cloud.landmarks].tolist(),
        "map": points[:, :2].tolist(),
    }
    if angles.shape[1] == 2:
        coordinates["joint_coverage"] = circular.joint_coverage(angles)
    return coordinates


def of_views(x: Array) -> dict[str, float]:
    """Measure LiDAR and alignment on augmented views `x` (images, views, d), grouped by image."""
    return {
        "objects": x.shape[0],
        "views": x.shape[1],
        "lidar": rank.lidar(x),
        "alignment": uniformity.alignment(x),
    }
