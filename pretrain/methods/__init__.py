"""Methods: trainable heads that turn embeddings into a loss, one file each, chosen by `objective.kind`."""

from typing import Annotated, Any

from pydantic import Field
from torch import nn

from pretrain.methods.jepa import JEPAConfig, JEPAHead
from pretrain.methods.lejepa import LeJEPAConfig, LeJEPAHead
from pretrain.methods.torus import TorusConfig, TorusHead

ObjectiveConfig = Annotated[LeJEPAConfig | JEPAConfig | TorusConfig, Field(discriminator="kind")]


def build_head(config: ObjectiveConfig, embedding_width: int, n_global: int, seed: int) -> nn.Module:
    """Build the trainable head of a method, with weights drawn from `seed` alone."""
    if isinstance(config, LeJEPAConfig):
        return LeJEPAHead(embedding_width, config, n_global, seed)
    if isinstance(config, JEPAConfig):
        return JEPAHead(embedding_width, config, seed)
    return TorusHead(embedding_width, config, n_global, seed)


def describe_projector(config: ObjectiveConfig) -> dict[str, Any]:
    """Return what `build_mlp` needs to rebuild the projector.

    `angles` is m where the projector's output is m pairs of numbers, each pair an angle; otherwise it is
    None.
    """
    if isinstance(config, TorusConfig):
        mlp, width, angles = config.head, 2 * config.angles, config.angles
    else:
        mlp, width, angles = config.projector, config.projector.width, None
    return {"hidden": mlp.hidden, "layers": mlp.layers, "width": width, "angles": angles}
