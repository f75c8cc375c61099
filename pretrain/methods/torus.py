"""Toroidal JEPA: views agree on a flat torus T^m, and their angles are uniformly distributed on it.

The method is LeJEPA with another target distribution. The head emits m pairs of numbers, each pair an angle,
and a test of uniformity by Weyl's criterion takes the place of Epps-Pulley.

Where views are turned by known circle actions (`views.actions`), the first angles belong to the actions. With
θ_v the angles of view v and a_v what it was turned by, views agree about d_v = θ_v - order · a_v, and further
angles are invariant. `content: lejepa` puts LeJEPA's head beside the angles: the latent space is T^m × R^K.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isotorus.device import to_device
from pretrain.methods.base import HeadOutput, build_sigreg
from pretrain.methods.config import TorusConfig, Turned
from pretrain.methods.dual_ascent import dual_ascent
from pretrain.methods.lejepa import LeJEPAHead
from pretrain.models.projector import build_mlp
from pretrain.objectives.toroidal import (
    angles_from_pairs,
    chance_agreement,
    errors_and_uniformity,
    weighed,
)
from pretrain.objectives.torus_frequencies import all_frequencies, balanced_s, sample_frequencies


class TorusHead(nn.Module):
    """Angle head and loss; uniformity is tested by Giné's Sobolev test (1975) on T^m."""

    def __init__(
        self,
        embedding_width: int,
        config: TorusConfig,
        n_global: int,
        seed: int,
        turned: Turned | None = None,
    ) -> None:
        super().__init__()
        config.check(embedding_width, turned)
        pose = config.pose_width or embedding_width
        self.projector = build_mlp(pose, config.head, 2 * config.angles, seed, config.norm_of_head(turned))
        self.content = None
        if config.content:
            rest = embedding_width - (config.pose_width or 0)
            self.content = LeJEPAHead(rest, config.lejepa, n_global, (seed + 1) % 2**64)
        self.sigreg = build_sigreg(config.sigreg, seed)
        self.config, self.n_global, self.seed, self.turned = config, n_global, seed, turned
        self.first = turned.first if turned else 0
        self.turns = turned is not None and config.equivariant is not False
        self.orders = config.orders(turned)
        self.decay = config.decay or balanced_s(config.angles)
        cutoff = config.cutoff or (3 if config.angles <= 3 else None)
        self.tested = all_frequencies(config.angles, cutoff, self.decay) if cutoff else None
        if config.auto_weight.enabled:  # only then, as checkpoints of earlier runs have no such buffer
            self.register_buffer("dual_weight", torch.tensor(config.weight))

    def forward(self, embeddings: Tensor, step: int, actions: Tensor | None = None) -> HeadOutput:
        """Return the loss for embeddings (V, N, D); the projections are the pairs (V, N, 2m) of angles.

        `actions` (V, N, number of actions) are the radians by which views were turned, where some are. The
        projections of views that the angles do not see are zeros; with content, `_joined` describes the
        projections. In evaluation mode there is no loss, and the pairs are those of all embeddings.
        """
        config = self.config
        if not self.training:
            return HeadOutput({}, self.projector(embeddings[..., : config.pose_width]).float())
        pairs = self.projector(embeddings[self.first :, :, : config.pose_width]).float()
        parts = self._torus(pairs, step, actions)
        if config.encoder_weight:
            parts["sigreg_encoder"] = self.sigreg(embeddings, step)
            parts["loss"] = parts["loss"] + config.encoder_weight * parts["sigreg_encoder"]
        if self.content is None:
            return HeadOutput(parts, F.pad(pairs.detach(), (0, 0, 0, 0, self.first, 0)))
        seen = embeddings[: self.first or None, :, config.pose_width or 0 :]
        content = self.content(seen, step)
        gamma = config.content_weight
        parts["loss"] = (1 - gamma) * parts["loss"] + gamma * content.parts.pop("loss")
        parts["content_prediction"] = content.parts.pop("prediction")
        if "weight" in content.parts:
            parts["lejepa_weight"] = content.parts.pop("weight")
        return HeadOutput(parts | content.parts, self._joined(pairs.detach(), content.projections))

    def _torus(self, pairs: Tensor, step: int, actions: Tensor | None) -> dict[str, Tensor]:
        """Return the loss of the angles and its parts; with known turns, the agreement about each of them.

        `agreement_<action>` is the mean over views and images of cos(d - μ), which is 1 at best and
        `agreement_chance` for angles that do not depend on the image.
        """
        angles = angles_from_pairs(pairs.unflatten(-1, (self.config.angles, 2)))
        upright = angles
        if self.turns:
            assert actions is not None, "a head that takes turns back needs them"
            upright = angles - self._known(actions[self.first :])
        center = len(angles) if self.turned else self.n_global
        frequencies, weights = (to_device(x, angles.device) for x in self.frequencies(step))
        errors, uniformity = errors_and_uniformity(angles, upright, center, frequencies, weights)
        parts = weighed(errors, uniformity, self.config.weight)
        if self.config.auto_weight.enabled:
            parts["weight"] = dual_ascent(self, uniformity, weights.sum(), self.config.auto_weight)
            parts["loss"] = parts["prediction"] + parts["weight"] * uniformity
        if self.turned and self.turns:
            for action, error in zip(self.turned.actions, errors.unbind(), strict=False):
                parts[f"agreement_{action}"] = 1 - error
            parts["agreement_chance"] = errors.new_full((), chance_agreement(center))
        return parts

    def _known(self, actions: Tensor) -> Tensor:
        """Return the turns (V, N, m) that are taken back: order · a, and 0 for further angles."""
        turns = [order * a for order, a in zip(self.orders, actions.unbind(-1), strict=True)]
        return F.pad(torch.stack(turns, -1), (0, self.config.angles - len(turns)))

    def _joined(self, pairs: Tensor, content: Tensor) -> Tensor:
        """Return pairs (V, N, 2m) and content's projections (V', N, K) as one tensor of all views.

        Where both parts see all views, pairs come first in each row. Where they have views of their own,
        content's come first, and the narrower rows end with zeros.
        """
        if not self.first:
            return torch.cat([pairs, content], -1)
        width = max(pairs.shape[-1], content.shape[-1])
        return torch.cat([F.pad(x, (0, width - x.shape[-1])) for x in (content, pairs)])

    def content_projections(self, projections: Tensor) -> Tensor:
        """Return content's projections (V', N, K) out of those of this head."""
        if not self.first:
            return projections[..., 2 * self.config.angles :]
        return projections[: self.first, :, : self.config.lejepa.projector.width]

    def frequencies(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the frequencies (F, m) of a step and their weights (F,), equal on all ranks."""
        if self.tested:
            return self.tested
        return sample_frequencies(
            self.config.angles, self.config.num_frequencies, self.decay, self.seed, step
        )
