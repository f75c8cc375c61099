"""A linear probe that learns beside the run from detached features: labels never reach the encoder."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.distributed import sum_over_ranks, world_size
from pretrain.models.batch_norm import GlobalBatchNorm


class OnlineProbe(nn.Module):
    """Standardised features to classes by cross-entropy, with an optimizer of its own (AdamW, 1e-3).

    Fed the mean of an image's global views' embeddings; unlabelled samples (-1) are left out.
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

    def learn(self, features: Tensor, labels: Tensor) -> None:
        """One step on this rank's features (N, D) and labels (N,), the same for any split into ranks."""
        labelled = labels >= 0
        count = sum_over_ranks(labelled.sum())
        logits = self.linear(self.norm(features.detach()))
        losses = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
        (losses * labelled).sum().div(count.clamp(min=1)).backward()
        if world_size() > 1:
            for parameter in self.parameters():
                assert parameter.grad is not None
                parameter.grad = sum_over_ranks(parameter.grad)
        total = torch.stack([p.grad.sum() for p in self.parameters() if p.grad is not None]).sum()
        self.optimizer.found_inf = (~total.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        right = (logits.argmax(1) == labels) & labelled
        self._seen.index_add_(0, labels.clamp(min=0), labelled.float())
        self._right.index_add_(0, labels.clamp(min=0), right.float())

    def balanced_accuracy(self) -> float:
        """Mean over classes of the accuracy since the last call, each batch judged before it was learnt."""
        right, seen = sum_over_ranks(torch.stack([self._right, self._seen]))
        self.forget()
        return (right / seen)[seen > 0].mean().item()

    def forget(self) -> None:
        """Count anew what is right."""
        self._right.zero_()
        self._seen.zero_()

    def state(self) -> dict[str, Any]:
        """Weights and moments by name, for the checkpoint."""
        if not self.optimizer.state:  # so that a first load finds every tensor in place
            for parameter in self.parameters():
                self.optimizer.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        names = {id(p): name for name, p in self.named_parameters()}
        moments = {
            f"{names[id(p)]}.{key}": value
            for p, entry in self.optimizer.state.items()
            for key, value in entry.items()
        }
        return {"weights": dict(self.state_dict()), "moments": moments}
