"""Line 5 of a certificate: by how many degrees the angles miss a known turn of an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.torus_head.certificate import intervals


def errors(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    turns: tuple[NDArray[np.floating], NDArray[np.floating]],
    orders: Sequence[int],
) -> NDArray[np.float64]:
    """Return δ = θ(A_a x) - θ(A_b x) - order·(a - b) in degrees, wrapped to ±180, for n images: (n, actions).

    `first` and `second` (n, angles ≥ actions) are θ after the turns a and b, `turns` (n, actions) each, all
    in radians. An angle that says nothing has |δ| with median 90 and 90th percentile 162 degrees.
    """
    k = len(orders)
    missed = first[:, :k] - second[:, :k] - np.asarray(orders) * (turns[0] - turns[1])
    return np.rad2deg(np.angle(np.exp(1j * missed)))


def summary(missed: NDArray[np.floating], actions: Sequence[str], seed: int) -> dict[str, Any]:
    """Return median and 90th percentile of |δ| (n, actions) in degrees by action, each with its interval."""
    return {
        action: intervals.quantiles(["median", "p90"], np.abs(missed[:, place]), [0.5, 0.9], seed)
        for place, action in enumerate(actions)
    }
