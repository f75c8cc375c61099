"""Mixup and CutMix: each image of a batch is mixed with its neighbour, and so are their targets.

The order of the data is random, so a neighbour is a random image. All random numbers of a pair depend
on (seed, step, place of the pair in the global batch), and not on the number of ranks.
"""

import torch
from torch import Tensor

from isotorus.errors import UserError
from isotorus.randomness import generator
from pretrain.config import Config
from pretrain.methods.config import SupervisedConfig

_STREAM = 0x3F1A
"""Number that separates the random numbers of mixing from all others of a step."""


def mixes(objective: SupervisedConfig) -> bool:
    """Return whether images are mixed."""
    return bool(objective.mixup or objective.cutmix)


def check_mixing(config: Config, objective: SupervisedConfig, world_size: int) -> None:
    """Raise UserError unless all images of a rank form pairs, and there are classes to mix."""
    if not mixes(objective):
        return
    if objective.task in ("regression", "segmentation"):
        raise UserError(
            f"objective.mixup and cutmix mix classes or labels of images, and the task is {objective.task}; "
            "set both to 0"
        )
    resolutions = config.views.resolutions()
    if len(resolutions) > 1 or resolutions[0].views > 1:
        raise UserError(
            "objective.mixup and cutmix mix images that have one view; set views.global_views=1 "
            "views.local_views=0"
        )
    if config.data.batch_size % (2 * world_size):
        raise UserError(
            f"data.batch_size={config.data.batch_size} does not give each of {world_size} ranks pairs of "
            f"images to mix; use a multiple of {2 * world_size}, or set objective.mixup=0 and cutmix=0"
        )


def mix(
    images: Tensor, targets: Tensor, objective: SupervisedConfig, seed: int, step: int, first: int
) -> tuple[Tensor, Tensor]:
    """Return images (n, C, H, W) and targets (n, outputs) of a step, mixed in pairs of neighbours.

    `first` is the place of the first image in the global batch; n is even.
    """
    from torchvision.transforms import (
        v2,
    )  # imported here because it takes seconds, and other runs do not need it

    kinds = [(v2.MixUp, objective.mixup), (v2.CutMix, objective.cutmix)]
    mixers = [kind(alpha=alpha) for kind, alpha in kinds if alpha]
    pairs = []
    with torch.random.fork_rng(devices=[]):
        for place in range(0, len(images), 2):
            drawn = generator(seed, step, (0, 0, _STREAM, first + place)).integers(2**62)
            torch.manual_seed(int(drawn))
            mixer = mixers[int(drawn) % len(mixers)]
            pairs.append(mixer(images[place : place + 2], targets[place : place + 2]))
    mixed, shares = zip(*pairs, strict=True)
    return torch.cat(mixed), torch.cat(shares)
