"""Images that a certificate turns: drawn by seed, read once, turned and embedded in batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.dataset.index import Dataset
from data_pipeline.transforms.actions import Action, Border, turn
from data_pipeline.transforms.physical import Scales, Square
from eval_suite import progress
from eval_suite.features import embed
from eval_suite.features.images import normalise, unit_range
from eval_suite.features.representation import Representation
from isotorus.errors import UserError
from isotorus.randomness import generator

STREAM = 0x0CE27
"""Stream of the random numbers that choose images."""
CHANGES = 0.02
"""An action changes an image if a turn by a quarter, half or three quarters moves its pixels, on the scale of
0 to 1, by at least this much (root mean square); a grey image has no hue to turn."""


@dataclass(frozen=True)
class Images:
    """Images of one size with the actions that turn them."""

    pixels: Tensor
    """(n, channels, size, size), uint8 or uint16."""
    actions: tuple[Action, ...]
    border: Border

    def turned(self, rows: Sequence[int] | NDArray[np.integer], turns: NDArray[np.floating]) -> Tensor:
        """Return the images `rows` (k,) turned by `turns` (k, actions) radians, as floats of about 0 to 1."""
        pixels = unit_range(self.pixels[torch.as_tensor(np.asarray(rows))])
        return turn(pixels, self.actions, torch.from_numpy(np.asarray(turns, np.float32)), self.border)

    @torch.inference_mode()
    def embedded(
        self,
        r: Representation,
        rows: Sequence[int] | NDArray[np.integer],
        turns: NDArray[np.floating],
        batch_size: int,
        device: torch.device,
        doing: str,
    ) -> dict[str, NDArray[np.float32]]:
        """Return the feature sets (k, width) of the images `rows` (k,) turned by `turns` (k, actions).

        `doing` is said while it lasts. Raises UserError for features that are not finite.
        """
        rows = np.asarray(rows)
        parts: dict[str, list[Tensor]] = {}
        for start in range(0, len(rows), batch_size):
            progress.doing(f"{doing}, {start:,} of {len(rows):,}")
            here = slice(start, start + batch_size)
            images = self.turned(rows[here], turns[here]).to(device)
            for name, x in r.embed_normalised(normalise(images, r.mean, r.std)).items():
                parts.setdefault(name, []).append(x.cpu())
        found = {name: torch.cat(x).numpy() for name, x in parts.items()}
        for name, features in found.items():
            if not np.isfinite(features).all():
                raise UserError(
                    f"{r.name} gives NaN or infinite features ({name}); certify a checkpoint from before its "
                    "training diverged"
                )
        return found

    def changed(self) -> NDArray[np.bool_]:
        """Return which images (n,) every action changes, by `CHANGES`."""
        every = np.ones(len(self.pixels), dtype=bool)
        rows = np.arange(len(self.pixels))
        zero = np.zeros((len(rows), len(self.actions)))
        for start in range(0, len(rows), 256):
            here = slice(start, start + 256)
            upright = self.turned(rows[here], zero[here])
            for place in range(len(self.actions)):
                most = np.zeros(len(upright))
                for quarters in (1, 2, 3):
                    turns = zero[here].copy()
                    turns[:, place] = quarters * np.pi / 2
                    moved = (self.turned(rows[here], turns) - upright).square().mean((1, 2, 3)).sqrt()
                    most = np.maximum(most, moved.numpy())
                every[here] &= most >= CHANGES
        return every


def draw(data: Dataset, most: int, seed: int) -> NDArray[np.int64]:
    """Draw at most `most` different samples, in random order."""
    return generator(seed, STREAM).permutation(len(data))[:most]


def read(
    data: Dataset,
    samples: Sequence[int] | NDArray[np.integer],
    channels: int,
    size: int,
    square: Square | None = None,
) -> Tensor:
    """Read the centre crops (n, C, size, size) of samples, with a `square` those of its physical size.

    Raises UserError for unreadable ones.
    """
    images = []
    scales = square and Scales(data, square.unit)
    for number, i in enumerate(samples):
        progress.doing(f"reading images, {number:,} of {len(samples):,}")
        images.append(embed.read_views(data, int(i), channels, [size], square, scales)[0])
    return torch.stack(images)
