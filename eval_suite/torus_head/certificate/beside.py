"""What a certificate is about, and what stands beside it: untrained, other runs, raw pixels."""

from collections.abc import Sequence
from dataclasses import replace

from data_pipeline.transforms.config import Action
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


def actions_of(
    checkpoint: Checkpoint, actions: Sequence[Action] = (), orders: Sequence[int] = ()
) -> TorusDescription:
    """Return what the checkpoint is certified against: `actions` and `orders`, by default those it learned.

    The first angle belongs to the first action. Given `actions` have the order 1 unless `orders` are given
    too. Raises UserError if there are no actions, or if they do not fit the head.
    """
    if not checkpoint.angles:
        raise UserError(
            f"{checkpoint.name} has no angles: its head is no torus; a certificate needs a run with "
            "objective.kind=torus and views.actions, such as [rotation, hue]"
        )
    learned = checkpoint.encoder.torus
    if not actions and (learned is None or not learned.actions):
        raise UserError(
            f"{checkpoint.name} was trained without actions, so no turn of an image belongs to its angles; "
            "certify a run with views.actions, or name actions to hold it against: --actions rotation hue"
        )
    if learned is None:
        learned = TorusDescription([], [], None, "disc", checkpoint.encoder.image_size)
    chosen = list(actions) or learned.actions
    if len(chosen) > checkpoint.angles:
        raise UserError(
            f"--actions names {len(chosen)} actions, but {checkpoint.name} has {checkpoint.angles} "
            f"{'angle' if checkpoint.angles == 1 else 'angles'}, and each action needs one; name fewer"
        )
    if "hue" in chosen and checkpoint.encoder.channels != 3:
        raise UserError(
            f"--actions hue: {checkpoint.name} sees images of {checkpoint.encoder.channels} channels, which "
            "have no hue; name other actions, such as rotation"
        )
    if orders and len(orders) != len(chosen):
        raise UserError(
            f"--order {' '.join(map(str, orders))}: expected one number for each action ({', '.join(chosen)})"
        )
    own = [1] * len(chosen) if actions else learned.orders
    return replace(learned, actions=chosen, orders=list(orders) or own)


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
