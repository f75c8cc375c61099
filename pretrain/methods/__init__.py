"""Methods: trainable heads that turn embeddings into a loss, one file each, chosen by `objective.kind`.

A head is imported where it is built, so that `config.py` can be read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_pipeline.transforms.config import ViewsConfig
from isotorus.errors import UserError
from pretrain.methods.config import (
    ONE_CELL,
    Grid,
    JEPAConfig,
    LeJEPAConfig,
    ObjectiveConfig,
    SupervisedConfig,
    TorusConfig,
    Turned,
    reads_masks,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


def build_head(
    config: ObjectiveConfig, embedding_width: int, n_global: int, seed: int, turned: Turned | None = None
) -> nn.Module:
    """Build the trainable head of a method, with weights drawn from `seed` alone.

    Raises `UserError` if the method does not fit the embedding, or the actions on views.
    """
    from pretrain.methods.jepa import JEPAHead
    from pretrain.methods.lejepa import LeJEPAHead
    from pretrain.methods.supervised import SupervisedHead
    from pretrain.methods.torus import TorusHead

    if isinstance(config, LeJEPAConfig):
        return LeJEPAHead(embedding_width, config, n_global, seed)
    if isinstance(config, JEPAConfig):
        if turned:
            raise UserError(
                "objective.kind=jepa does not know views.actions; use objective.kind=torus, or leave the "
                "actions out"
            )
        return JEPAHead(embedding_width, config, seed)
    if isinstance(config, SupervisedConfig):
        return SupervisedHead(embedding_width, config, seed)
    return TorusHead(embedding_width, config, n_global, seed, turned)


def takes_actions(config: ObjectiveConfig, views: ViewsConfig) -> bool:
    """Return whether the head is given the angles by which views were turned.

    LeJEPA treats turned views as it treats all augmented views.
    """
    return isinstance(config, TorusConfig) and bool(views.actions)


def inputs_beside(
    config: ObjectiveConfig,
    n_global: int,
    views: int,
    images: int,
    turned: Turned | None,
    grid: Grid = ONE_CELL,
) -> list[Tensor]:
    """Return blank tensors for what a head takes after the embeddings and the step.

    `grid` has the sizes of maps and masks, if masks are predicted.
    """
    import torch

    if isinstance(config, JEPAConfig):
        return [torch.zeros(n_global, images, config.projector.width)]
    if isinstance(config, TorusConfig) and turned:
        return [torch.zeros(views, images, len(turned.actions))]
    if reads_masks(config):
        return [torch.zeros(views, images, grid.side, grid.side, dtype=torch.uint8)]
    if isinstance(config, SupervisedConfig):
        return [torch.zeros(1, images, config.outputs)]
    return []


def blank_embeddings(
    config: ObjectiveConfig, views: int, images: int, width: int, grid: Grid = ONE_CELL
) -> Tensor:
    """Return zeros in place of what the encoder gives to a head, on the CPU; a map of the size of `grid`, if
    masks are predicted.
    """
    import torch

    cells = (grid.height, grid.width) if reads_masks(config) else ()
    return torch.zeros(views, images, *cells, width)


def describe_projector(config: ObjectiveConfig, turned: Turned | None) -> dict[str, Any] | None:
    """Return what `build_mlp` needs to rebuild the projector; of a torus head, that of its angles.

    It is None for a layer that reads maps, as it maps no embedding to a projection.
    `angles` is m where the projector's output is m pairs of numbers, each pair an angle; otherwise it is
    None.
    """
    if isinstance(config, TorusConfig):
        mlp = {
            "hidden": config.head.hidden,
            "layers": config.head.layers,
            "norm": config.norm_of_head(turned),
        }
        return mlp | {"width": 2 * config.angles, "angles": config.angles}
    if reads_masks(config):
        return None
    if isinstance(config, SupervisedConfig):
        return {"hidden": 1, "layers": 1, "norm": "batch", "width": config.outputs, "angles": None}
    mlp = {"hidden": config.projector.hidden, "layers": config.projector.layers, "norm": "batch"}
    return mlp | {"width": config.projector.width, "angles": None}
