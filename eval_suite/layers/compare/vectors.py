"""The vectors of every layer of an encoder: its blocks in the order of depth, then its embedding."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from eval_suite.features.representation import Representation
from eval_suite.layers.blocks import Observer, Places, first, hooked, measurable
from isotorus.errors import UserError
from pretrain.models.blocks import Block, depth_blocks

EMBEDDING = "embedding"


class LayerVectors(nn.Module):
    """Maps images (N, C, H, W) to the vectors (N, width) of each block, and of the embedding, by name."""

    def __init__(self, encoder: nn.Module, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.encoder, self.blocks, self.places = encoder, blocks, Places(encoder)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 vectors by name, the blocks in the order of depth."""
        vectors: dict[str, Tensor] = {}

        def keep(name: str) -> Observer:
            def see(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], out: Any) -> None:
                vectors[name] = self.places.vector(first(out)).float()

            return see

        with hooked([(block.module, keep(block.name)) for block in self.blocks]):
            vectors[EMBEDDING] = self.encoder(images).float()
        return vectors


def of_layers(name: str, r: Representation) -> Representation:
    """Return the representation `r` of an encoder as one called `name` that gives the vectors of all layers.

    An encoder whose blocks cannot be told apart has its embedding alone.
    """

    def build() -> LayerVectors:
        encoder = r.build().encoder
        assert isinstance(encoder, nn.Module)
        try:
            images = torch.zeros(2, r.channels, r.size, r.size)
            blocks = measurable(encoder.eval(), depth_blocks(encoder), images)
        except UserError:
            blocks = []
        return LayerVectors(encoder, blocks)

    return replace(r, name=name, build=build, described={**r.described, "vectors": "of layers"}, sets=None)
