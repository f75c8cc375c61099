"""What the lines of a certificate come to, in words: what the head is, and what training added."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval_suite.torus_head.certificate.cloud import PLACES
from isotorus.nearest_name import listed

ENOUGH = 0.9
"""The lower end of the interval of the share of right windings has to reach this for a certificate."""
COMMON = 0.5
"""A winding matrix is that of the head if at least this share of the images has it."""
STILL = 1.0
"""Angles that spread over images by less than this many degrees are constant."""

WORDS = {"rotation": "rotation", "hue": "hue", "shift_x": "shifts in x", "shift_y": "shifts in y"}
"""How the actions are called in sentences."""


def conclude(numbers: Mapping[str, Any], actions: Sequence[str], orders: Sequence[int]) -> dict[str, Any]:
    """Return `certified`, `name` and `headline` for the lines of one angle head, for JSON.

    A head is certified if its windings are right for at least `ENOUGH` of the images, by the lower end of the
    interval, and if the verdict on its angles is that of the product of the actions' circles. Any other head
    gets the name of what it is.
    """
    name, headline = _named(numbers, actions, orders)
    return {"certified": name == "certified", "name": name, "headline": headline}


def _named(numbers: Mapping[str, Any], actions: Sequence[str], orders: Sequence[int]) -> tuple[str, str]:
    k, found, angles = len(actions), numbers["windings"], numbers["angles"]
    known = listed([WORDS[action] for action in actions])
    commonest = np.array(found["commonest"])
    what = PLACES[min(k, 2)]
    if max(numbers["spread"]) < STILL:
        return "constant", f"No {what}: the angles are the same for every image"
    if found["right_share_interval"][0] >= ENOUGH:
        if angles["as_wanted"]:
            turning = "its angle turns" if k == 1 else f"its {_number(k)} angles turn"
            return "certified", f"A {what} that is there: {turning} with {known}"
        return (
            f"turns, but no {what}",
            f"The angles turn with {known}, but the verdict on their cloud is: {angles['verdict']}",
        )
    if found["commonest_share"] < COMMON:
        return "no common winding", f"No {what}: images disagree about how often the angles turn with {known}"
    if not commonest.any():
        return "invariant", f"No {what}: the angles ignore {known}"
    share = f"{100 * found['commonest_share']:.0f} % of the images"
    if found["commonest"] == found["target"]:
        low = 100 * found["right_share_interval"][0]
        return (
            "not often enough",
            f"Not certified: the angles turn with {known} for {share}, by its interval for {low:.0f} % at "
            f"least; a certificate needs {100 * ENOUGH:.0f} %",
        )
    square = commonest[:k]
    diagonal = np.diag(np.diag(square))
    said = "; ".join(_column(action, commonest[:, place]) for place, action in enumerate(actions))
    if np.array_equal(square, diagonal) and diagonal.diagonal().all() and not commonest[k:].any():
        return "other winding number", f"Stuck at another winding number, for {share}: {said}"
    if abs(round(float(np.linalg.det(square.astype(float))))) == abs(int(np.prod(orders))):
        return "other basis", f"Angles in another basis than the actions, for {share}: {said}"
    ignored = [WORDS[action] for place, action in enumerate(actions) if not commonest[:, place].any()]
    if ignored:
        return "partly invariant", f"No {what}: the angles ignore {listed(ignored)}, for {share}; {said}"
    return "wrong windings", f"No {what} of these actions, for {share}: {said}"


def added(ours: Mapping[str, Any], untrained: Mapping[str, Any], pixels: Mapping[str, Any]) -> str:
    """Say in two sentences what training added to an untrained encoder and to raw pixels."""
    now, before = ours["windings"], untrained["windings"]
    orbits, blank, raw = (found["orbits"] for found in (ours, untrained, pixels))
    gained = "Training made the angles follow the image"
    if ours["certified"] and untrained["certified"]:
        gained = "Training added nothing that this certificate asks for"
    elif now["right_share_interval"][0] <= before["right_share_interval"][1]:
        gained = "Training made no clear difference to the windings"
    elif not ours["certified"]:
        gained = "Training made more windings right, but not enough"
    return (
        f"{gained}: windings were right for {_percent(before['right_share'])} of the images before it and "
        f"are right for {_percent(now['right_share'])} now; the verdict on the angles was "
        f"“{untrained['angles']['verdict']}” and is “{ours['angles']['verdict']}”. Orbits of single images "
        f"in the embedding: {_tori(orbits)} now, {_tori(blank)} untrained, {_tori(raw)} as raw pixels."
    )


def lead(numbers: Mapping[str, Any], actions: Sequence[str]) -> str:
    """Say in a sentence what the windings of one head are, with the interval."""
    found = numbers["windings"]
    low, high = found["right_share_interval"]
    if len(actions) == 1:
        turning = f"once round by {WORDS[actions[0]]}, the angle turns as often as it should"
    else:
        turning = (
            "once round by an action, the action's own angle turns as often as it should and no other does"
        )
    errors = listed(
        [
            f"{error['median']:.1f}° for {WORDS[action]}"
            for action, error in numbers["equivariance_error"].items()
        ]
    )
    return (
        f"When an unseen image is turned {turning}, for "
        f"{_percent(found['right_share'])} of {found['images']:,} images (95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f}). The angles miss a turn by a median of {errors}."
    )


def _column(action: str, turns: Any) -> str:
    numbers = ", ".join(f"{n:+d}" if n else "0" for n in turns)
    return f"a full turn of {WORDS[action]} turns the angles by ({numbers})"


def _number(count: int) -> str:
    return {2: "two", 3: "three", 4: "four"}.get(count, str(count))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _tori(found: Mapping[str, Any]) -> str:
    return f"{found['tori']} of {found['images']}"
