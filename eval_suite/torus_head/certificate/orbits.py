"""Line 3 of a certificate: the verdict on all turns of one image, in the encoder's own embedding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from eval_suite.torus_head.certificate import cloud, intervals
from eval_suite.torus_head.certificate.angle_clouds import groups
from isotorus.randomness import generator

STREAM = 0x0AB17
"""Stream of the random turns of an orbit."""


def turns(count: int, actions: int, seed: int, image: int) -> NDArray[np.float64]:
    """Draw the turns (count, actions), in radians, that make the orbit of one image.

    They are uniform in the actions of one group of `angle_clouds.groups` and 0 in the others; with more than
    two actions images take the pairs in turn.
    """
    group = list(groups(actions)[image % len(groups(actions))])
    drawn = np.zeros((count, actions))
    random = generator(seed, STREAM, (0, image, 0, 0))
    drawn[:, group] = random.uniform(0, 2 * np.pi, (count, len(group)))
    return drawn


def judge(
    clouds: Sequence[NDArray[np.floating]], samples: Sequence[int], actions: int, jobs: int, seed: int
) -> dict[str, Any]:
    """Judge the orbit (n, d) of each image and return a summary for JSON.

    `tori` is the number of orbits that the verdict calls a flat torus (for one action: a circle), `homology`
    that of orbits with its Betti numbers, whatever their spectrum, both of `images`, with intervals of their
    shares. `each` has the samples with their verdicts.
    """
    circles = min(actions, 2)
    judged: list[dict[str, Any]] = Parallel(n_jobs=min(jobs, max(len(clouds), 1)))(
        delayed(cloud.judge)(x, circles, seed=seed) for x in clouds
    )
    tori = np.array([found["as_wanted"] for found in judged], dtype=bool)
    homology = np.array([found["topology_as_wanted"] for found in judged], dtype=bool)
    return {
        "tori": int(tori.sum()),
        "images": len(judged),
        **intervals.share("share", tori),
        "homology": int(homology.sum()),
        **intervals.share("homology_share", homology),
        "each": [{"sample": int(i), **found} for i, found in zip(samples, judged, strict=True)],
    }
