"""What a reader of a certificate has to know about its actions and its images."""

import numpy as np
from numpy.typing import NDArray

from eval_suite.torus_head.certificate.conclusion import WORDS
from isotorus.nearest_name import listed
from pretrain.models.description import TorusDescription


def of_actions(learned: TorusDescription | None, torus: TorusDescription) -> list[str]:
    """Say by which actions the run was trained, unless they are those of the certificate."""
    if learned and (learned.actions, learned.orders) == (torus.actions, torus.orders):
        return []
    trained = learned and _with_orders(learned)
    return [
        f"note: the run was trained with {trained or 'no actions'} and is held against "
        f"{_with_orders(torus)}, as asked for"
    ]


def of_images(changed: NDArray[np.bool_], orbits: int, wanted: int, *, seen: bool) -> list[str]:
    """Say which images are not changed by every action, and whether training has seen them.

    `orbits` is how many orbits were judged of those `wanted`.
    """
    notes = []
    if seen:
        notes.append("note: these are the images that the run was trained on, not unseen ones")
    if still := int((~changed).sum()):
        notes.append(
            f"note: {still} of {len(changed)} images are not changed by every action (grey images have no "
            "hue); orbits are of the others"
        )
    if orbits < wanted:
        notes.append(f"note: {orbits} orbits instead of {wanted}, as no more images change")
    return notes


def _with_orders(torus: TorusDescription) -> str:
    """Name the actions, each with its order unless that is 1."""
    pairs = zip(torus.actions, torus.orders, strict=True)
    return listed([WORDS[action] + (f" of order {order}" if order > 1 else "") for action, order in pairs])
