"""What a certificate is about, and what stands beside it: untrained, other runs, raw pixels."""

from dataclasses import replace

from eval_suite.features import representation as kinds
from eval_suite.features.feature_sets import FeatureSets
from eval_suite.features.representation import Representation
from eval_suite.inputs.checkpoints import Checkpoint
from isotorus.errors import UserError
from pretrain.models.description import TorusDescription

SETS = ("angles", "pose")
"""Feature sets that a certificate needs besides the embedding."""
PIXELS = 32
"""Side in pixels of the images whose pixels are a cloud of their own."""


def actions_of(checkpoint: Checkpoint) -> TorusDescription:
    """Return the actions that the checkpoint was trained with; raises UserError if there are none."""
    torus = checkpoint.encoder.torus
    if not checkpoint.angles:
        raise UserError(
            f"{checkpoint.name} has no angles: its head is no torus; a certificate needs a run with "
            "objective.kind=torus and views.actions, such as [rotation, hue]"
        )
    if torus is None or not torus.actions:
        raise UserError(
            f"{checkpoint.name} was trained without actions, so no turn of an image belongs to its angles; a "
            "certificate needs a run with views.actions, such as [rotation, hue]"
        )
    return torus


def trained(checkpoint: Checkpoint, size: int) -> Representation:
    """Return the encoder with its angle head, for images of the size of turned views."""
    return replace(kinds.pretrained(checkpoint, SETS), size=size)


def untrained(checkpoint: Checkpoint, size: int) -> Representation:
    """Return the same encoder and angle head as the run's seed initialises them."""
    encoder = kinds.untrained(checkpoint, SETS)

    def build() -> FeatureSets:
        head = checkpoint.projector(trained=False)
        return FeatureSets(checkpoint.untrained(), head, checkpoint.angles, checkpoint.pose_width)

    return replace(encoder, build=build, size=size)


def pixels(checkpoint: Checkpoint, size: int) -> Representation:
    """Return the pixels of the images themselves, of at most `PIXELS` × `PIXELS`."""
    return kinds.pixels(checkpoint, min(size, PIXELS))
