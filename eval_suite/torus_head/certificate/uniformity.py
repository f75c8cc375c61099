"""Line 4 of a certificate: U over its mean under uniformity, by Weyl's criterion on the angles of images."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval_suite.torus_head.certificate import intervals
from isotorus.randomness import generator
from pretrain.objectives.toroidal import torus_uniformity
from pretrain.objectives.torus_frequencies import all_frequencies, balanced_s, sample_frequencies

CUTOFF, RANDOM = 3, 1024
"""Largest frequency that is tested for up to three angles; number of random frequencies for more."""


def summary(name: str, angles: NDArray[np.floating], seed: int) -> dict[str, Any]:
    """Return U over its null of the angles (n images, k), in radians, under `name`, for JSON.

    It is 1 on average for uniform angles; `name`_null is the range of 95 % of such samples. For the interval
    images are resampled. A resample has the mean U + null, so null is subtracted.
    """
    k = angles.shape[1]
    s = balanced_s(k)
    if k <= 3:
        frequencies, weights = all_frequencies(k, CUTOFF, s)
    else:
        drawn, each = sample_frequencies(k, RANDOM, s, seed, 0)
        frequencies, often = torch.unique(drawn, dim=0, return_counts=True)
        weights = often * each[0]
    null = float(weights.sum())
    value = (
        float(torus_uniformity(torch.from_numpy(np.asarray(angles, np.float64)), frequencies, weights)) / null
    )
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
