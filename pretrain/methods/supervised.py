"""Training with labels: a linear layer predicts classes, labels or numbers from the embedding, or masks.

Masks are predicted from the encoder's map: the layer gives each cell of the image the logits of the classes,
and these are upsampled bilinearly to the pixels.

The layer is the head's projector, so that checkpoints, evaluations and averages treat it as they treat the
projectors of other methods.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.dataset.masks import IGNORED
from pretrain.distributed import sum_together
from pretrain.methods.base import HeadOutput
from pretrain.methods.config import SupervisedConfig
from pretrain.models.config import MLPConfig
from pretrain.models.feature_sets import upsampled
from pretrain.models.projector import build_mlp


class SupervisedHead(nn.Module):
    """A linear layer and its loss: cross-entropy, binary cross-entropy, or the squared error."""

    class_weight: Tensor
    """Weight of an image, or a pixel, of each class (outputs,) in the loss; 1 unless `balanced`."""

    def __init__(self, embedding_width: int, config: SupervisedConfig, seed: int) -> None:
        super().__init__()
        self.projector = build_mlp(embedding_width, MLPConfig(layers=1), config.outputs, seed)
        self.config = config
        self.register_buffer("class_weight", torch.ones(config.outputs))

    def forward(self, embeddings: Tensor, step: int, targets: Tensor | None = None) -> HeadOutput:
        """Return the loss of the global batch for embeddings (V, N, D) and targets (1, N, outputs).

        Targets are shares of classes, 0s and 1s, or standardised numbers. An image with NaN among them has no
        target and does not count. For masks, the embeddings are maps (V, N, h, w, D), and the targets are the
        classes of pixels (V, N, H, W), `IGNORED` for those that do not count. In evaluation mode there is no
        loss.
        """
        predicted = self.projector(embeddings).float()
        if not self.training:
            return HeadOutput({}, predicted)
        assert targets is not None, "training with labels needs targets"
        total, count = (self._of_pixels if self.config.segments else self._of_images)(predicted, targets)
        total, count = sum_together(total, count)
        return HeadOutput({"loss": total / count.clamp(min=1e-6)}, predicted.detach())

    def _of_pixels(self, predicted: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the weighted losses of all pixels with a class, and the sum of the weights."""
        masks = masks.flatten(0, 1).long()
        # One row for each pixel: for images, the loss of torch has no deterministic form on GPUs.
        logits = upsampled(predicted.flatten(0, 1), masks.shape[1:]).movedim(1, -1).flatten(0, 2)
        masks = masks.flatten()
        smoothing = self.config.label_smoothing
        losses = F.cross_entropy(
            logits, masks, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
        )
        weight = self.class_weight[masks.clamp(max=self.config.outputs - 1)] * (masks != IGNORED)
        return (losses * weight).sum(), weight.sum()

    def _of_images(self, predicted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the weighted losses of all images with a target, and the sum of the weights."""
        known = targets.isfinite().all(-1)
        targets = targets.nan_to_num()
        weight = known.float()
        if self.config.task == "multiclass":
            weight = weight * (targets @ self.class_weight)
        losses = self._losses(predicted, targets.expand_as(predicted))
        return (losses * weight).sum(), weight.sum() * len(predicted)

    def _losses(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each view of each image (V, N)."""
        smoothing = self.config.label_smoothing
        if self.config.task == "multiclass":
            flat = predicted.flatten(0, 1), targets.flatten(0, 1)
            losses = F.cross_entropy(*flat, reduction="none", label_smoothing=smoothing)
            return losses.unflatten(0, predicted.shape[:2])
        if self.config.task == "multilabel":
            smooth = targets * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(predicted, smooth, reduction="none").mean(-1)
        return F.mse_loss(predicted, targets, reduction="none").mean(-1)
