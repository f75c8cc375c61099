"""What is read off an encoder: its embedding, other layers and tokens, and the projector behind it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = 4
"""Most of the last blocks whose vectors are put together (Caron et al. 2021, arXiv:2104.14294)."""


class FeatureSets(nn.Module):
    """Images (N, C, H, W) to vectors (N, width) by name, from one forward pass.

    embedding    what the encoder gives
    patch_mean   mean of the last block's patch tokens, where the encoder's own vector is its class token
    last2, last4 the encoder's kind of vector for each of the last blocks, one after the other
    projector    what the training's MLP makes of the embedding
    angles       for a torus head, the cosines and sines of its m angles: (N, 2m), points on a flat torus
    """

    def __init__(
        self, encoder: nn.Module, projector: nn.Module | None = None, angles: int | None = None
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.projector, self.angles = projector, angles
        blocks = getattr(encoder, "blocks", None)
        tokens = hasattr(encoder, "forward_intermediates") and hasattr(encoder, "num_prefix_tokens")
        self.depth = len(blocks) if tokens and isinstance(blocks, nn.Sequential | nn.ModuleList) else 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self._tokens(images) if self.depth else {"embedding": self.encoder(images)}
        if self.projector is not None:
            found["projector"] = self.projector(found["embedding"])
        if self.angles:
            pairs = found["projector"].float().unflatten(1, (self.angles, 2))
            found["angles"] = F.normalize(pairs, dim=2).flatten(1)
        return {name: x.float() for name, x in found.items()}

    def _tokens(self, images: Tensor) -> dict[str, Tensor]:
        encoder, prefix = self.encoder, self.encoder.num_prefix_tokens
        _, layers = encoder.forward_intermediates(
            images,
            indices=min(LAYERS, self.depth),
            return_prefix_tokens=prefix > 0,
            norm=True,
            output_fmt="NLC",
        )
        tokens = [torch.cat([x[1], x[0]], dim=1) if prefix else x for x in layers]
        vectors = [encoder.forward_head(x) for x in tokens]
        found = {"embedding": vectors[-1]}
        if getattr(encoder, "global_pool", "") == "token":
            found["patch_mean"] = tokens[-1][:, prefix:].mean(1)
        for count in (2, LAYERS):
            if len(vectors) >= count:
                found[f"last{count}"] = torch.cat(vectors[-count:], dim=1)
        return found
