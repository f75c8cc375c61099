"""The geometry of a cloud of features: rank, dimension, shape, graph, homology, and their verdict."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from eval_suite import circular, dimension, gap, landmarks, normality, rank, sampling, shape, verdict
from eval_suite.options import Options

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
    chosen = sampling.rows(len(x), options.samples, options.seed)
    x = x[chosen]
    found: dict[str, Any] = {"samples": len(x), "width": x.shape[1], "left_out": {}}

    def attempt(name: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except (UserError, RuntimeError, np.linalg.LinAlgError) as error:  # what fails costs itself alone
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
        found["graph"] = attempt("graph", lambda: gap.summary(x, options.neighbours, seed=options.seed))
    if "homology" in options.metrics:
        judged = attempt(
            "homology",
            lambda: verdict.judge(
                x, count=options.landmarks, draws=options.draws, jobs=jobs, seed=options.seed
            ),
        )
        if judged:
            said, measured, homology = judged
            found["verdict"] = said.to_json() | {"measured": asdict(measured)}
            found["homology"] = homology.to_json()
            if loops := min(numbers[1] for numbers in homology.betti.values()):
                found["circular"] = _circular(x, chosen, min(loops, MOST_CIRCLES), options)
    return {name: value for name, value in found.items() if value is not None}


def _circular(x: Array, rows: NDArray[np.int64], count: int, options: Options) -> dict[str, Any]:
    """Angles of the landmarks along significant loops, and which samples (of `rows`) the landmarks are."""
    cloud = landmarks.cloud(landmarks.reduce(x, seed=options.seed), options.landmarks)
    points = cloud.denoised[cloud.landmarks]
    return {
        "angles": circular.circular_coordinates(points, count).angles.T.tolist(),
        "samples": rows[landmarks.distinct(x, options.seed)[cloud.landmarks]].tolist(),
        "map": points[:, :2].tolist(),
    }


def of_views(x: Array) -> dict[str, float]:
    """What several augmented views of each image say, x (objects, views, d)."""
    return {
        "objects": x.shape[0],
        "views": x.shape[1],
        "lidar": rank.lidar(x),
        "alignment": shape.alignment(x),
    }
