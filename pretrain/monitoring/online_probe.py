"""A linear probe that trains beside the encoder, on detached features, so labels never reach the encoder."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.distributed import sum_over_ranks, sum_together
from pretrain.engines.optimizer import optimizer_state
from pretrain.models.batch_norm import GlobalBatchNorm
from pretrain.objectives.batch import in_float32


class OnlineProbe(nn.Module):
    """Predicts classes from standardised features; trained by cross-entropy with its own AdamW (lr 1e-3).

    Its input is the mean embedding of an image's global views. Samples without a label (-1) are left out.
    """

    def __init__(self, width: int, classes: int, device: torch.device) -> None:
        super().__init__()
        self.norm = GlobalBatchNorm(width)
        self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.to(device)
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)
        self._right = torch.zeros(classes, device=device)
        self._seen = torch.zeros(classes, device=device)

    @in_float32
    def learn(self, features: Tensor, labels: Tensor) -> None:
        """Train on this rank's features (N, D) and labels (N,); any split into ranks gives the same probe."""
        labelled = labels >= 0
        logits = self.linear(self.norm(features.detach()))
        losses = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
        parameters = list(self.parameters())
        own = torch.autograd.grad((losses * labelled).sum(), parameters)
        count, *gradients = sum_together(labelled.sum().to(losses.dtype), *own)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient / count.clamp(min=1)
        total = torch.stack([gradient.sum() for gradient in gradients]).sum()
        self.optimizer.found_inf = (~total.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        right = (logits.argmax(1) == labels) & labelled
        self._seen.index_add_(0, labels.clamp(min=0), labelled.float())
        self._right.index_add_(0, labels.clamp(min=0), right.float())

    def balanced_accuracy(self) -> float:
        """Return the mean over classes of the accuracy since the last call, on batches before training."""
        right, seen = sum_over_ranks(torch.stack([self._right, self._seen]))
        self.forget()
        return (right / seen)[seen > 0].mean().item()

    def forget(self) -> None:
        """Restart the counts behind `balanced_accuracy`."""
        self._right.zero_()
        self._seen.zero_()

    def state(self) -> dict[str, Any]:
        """Return weights and moments by name, for the checkpoint."""
        moments = optimizer_state(self.optimizer, self.named_parameters())["state"]
        flat = {f"{name}.{key}": x for name, entry in moments.items() for key, x in entry.items()}
        return {"weights": dict(self.state_dict()), "moments": flat}
