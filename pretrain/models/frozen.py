"""Blocks of an encoder that stay as they are while the others are trained."""

from timm.models import group_parameters
from torch import nn

from isotorus.errors import UserError
from pretrain.models.batch_norm import has_batch_norm


def freeze(encoder: nn.Module, blocks: int) -> None:
    """Take the first `blocks` blocks of a timm model, and what comes before them, out of training."""
    if not blocks:
        return
    layers = _layers(encoder)
    for name, parameter in encoder.named_parameters():
        if layers[name] <= blocks:
            parameter.requires_grad_(False)


def check_frozen(blocks: int, encoder: nn.Module) -> None:
    """Raise UserError if an encoder does not have so many blocks, or if frozen blocks would still change."""
    if not blocks:
        return
    if not hasattr(encoder, "group_matcher"):
        raise UserError(
            f"encoder.freeze={blocks}: timm does not name the blocks of a {type(encoder).__name__}; "
            "use encoder.freeze=0"
        )
    if has_batch_norm(encoder):
        raise UserError(
            f"encoder.freeze={blocks}: the statistics of batch norm would change in frozen blocks too; use "
            "encoder.freeze=0, or an encoder without batch norm"
        )
    # timm counts what comes before the blocks as layer 0, and what comes after them to the layer of the last
    # block.
    count = max(_layers(encoder).values())
    if blocks >= count:
        raise UserError(
            f"encoder.freeze={blocks}: the encoder has {count} blocks, and the last one has to learn; use at "
            f"most {count - 1}"
        )


def _layers(encoder: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter, counted from the input."""
    layers: dict[str, int] = group_parameters(encoder, encoder.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    return layers
