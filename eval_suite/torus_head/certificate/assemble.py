"""A whole certificate: the lines of the trained encoder, those of others, and what they come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.dataset.index import Dataset
from eval_suite.features import representation as kinds
from eval_suite.features.representation import Representation
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.torus_head.certificate import beside, conclusion, notes, unseen
from eval_suite.torus_head.certificate.measure import Angles, How, Orbits, of_angles, of_orbits, samples_of
from eval_suite.torus_head.certificate.unseen import Images
from isotorus.errors import UserError
from isotorus.nearest_name import listed
from pretrain.models.description import TorusDescription

STOPS = 12
"""Number of pictures of an image that is turned once round."""
SHOWN = 4
"""Largest number of images that are shown turning."""


@dataclass(frozen=True)
class Pictures:
    """What the page draws, besides the numbers."""

    turning: list[list[Tensor]]
    """The pictures of each shown image while each action turns it once round.

    They are listed by image and then by action, as (`STOPS`, channels, size, size).
    """
    read: list[NDArray[np.float64]]
    """The angles (actions, `STOPS`, angles) of each shown image in these pictures, in radians."""
    ours: Angles
    blank: Angles
    """The same lines of the untrained encoder."""
    orbits: Orbits
    orbit_images: list[Tensor]
    """The upright image (channels, size, size) of each orbit."""


def certificate(
    checkpoint: Checkpoint, torus: TorusDescription, data: Dataset, others: Sequence[Checkpoint], how: How
) -> tuple[dict[str, Any], Pictures]:
    """Return the content of certificate.json, and what its page draws.

    `others` have no angles: only their orbits are measured. Raises UserError if no image is changed by every
    action.
    """
    trained, blank = beside.trained(checkpoint, torus.size), beside.untrained(checkpoint, torus.size)
    for r in (trained, blank):
        r.model.to(how.device)
    samples = unseen.draw(data, max(how.samples, how.images), how.seed)
    images = _images(trained, data, samples, torus)
    changed = _first(images, how.images).changed()
    if not changed.any():
        raise UserError(
            f"not one of {len(changed)} images of {data.path} is changed by all of "
            f"{listed(torus.actions)}; grey images have no hue to turn: certify on other images"
        )
    chosen = np.flatnonzero(changed)[: how.orbits]
    ours, before = (of_angles(r, images, tuple(torus.orders), changed, how) for r in (trained, blank))

    def judge(r: Representation) -> Orbits:
        r.model.to(how.device)
        return of_orbits(r, _images(r, data, samples[chosen], torus), samples[chosen], how)

    orbits = judge(trained)
    stands_beside = {
        "untrained": {**before.numbers, **judge(blank).numbers},
        "pixels": judge(beside.pixels(checkpoint, torus.size)).numbers,
    }
    for other in others:
        name = other.name if other.name not in stands_beside else f"{other.name} (run)"
        stands_beside[name] = judge(kinds.pretrained(other, ())).numbers
    seen = checkpoint.encoder.data_fingerprint == data.fingerprint
    about_images = notes.of_images(changed, len(chosen), how.orbits, seen=seen)
    numbers = {**ours.numbers, **orbits.numbers}
    actions, orders = torus.actions, torus.orders
    numbers |= conclusion.conclude(numbers, actions, orders)
    stands_beside["untrained"] |= conclusion.conclude(stands_beside["untrained"], actions, orders)
    written = {
        "inputs": _inputs(checkpoint, torus, data, how),
        **numbers,
        "lead": conclusion.lead(numbers, actions),
        "added": conclusion.added(numbers, stands_beside["untrained"], stands_beside["pixels"]),
        "notes": [*notes.of_actions(checkpoint.encoder.torus, torus), *about_images],
        "beside": stands_beside,
    }
    return written, _pictures(images, chosen, ours, before, orbits, samples_of(orders, how))


def _images(r: Representation, data: Dataset, samples: NDArray[np.int64], torus: TorusDescription) -> Images:
    pixels = unseen.read(data, samples, r.channels, r.size, r.square)
    return Images(pixels, tuple(torus.actions), torus.border)


def _first(images: Images, count: int) -> Images:
    return Images(images.pixels[:count], images.actions, images.border)


def _inputs(checkpoint: Checkpoint, torus: TorusDescription, data: Dataset, how: How) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "step": checkpoint.step,
        "weights_sha256": checkpoint.weights_sha256,
        "data": str(data.path),
        "data_fingerprint": data.fingerprint,
        "actions": list(torus.actions),
        "orders": list(torus.orders),
        "angles": checkpoint.angles,
        "size": torus.size,
        "border": torus.border,
        "seed": how.seed,
        "images": how.images,
        "orbit_samples": how.orbit_samples,
    }


def _pictures(
    images: Images, chosen: NDArray[np.int64], ours: Angles, blank: Angles, orbits: Orbits, steps: int
) -> Pictures:
    """Turn the first images of the orbits once round for the page."""
    k, turning, read = len(images.actions), [], []
    stops = np.arange(STOPS) * steps // STOPS
    for i in chosen[:SHOWN]:
        if i >= len(ours.paths):
            break
        of_image = []
        for place in range(k):
            turns = np.zeros((STOPS, k))
            turns[:, place] = stops * 2 * np.pi / steps
            of_image.append(images.turned(np.full(STOPS, i), turns))
        turning.append(of_image)
        read.append(ours.paths[i][:, stops])
    upright = [images.turned([i], np.zeros((1, k)))[0] for i in chosen]
    return Pictures(turning, read, ours, blank, orbits, upright)
