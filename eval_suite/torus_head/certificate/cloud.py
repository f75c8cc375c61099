"""The verdict on a cloud that should be the product of the circles of some actions, ready for JSON."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.attempts import reason
from eval_suite.geometry import verdict
from isotorus.errors import UserError

BETTI = {1: [1, 1, 0], 2: [1, 2, 1]}
"""Betti numbers of a product of one or two circles."""
SHAPE = {1: "circle", 2: "flat torus T²"}
"""How the verdict on such a product ends; a flat torus may be a rectangular one."""
PLACES = {1: "circle", 2: "torus"}
"""A word for such a product, of any sides."""


def judge(x: NDArray[np.floating], circles: int, *, jobs: int = 1, seed: int = 0) -> dict[str, Any]:
    """Return what the verdict says about rows `x` (n, d) that should be a product of `circles` circles.

    - `verdict`, `error_rate`, `calibration`, `topology`, `evidence`: those of `verdict.decide`;
    - `measured`: the quantities that it is decided by;
    - `homology`: the bars, for the page;
    - `as_wanted`: whether the verdict is that of the product; `topology_as_wanted`: whether its Betti numbers
      over all fields are.

    A cloud that cannot be judged, such as one point, has the verdict None and a `reason`.
    """
    try:
        evidence = verdict.measure(x, jobs=jobs, seed=seed)
    except (UserError, np.linalg.LinAlgError) as error:
        return {"verdict": None, "as_wanted": False, "topology_as_wanted": False, "reason": reason(error)}
    decided = verdict.decide(evidence.measured).to_json()
    name = decided.pop("name")
    return {
        "verdict": name,
        **decided,
        "as_wanted": name.endswith(SHAPE[circles]),
        "topology_as_wanted": all(numbers == BETTI[circles] for numbers in evidence.measured.betti.values()),
        "measured": vars(evidence.measured),
        "homology": evidence.homology.to_json(),
    }
