"""The linear probe as published for large encoders: minibatch training with a grid of learning rates.

Oquab et al. 2023 (DINOv2, arXiv:2304.07193) train one linear head for each of 13 learning rates and each set
of features (one or four last blocks, with or without the mean of the patches); Balestriero & LeCun 2025
(LeJEPA, arXiv:2511.08544) do this with AdamW on normalised features.

The training loop replaces `nn.Linear`, autograd and `torch.optim.AdamW`. All heads on feature sets of the
same width are a single tensor, so a step is one product for the logits, one for the gradients and one update.
With 52 heads and 10 classes a step is 9.7 times as fast as one head after another, with 100 classes 1.9 times
(benchmarks/RESULTS.md, "Linear probe").
"""

import functools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.order import sample_index
from eval_suite.usefulness import selection
from eval_suite.usefulness.selection import Array, Candidate, FeatureSets
from isotorus.section import Section

Labels = NDArray[np.integer]

BETAS, EPSILON, MOMENTUM = (0.9, 0.999), 1e-8, 0.9


class Protocol(Section):
    """How the heads are trained."""

    learning_rates: tuple[float, ...] = (
        *(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    )
    """Initial learning rates for a batch of 256, scaled by batch_size / 256; they fall to 0 along a
    cosine."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer of the heads; sgd uses momentum 0.9."""
    weight_decay: float = Field(1e-6, ge=0)
    """Decoupled weight decay (Loshchilov & Hutter 2019), multiplied by the learning rate."""
    features: Literal["standardised", "layer_norm"] = "standardised"
    """How features are normalised: each dimension over the train samples, or each sample over its
    dimensions."""
    batch_size: PositiveInt = 256
    """Samples in a minibatch."""
    epochs: PositiveInt = 10
    """Epochs over the train samples, increased if they are fewer than `min_steps` steps."""
    min_steps: PositiveInt = 1000
    """Smallest number of steps."""
    seed: int = 0
    """Seed of the minibatches; heads start at 0."""

    def steps(self, samples: int) -> int:
        """Return the number of optimizer steps for this number of train samples."""
        return max(self.min_steps, self.epochs * samples // self.batch_size)


def minibatch_probe(
    train_x: FeatureSets,
    train_y: Labels,
    val_x: FeatureSets,
    val_y: Labels,
    test_x: FeatureSets,
    test_y: Labels,
    *,
    protocol: Protocol | None = None,
    classes: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Train a head for every learning rate and feature set, choose one on val, report its scores on test.

    Arguments, choice and result are those of `probe.linear_probe`, with `learning_rate` in place of `l2` and
    without `converged`; among equals the larger learning rate is chosen. All samples have the same weight.
    Raises Unmeasurable when train has fewer than two classes.
    """
    selection.require_two_classes(train_y)
    protocol = protocol or Protocol()
    classes = classes or selection.count_classes(train_y, val_y, test_y)
    columns = classes if train_y.ndim == 1 else train_y.shape[1]
    x, val, test = selection.named(train_x), selection.named(val_x), selection.named(test_x)

    def candidates() -> Iterator[Candidate]:
        for width in dict.fromkeys(features.shape[1] for features in x.values()):
            names = [name for name, features in x.items() if features.shape[1] == width]
            normalise = {name: _Normaliser(protocol, x[name], device) for name in names}
            stacked = torch.stack([normalise[name](x[name]) for name in names])
            heads = train(stacked, torch.as_tensor(train_y, device=device), columns, protocol)
            for name, of_set in zip(names, heads, strict=True):
                for rate in np.argsort(protocol.learning_rates, kind="stable"):
                    predict = functools.partial(_predict, of_set[rate], train_y.ndim == 2)
                    yield Candidate(
                        {**selection.label(name), "learning_rate": protocol.learning_rates[rate]},
                        predict(normalise[name](val[name])),
                        functools.partial(_predict_raw, predict, normalise[name], test[name]),
                    )

    return selection.choose(candidates(), val_y, test_y, "multiclass" if train_y.ndim == 1 else "multilabel")


@torch.inference_mode()
def train(x: Tensor, y: Tensor, columns: int, protocol: Protocol) -> Tensor:
    """Train on normalised features (sets, n, d); return heads (sets, rates, columns, d + 1), bias last.

    `y` holds class indices (n,), or 0s and 1s (n, columns). The samples of step t depend only on (seed, t)
    and are the same for all heads. Up to rounding, each head is what it would be if it were trained alone.
    """
    sets, n, width = x.shape
    rates = len(protocol.learning_rates)
    x = F.pad(x, (0, 1), value=1.0)
    target = (F.one_hot(y, columns) if y.ndim == 1 else y).to(x.dtype)
    steps, size = protocol.steps(n), protocol.batch_size
    positions = np.arange(steps * size, dtype=np.int64)
    order = torch.as_tensor(sample_index(positions, n, protocol.seed), device=x.device).view(steps, size)
    peak = torch.tensor(protocol.learning_rates, dtype=x.dtype, device=x.device) * size / 256
    peak = peak.repeat_interleave(columns)[:, None]

    heads = x.new_zeros(sets, rates * columns, width + 1)
    first, second = torch.zeros_like(heads), torch.zeros_like(heads)
    for step in range(steps):
        batch = x.index_select(1, order[step])
        # Samples are the last dimension because the softmax is vectorised along it; columns are often few.
        logits = torch.bmm(heads, batch.transpose(1, 2)).view(sets, rates, columns, size)
        predicted = logits.softmax(2) if y.ndim == 1 else logits.sigmoid_()
        residual = predicted.sub_(target.index_select(0, order[step]).T).div_(size)
        gradient = torch.bmm(residual.view(sets, -1, size), batch)
        rate = peak * (0.5 * (1 + np.cos(np.pi * step / steps)))
        if protocol.weight_decay:
            heads.mul_(1 - rate * protocol.weight_decay)
        if protocol.optimizer == "sgd":
            heads.addcmul_(first.mul_(MOMENTUM).add_(gradient), rate, value=-1)
        else:
            _adam(heads, gradient, first, second, rate, step + 1)
    return heads.view(sets, rates, columns, width + 1).clone()


def _adam(heads: Tensor, gradient: Tensor, first: Tensor, second: Tensor, rate: Tensor, count: int) -> None:
    """Apply Adam's update number `count` (Kingma & Ba 2015, algorithm 1) in place; `rate` is (rows, 1)."""
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    deviation = torch.sqrt(second, out=gradient).mul_((1 - BETAS[1] ** count) ** -0.5).add_(EPSILON)
    heads.addcmul_(first.div(deviation), rate, value=-1 / (1 - BETAS[0] ** count))


class _Normaliser:
    """Turns features (n, d) into a float32 tensor on the device, normalised as the protocol says."""

    def __init__(self, protocol: Protocol, train_x: Array, device: str | torch.device) -> None:
        self._device = device
        self._standardise = selection.standardiser(train_x) if protocol.features == "standardised" else None

    def __call__(self, x: Array) -> Tensor:
        if self._standardise is not None:
            return torch.as_tensor(self._standardise(x), dtype=torch.float32, device=self._device)
        tensor = torch.as_tensor(x, dtype=torch.float32, device=self._device)
        return F.layer_norm(tensor, tensor.shape[1:])


def _predict(head: Tensor, labels: bool, x: Tensor) -> NDArray[np.float64]:
    """Return probabilities (m, columns) for normalised features (m, d) and a head (columns, d + 1)."""
    logits = F.linear(x, head[:, :-1], head[:, -1])
    return (logits.sigmoid() if labels else logits.softmax(-1)).double().cpu().numpy()


def _predict_raw(predict: Any, normalise: _Normaliser, x: Array) -> NDArray[np.float64]:
    return predict(normalise(x))
