"""All lines of a certificate of one encoder: those about its angles, and those about orbits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from eval_suite import progress
from eval_suite.features.representation import Representation
from eval_suite.torus_head.certificate import angle_clouds, equivariance, orbits, uniformity, windings
from eval_suite.torus_head.certificate.unseen import Images
from eval_suite.usefulness.angle_retrieval import angles_of
from isotorus.randomness import generator

STREAM = 0x7024
"""Stream of the random turns of many images."""
FEWEST_SAMPLES = 1_000
"""Smallest number of turned images for the verdict on angles; fewer images are turned several times each."""
CURVES = 40
"""Number of images whose angles along the paths are kept for the page."""


@dataclass(frozen=True)
class How:
    """How much is measured, and with what."""

    images: int = 200
    """Images that are turned once round by each action."""
    steps: int = 36
    """Samples of such a path, or more for an angle that goes round often; see `samples_of`."""
    samples: int = 2_000
    """Largest number of images of the other lines about angles."""
    orbits: int = 10
    """Largest number of images whose orbit is judged."""
    orbit_samples: int = 1_200
    """Turns of each of these; a tenth of it are landmarks."""
    seed: int = 0
    batch_size: int = 64
    jobs: int = 1
    """Processes for persistent homology."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Angles(NamedTuple):
    """What was measured of the angles, and what the page draws of it."""

    numbers: dict[str, Any]
    """The lines about angles, for JSON."""
    cloud: NDArray[np.float64]
    """(n, actions) the angles of images that were turned uniformly, in radians."""
    paths: NDArray[np.float64]
    """(`CURVES` images, actions, samples, angles) angles along the closed paths."""
    missed: NDArray[np.float64]
    """(n, actions) `equivariance.errors` in degrees."""


def of_angles(
    r: Representation, images: Images, orders: tuple[int, ...], changed: NDArray[np.bool_], how: How
) -> Angles:
    """Measure windings, verdict on the angles, uniformity and equivariance error of an angle head.

    `images` has all images; the first ones are turned round, and `changed` says which of those every action
    changes.
    """
    n, k = len(images.pixels), len(orders)

    def angles(rows: NDArray[np.integer], turns: NDArray[np.floating], doing: str) -> NDArray[np.float64]:
        found = images.embedded(r, rows, turns, how.batch_size, how.device, f"{r.name}, {doing}")
        return angles_of(found["angles"])

    paths = _paths(angles, len(changed), k, samples_of(orders, how))
    random = generator(how.seed, STREAM)
    many = np.arange(max(n, FEWEST_SAMPLES)) % n
    first = random.uniform(0, 2 * np.pi, (len(many), k))
    second = random.uniform(0, 2 * np.pi, (n, k))
    turned = angles(many, first, "angles of turned images")
    again = angles(np.arange(n), second, "equivariance error")
    upright = angles(np.arange(n), np.zeros((n, k)), "angles of upright images")
    missed = equivariance.errors(turned[:n], again, (first[:n], second), orders)
    numbers = {
        "windings": windings.summary(paths, images.actions, orders, changed, how.seed),
        "angles": angle_clouds.summary(turned[:, :k], n, how.jobs, how.seed),
        **uniformity.summary("uniformity_over_null", turned[:n, :k], how.seed),
        **uniformity.summary("uniformity_over_null_upright", upright[:, :k], how.seed),
        "equivariance_error": equivariance.summary(missed, images.actions, how.seed),
        "spread": _spread(turned[:n, :k]),
    }
    return Angles(numbers, turned[:, :k], paths[:CURVES], missed)


class Orbits(NamedTuple):
    """What was measured of the orbits of single images, and the orbits themselves."""

    numbers: dict[str, Any]
    """Summaries of `orbits.judge` for JSON: `orbits` in the embedding, `orbits_pose` in the set `pose`."""
    clouds: list[dict[str, NDArray[np.float32]]]
    """The feature sets (n, width) of each image under its turns."""
    turns: list[NDArray[np.float64]]
    """(n, actions) these turns, in radians."""


def of_orbits(r: Representation, images: Images, samples: NDArray[np.int64], how: How) -> Orbits:
    """Judge the orbits of all `images` in the embedding and, where there is one, in the set `pose`.

    `samples` are the numbers of the images in their data set.
    """
    k, clouds = len(images.actions), []
    drawn = [orbits.turns(how.orbit_samples, k, how.seed, place) for place in range(len(images.pixels))]
    for place, turns in enumerate(drawn):
        doing = f"{r.name}, orbit {place + 1} of {len(images.pixels)}"
        rows = np.full(len(turns), place)
        clouds.append(images.embedded(r, rows, turns, how.batch_size, how.device, doing))
    found = {}
    for name, key in (("embedding", "orbits"), ("pose", "orbits_pose")):
        if all(name in sets for sets in clouds):
            progress.doing(f"{r.name}, shapes of the orbits in the {name}")
            found[key] = orbits.judge(
                [sets[name] for sets in clouds], samples.tolist(), k, how.jobs, how.seed
            )
    return Orbits(found, clouds, drawn)


def samples_of(orders: Sequence[int], how: How) -> int:
    """Return the number of samples of a path, an even multiple of 12: twelve at least for each turn."""
    return max(how.steps, 12 * max(orders))


def _paths(angles: Any, count: int, actions: int, steps: int) -> NDArray[np.float64]:
    """Return the angles (count, actions, steps, angles) of the first images along each action's full turn."""
    turns = np.zeros((count, actions, steps, actions))
    for place in range(actions):
        turns[:, place, :, place] = np.arange(steps) * 2 * np.pi / steps
    rows = np.repeat(np.arange(count), actions * steps)
    found = angles(rows, turns.reshape(-1, actions), "windings")
    return np.asarray(found).reshape(count, actions, steps, -1)


def _spread(angles: NDArray[np.float64]) -> list[float]:
    """Return the circular standard deviation of each angle (n, k) over images, in degrees."""
    length = np.abs(np.exp(1j * angles).mean(axis=0)).clip(1e-300, 1)
    return np.rad2deg(np.sqrt(-2 * np.log(length))).tolist()
