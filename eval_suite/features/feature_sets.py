"""The feature sets of an encoder: its embedding, other layers and tokens, and its projector."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.feature_sets import FEATURES, count_blocks, count_stages, of_stages, of_tokens


class FeatureSets(nn.Module):
    """Maps images (N, C, H, W) to vectors (N, width) by name, in one forward pass.

    embedding    the output of the encoder; of one that was fine-tuned on another set, that set
    patch_mean, last2, last4, stages    those of `pretrain.models.feature_sets`
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
        self.given: str = getattr(encoder, FEATURES, "embedding")
        self.depth, self.stages = count_blocks(encoder), count_stages(encoder)
        self.compared = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 vectors (N, width) by name."""
        if self.stages and not self.compared:
            self.stages, self.compared = self.stages * self._stages_agree(images[:2]), True
        if self.depth:
            sets = of_tokens(self.encoder, images, self.depth)
        elif self.stages:
            sets = of_stages(self.encoder, images, self.stages)
        else:
            sets = {self.given: self.encoder(images)}
        sets = {"embedding": sets.pop(self.given)} | {k: x for k, x in sets.items() if k != "embedding"}
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

    @torch.no_grad()
    def _stages_agree(self, images: Tensor) -> bool:
        """Return whether the pass that gives maps gives the encoder's own output too, up to rounding.

        It does not where timm leaves a layer out of one of the two, or where someone changed the encoder.
        """
        widths = [stage["num_chs"] for stage in list(self.encoder.feature_info)[-self.stages :]]
        try:
            sets = of_stages(self.encoder, images, self.stages)
        except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError):
            return False
        expected, found = self.encoder(images), sets[self.given]
        if sets["stages"].shape[1] != 2 * sum(widths) or found.shape != expected.shape:
            return False
        rounding = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max()
        return bool((found - expected).abs().max() <= rounding)
