"""Line 2 of a certificate: the verdict on the angles of many images that were turned uniformly."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.torus_head.certificate import cloud


def groups(actions: int) -> list[tuple[int, ...]]:
    """Return which actions are judged together: one alone as a circle, two as a torus, more by pairs."""
    return [(0,)] if actions == 1 else list(combinations(range(actions), 2))


def points(angles: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the angles (n, k) as points (n, 2k) on a flat torus, each circle of radius 1."""
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float64)


def summary(angles: NDArray[np.floating], images: int, jobs: int, seed: int) -> dict[str, Any]:
    """Return the verdict on the angles (n, actions), in radians, of `images` images, for JSON.

    `clouds` has the verdict on each group of actions. `verdict` is what they all say, or else lists them;
    `error_rate` is that of the first cloud; `as_wanted` says whether all are what they should be.
    """
    together = groups(angles.shape[1])
    clouds = [
        {
            "angles": list(group),
            **cloud.judge(points(angles[:, list(group)]), len(group), jobs=jobs, seed=seed),
        }
        for group in together
    ]
    said = list(dict.fromkeys(str(each["verdict"] or "not judged") for each in clouds))
    return {
        "verdict": " and ".join(said),
        "error_rate": clouds[0].get("error_rate"),
        "as_wanted": all(each["as_wanted"] for each in clouds),
        "samples": len(angles),
        "images": images,
        "clouds": clouds,
    }
