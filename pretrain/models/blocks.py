"""The repeated blocks of a timm encoder, in the order of its depth."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from isotorus.errors import UserError

# timm's names for the containers of blocks in a ViT, ConvNeXt, Swin or ResNet.
CONTAINERS = ("blocks", "stages", "layers", *(f"layer{i}" for i in range(1, 9)))


@dataclass(frozen=True)
class Block:
    """One residual block, or a stage that is not divided into blocks."""

    name: str
    """The module's name in the encoder, such as blocks.3 or stages.1.blocks.0."""
    module: nn.Module


def find_blocks(encoder: nn.Module) -> list[Block]:
    """Return the blocks inside all outermost containers, and an empty list for an encoder without containers.

    Stages are divided into their blocks, blocks are not divided further: no block lies inside another one.
    """
    containers = [name for name, _ in encoder.named_modules() if name.rpartition(".")[2] in CONTAINERS]
    outermost = [n for n in containers if not any(n.startswith(f"{other}.") for other in containers)]
    return [block for name in outermost for block in _divide(name, encoder.get_submodule(name))]


def depth_blocks(encoder: nn.Module) -> list[Block]:
    """Return the blocks of the encoder's own stages, without those inside a stem or a patch embedding.

    Raises `UserError` for an encoder that keeps no blocks in blocks, stages, layers or layer1, layer2 ….
    """
    top = [name for name in CONTAINERS[:3] if hasattr(encoder, name)][:1] or CONTAINERS[3:]
    blocks = [block for block in find_blocks(encoder) if block.name.partition(".")[0] in top]
    if not blocks:
        raise UserError(
            f"{type(encoder).__name__} keeps its blocks in none of blocks, stages, layers and layer1 …; name "
            "checkpoints of a ViT, ConvNeXt, ResNet or the like"
        )
    return blocks


def token_blocks(encoder: nn.Module) -> list[nn.Module]:
    """Return the blocks of a ViT, each of which maps tokens to tokens.

    Raises `UserError` for an encoder without tokens.
    """
    blocks = getattr(encoder, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not hasattr(encoder, "num_prefix_tokens"):
        raise UserError(
            f"{type(encoder).__name__} has no sequence of tokens to carry vectors between; use a ViT"
        )
    return list(blocks)


def _divide(name: str, module: nn.Module) -> Iterator[Block]:
    """Yield the blocks inside a module; the module itself if it is not a container of blocks."""
    inner = getattr(module, "blocks", None)
    if isinstance(inner, nn.Sequential | nn.ModuleList) and len(inner):
        yield from _divide(f"{name}.blocks", inner)
    elif isinstance(module, nn.Sequential | nn.ModuleList):
        for key, child in module.named_children():
            yield from _divide(f"{name}.{key}", child)
    elif list(module.children()):
        yield Block(name, module)
