"""Line 4 of a certificate: U over its mean under uniformity, by Weyl's criterion on the angles of images."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import angle_uniformity
from eval_suite.torus_head.certificate import intervals
from isotorus.randomness import generator


def summary(name: str, angles: NDArray[np.floating], seed: int) -> dict[str, Any]:
    """Return U over its null of the angles (n images, k), in radians, under `name`, for JSON.

    It is 1 on average for uniform angles; `name`_null is the range of 95 % of such samples. For the interval
    images are resampled. A resample has the mean U + null, so null is subtracted.
    """
    frequencies, weights = angle_uniformity.tested(angles.shape[1], seed)
    null = float(weights.sum())
    value = angle_uniformity.over_null(angles, frequencies, weights)
    w = weights.double().numpy() / null
    random = generator(seed)
    # Under uniformity the squared coefficients of many images, times n, are independent and exponential.
    under = np.percentile(random.standard_exponential((10_000, len(w))) @ w, intervals.BOUNDS)
    waves = np.exp(1j * angles @ frequencies.numpy().T)
    counts = random.multinomial(len(angles), np.full(len(angles), 1 / len(angles)), size=intervals.RESAMPLES)
    resampled = np.square(np.abs(counts @ waves)) @ w / len(angles) - 1
    return {
        name: value,
        f"{name}_interval": np.maximum(np.percentile(resampled, intervals.BOUNDS), 0).tolist(),
        f"{name}_null": under.tolist(),
    }
