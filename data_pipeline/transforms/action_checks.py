"""Which actions suit which images: what is refused before a run, and what is only warned of."""

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipeline.dataset.index import Corrupt, Dataset
from data_pipeline.decoders.pixels import Pixels
from data_pipeline.transforms.actions import SHIFTS
from data_pipeline.transforms.config import Action, AugmentConfig, ViewsConfig
from isotorus.errors import UserError
from isotorus.randomness import rows

_IMAGES = 16
"""Images that are looked at for a seam."""
_SEAM = 2.0
"""An image is periodic if opposite edges differ at most this many times as much as neighbouring lines."""


def refuse_rotations(actions: Sequence[Action], augment: AugmentConfig) -> None:
    """Raise `UserError` if views are rotated at random beside an action that rotates by known angles."""
    for name in ("quarter_turns", "rotation_probability"):
        if "rotation" in actions and (chance := getattr(augment, name)):
            raise UserError(
                f"augment.{name}={chance:g} beside views.actions=[rotation]: content would learn to ignore "
                f"turns, and angles to know them; set augment.{name}=0"
            )


def refuse_unfit(actions: Sequence[Action], channels: int, datasets: Sequence[Dataset] = ()) -> None:
    """Raise `UserError` if `actions` has the hue, and the encoder's input or the images have no colours."""
    if "hue" not in actions:
        return
    if channels != 3:
        raise UserError(
            f"views.actions has hue, which turns red, green and blue, but data.channels={channels}; leave "
            "hue out, or use data.channels=3 for colour images"
        )
    for dataset in datasets:
        if dataset.channels != 3:
            raise UserError(
                f"views.actions has hue, but the images in {dataset.path} are grey "
                f"({dataset.channels} channel, {dataset.depth} bit) and look alike at every angle; leave hue "
                "out, or use colour images"
            )


def doubts(views: ViewsConfig, datasets: Sequence[Dataset], seed: int) -> Iterator[str]:
    """Yield a sentence for each reason to doubt that the actions suit the images.

    If there are shifts, this decodes up to 16 images of each data set, drawn by `seed`.
    """
    shifts = [action for action in views.actions if action in SHIFTS]
    if not shifts:
        return
    named = " and ".join(shifts)
    if "rotation" in views.actions:
        yield (
            f"views.actions has rotation and {named}, which do not commute: together they are no action of a "
            "torus, and their angles cannot all be learned; use the rotation or the shifts"
        )
    for resolution in views.resolutions():
        if resolution.turned and resolution.scale != (1, 1):
            low, high = resolution.scale
            yield (
                f"views.actions has {named}, but views.{resolution.kind}_scale=[{low:g}, {high:g}] crops "
                "parts of images: a part is not periodic, so a cyclic shift moves a seam through it, which "
                "shows the angle whatever the image is; use "
                f"views.{resolution.kind}_scale=[1, 1] and periodic images"
            )
            return
    for dataset in datasets:
        seams = [_seams(pixels, shifts) for pixels in _some(dataset, seed)]
        worst = np.median(seams, axis=0).max() if seams else 0.0
        if worst > _SEAM:
            yield (
                f"views.actions has {named}, but the images in {dataset.path} are not periodic: opposite "
                f"edges differ {worst:.1f} times as much as neighbouring lines of pixels, so a cyclic shift "
                f"moves a seam through them, which shows the angle whatever the image is; leave {named} out"
            )


def _some(dataset: Dataset, seed: int) -> Iterator[Pixels]:
    """Yield some images, without those that cannot be read."""
    for i in rows(len(dataset), _IMAGES, seed).tolist():
        try:
            yield dataset.pixels(i, None, None)
        except (Corrupt, ValueError):
            continue


def _seams(pixels: Pixels, shifts: Sequence[Action]) -> list[float]:
    """Return how many times as much opposite edges differ as neighbouring lines of pixels, for each shift."""
    found = []
    for shift in shifts:
        lines = np.moveaxis(pixels.astype(np.float64), 1 if shift == "shift_x" else 0, 0)
        steps = np.abs(np.diff(lines, axis=0)).mean() if len(lines) > 1 else 0.0
        found.append(float(np.abs(lines[0] - lines[-1]).mean() / max(steps, 1e-9)))
    return found
