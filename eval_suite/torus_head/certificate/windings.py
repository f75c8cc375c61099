"""Line 1 of a certificate: how often each angle turns while an image is turned once round by each action.

The counts of one image are its winding matrix W, angles by actions. It should be the orders of the actions on
the diagonal, and 0 elsewhere, also for angles that belong to no action.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from eval_suite.torus_head.certificate import intervals
from pretrain.geometry.winding import winding


class Counted(NamedTuple):
    """What was counted on closed paths of n images."""

    matrix: NDArray[np.int64]
    """(n, angles, actions) turns of each angle along the path of each action."""
    margin: NDArray[np.float64]
    """(n,) π minus the largest step of any angle between two samples of a path, in radians."""


def count(paths: NDArray[np.floating]) -> Counted:
    """Count turns along closed paths of angles in radians, (n images, actions, samples, angles)."""
    wound = winding(torch.from_numpy(np.ascontiguousarray(paths)), closed=True)
    return Counted(
        wound.number.long().transpose(1, 2).numpy(),
        wound.margin.flatten(1).amin(1).numpy().astype(np.float64),
    )


def target(orders: Sequence[int], angles: int) -> NDArray[np.int64]:
    """Return the matrix (angles, actions) that a head with these orders of the actions should have."""
    return np.eye(angles, len(orders), dtype=np.int64) * np.asarray(orders)


def summary(
    paths: NDArray[np.floating],
    actions: Sequence[str],
    orders: Sequence[int],
    turned: NDArray[np.bool_],
    seed: int,
) -> dict[str, Any]:
    """Summarise `paths` (n, actions, samples, angles), in radians, for JSON.

    - `right_share`: share of images whose matrix is `target`; `det_share`: share with |det W| = product of
      the orders, W without the rows of angles that belong to no action; both with intervals;
    - `of_each_action`: share of images whose column is right, by action;
    - `commonest`: the most frequent matrix, and `commonest_share` of the images that have it;
    - `margin`: the median over images of `Counted.margin` with its interval, and the least;
    - `same_at_half`: share of images with the same matrix from every second sample;
    - `visible`: the same right share over the images that every action changes (`turned`, (n,)).
    """
    counted, half = count(paths), count(paths[:, :, ::2])
    wanted = target(orders, paths.shape[3])
    right = (counted.matrix == wanted).all((1, 2))
    columns = (counted.matrix == wanted).all(1)
    square = counted.matrix[:, : len(orders)].astype(np.float64)
    det = np.rint(np.abs(np.linalg.det(square))) == np.prod(np.abs(orders))
    matrices, numbers = np.unique(counted.matrix, axis=0, return_counts=True)
    return {
        **intervals.share("right_share", right),
        **intervals.share("det_share", det),
        "images": len(paths),
        "samples": paths.shape[2],
        **intervals.quantiles(["margin"], counted.margin, [0.5], seed),
        "margin_least": float(counted.margin.min()),
        "same_at_half": float((half.matrix == counted.matrix).all((1, 2)).mean()),
        "target": wanted.tolist(),
        "commonest": matrices[numbers.argmax()].tolist(),
        "commonest_share": float(numbers.max() / len(paths)),
        "of_each_action": {
            action: intervals.share("right_share", columns[:, place]) for place, action in enumerate(actions)
        },
        "visible": {**intervals.share("right_share", right[turned]), "images": int(turned.sum())},
    }
