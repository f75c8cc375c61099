"""The geometry of a cloud of features: rank, dimension, shape, graph, homology, and their verdict."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import circular, dimension, landmarks, normality, rank, shape, spectral_gap, verdict
from eval_suite.options import Options
from isotorus import randomness
from isotorus.errors import UserError

Array = NDArray[np.floating]
T = TypeVar("T")

CLOUDS = ("embedding", "projector", "angles")
"""Feature sets whose geometry is measured: where training wants one, and what is used afterwards."""


MOST_CIRCLES = 2
"""Loops that are drawn with their circular coordinate."""


def clouds(features: Mapping[str, Mapping[str, Mapping[str, Array]]]) -> dict[str, Array]:
    """Of train (n, d), by name; the untrained encoder's embedding stands beside the pretrained one's."""
    found = {name: x["train"] for name, x in features["pretrained"].items() if name in CLOUDS}
    if "untrained" in features:
        found["untrained"] = features["untrained"]["embedding"]["train"]
    return found


def measure(x: Array, labels: NDArray[np.integer] | None, options: Options, jobs: int = 1) -> dict[str, Any]:
    """All that `options.metrics` asks of x (n, d), ready for JSON; see docs/geometry.md.

    `labels` (n,) are class indices, below 0 where there is none. What cannot be measured is left out with
    its reason, under `left_out`.
    """
    chosen = randomness.rows(len(x), options.samples, options.seed)
    x = x[chosen]
    found: dict[str, Any] = {"samples": len(x), "width": x.shape[1], "left_out": {}}

    def attempt(name: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except (UserError, np.linalg.LinAlgError) as error:  # what cannot be had costs itself alone
            found["left_out"][name] = str(error)
            return None

    if "rank" in options.metrics:
        found["rank"] = rank.summary(x)
    if "shape" in options.metrics:
        found["dimension"] = attempt("dimension", lambda: dimension.summary(x))
        found["shape"] = attempt("shape", lambda: shape.summary(x, seed=options.seed))
        found["normality"] = attempt("normality", lambda: normality.summary(x, seed=options.seed))
        if labels is not None:
            found["collisions"] = attempt(
                "collisions", lambda: shape.collisions(x, labels[chosen], seed=options.seed)
            )
    if "graph" in options.metrics:
        found["graph"] = attempt(
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
            said = verdict.decide(evidence.measured)
            found["verdict"] = said.to_json() | {"measured": asdict(evidence.measured)}
            found["homology"] = evidence.homology.to_json()
            if loops := min(numbers[1] for numbers in evidence.homology.betti.values()):
                samples = chosen[landmarks.distinct(x, options.seed)]
                found["circular"] = _circular(evidence.cloud, samples, min(loops, MOST_CIRCLES))
    return {name: value for name, value in found.items() if value is not None}


def _circular(cloud: landmarks.Cloud, samples: NDArray[np.int64], count: int) -> dict[str, Any]:
    """Angles of the landmarks along significant loops; `samples` are those that the cloud's rows are."""
    points = cloud.denoised[cloud.landmarks]
    angles = circular.circular_coordinates(points, count).angles
    found = {
        "angles": angles.T.tolist(),
        "samples": samples[cloud.landmarks].tolist(),
        "map": points[:, :2].tolist(),
    }
    return found | ({"joint_coverage": circular.joint_coverage(angles)} if angles.shape[1] == 2 else {})


def of_views(x: Array) -> dict[str, float]:
    """What several augmented views of each image say, x (objects, views, d)."""
    return {
        "objects": x.shape[0],
        "views": x.shape[1],
        "lidar": rank.lidar(x),
        "alignment": shape.alignment(x),
    }
