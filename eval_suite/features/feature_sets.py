"""The feature sets of an encoder: its embedding, other layers and tokens, and its projector."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = 4
"""Largest number of last blocks whose vectors are concatenated (Caron et al. 2021, arXiv:2104.14294)."""
STAGES = 3
"""Number of last stages whose maps are summarised."""


class FeatureSets(nn.Module):
    """Maps images (N, C, H, W) to vectors (N, width) by name, in one forward pass.

    embedding    the output of the encoder
    patch_mean   mean of the last block's patch tokens, if the encoder's output is its class token
    last2, last4 the vectors of the last 2 or 4 blocks, each made like the embedding, concatenated
    stages       mean, then standard deviation, over the pixels of the maps of the last three stages, early to
                 late, if the encoder works in stages of falling resolution, as ConvNets and Swin do
    pose         the first numbers of the embedding, from which a torus head with content reads its angles
    content      the other numbers, which only the content used; both exist only if training divided them
    projector    the output of the MLP that training puts behind the encoder; for a torus head with content,
                 the output of the content's MLP
    angles       cosines and sines of the m angles of a torus head: (N, 2m), points on a flat torus
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        angles: int | None = None,
        pose_width: int | None = None,
        content: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.projector, self.angles, self.pose_width = projector, angles, pose_width
        self.content_projector = content
        blocks = getattr(encoder, "blocks", None) if _gives_tokens(encoder) else None
        self.depth = len(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else 0
        self.stages = 0 if self.depth else min(STAGES, _count_stages(encoder))
        self.compared = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 vectors (N, width) by name."""
        if self.stages and not self.compared:
            self.stages, self.compared = self.stages * self._stages_agree(images[:2]), True
        if self.depth:
            sets = self._tokens(images)
        elif self.stages:
            sets = self._stages(images)
        else:
            sets = {"embedding": self.encoder(images)}
        if self.pose_width:
            sets["pose"] = sets["embedding"][:, : self.pose_width]
            sets["content"] = sets["embedding"][:, self.pose_width :]
        if self.projector is not None:
            sets["projector"] = self.projector(sets["embedding"])
        if self.angles:
            pairs = sets["projector"].float().unflatten(1, (self.angles, 2))
            sets["angles"] = F.normalize(pairs, dim=2).flatten(1)
        if self.content_projector is not None:
            sets["projector"] = self.content_projector(sets.get("content", sets["embedding"]))
        return {name: x.float() for name, x in sets.items()}

    def _tokens(self, images: Tensor) -> dict[str, Tensor]:
        """Return the sets that need the tokens of the last blocks of a ViT."""
        encoder, prefix = self.encoder, self.encoder.num_prefix_tokens
        last, layers = encoder.forward_intermediates(
            images,
            indices=min(LAYERS, self.depth),
            return_prefix_tokens=prefix > 0,
            norm=True,
            output_fmt="NLC",
        )
        tokens = [torch.cat([x[1], x[0]], dim=1) if prefix else x for x in layers]
        vectors = [encoder.forward_head(x) for x in tokens]
        sets = {"embedding": encoder.forward_head(last)}
        if getattr(encoder, "global_pool", "") == "token":
            sets["patch_mean"] = tokens[-1][:, prefix:].mean(1)
        for count in (2, LAYERS):
            if len(vectors) >= count:
                sets[f"last{count}"] = torch.cat(vectors[-count:], dim=1)
        return sets

    def _stages(self, images: Tensor) -> dict[str, Tensor]:
        """Return the sets that need the maps (N, channels, H, W) of the last stages."""
        last, maps = self.encoder.forward_intermediates(images, indices=self.stages)
        pixels = [x.float().flatten(2) for x in maps]
        moments = [part for x in pixels for part in (x.mean(2), x.std(2, correction=0))]
        return {"embedding": self.encoder.forward_head(last), "stages": torch.cat(moments, dim=1)}

    @torch.no_grad()
    def _stages_agree(self, images: Tensor) -> bool:
        """Return whether the pass that gives maps gives the encoder's own output too, up to rounding.

        It does not where timm leaves a layer out of one of the two, or where someone changed the encoder.
        """
        widths = [stage["num_chs"] for stage in list(self.encoder.feature_info)[-self.stages :]]
        try:
            embedding, stages = self._stages(images).values()
        except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError):
            return False
        expected = self.encoder(images)
        if stages.shape[1] != 2 * sum(widths) or embedding.shape != expected.shape:
            return False
        rounding = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max()
        return bool((embedding - expected).abs().max() <= rounding)


def _count_stages(encoder: nn.Module) -> int:
    """Return the number of stages with maps; 0 without timm's API, and where all have one resolution."""
    if not hasattr(encoder, "forward_intermediates") or not hasattr(encoder, "forward_head"):
        return 0
    described = list(getattr(encoder, "feature_info", None) or [])
    reductions = {stage.get("reduction") for stage in described}
    return len(described) if len(reductions) > 1 else 0


def _gives_tokens(encoder: nn.Module) -> bool:
    """Return whether the encoder's class can give all tokens of its last blocks, as timm's ViTs do."""
    forward = getattr(encoder, "forward_intermediates", None)
    return forward is not None and "return_prefix_tokens" in inspect.signature(forward).parameters
