"""The linear probe as published for large encoders: a grid of learning rates × feature sets, by minibatches.

Oquab et al. 2023 (DINOv2, arXiv:2304.07193) train a linear head for each of 13 learning rates and each set
of features (one or four last blocks, with or without the mean of the patches) at once; Balestriero & LeCun
2025 (LeJEPA, arXiv:2511.08544) do it with AdamW on normalised features. Here all heads on feature sets of
one width are a single tensor: a step is one product for the logits, one for the gradients, one update.
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
from eval_suite.usefulness import label_scores, scores
from eval_suite.usefulness.selection import Array, Candidate, FeatureSets, Unmeasurable, choose, label, named
from eval_suite.usefulness.standardise import standardiser
from isotorus.section import Section

Labels = NDArray[np.integer]

BETAS, EPSILON, MOMENTUM = (0.9, 0.999), 1e-8, 0.9


class Protocol(Section):
    """How heads are trained."""

    learning_rates: tuple[float, ...] = (
        *(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    )
    """For a batch of 256; times batch_size / 256, falling to 0 along a cosine."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """SGD has momentum 0.9."""
    weight_decay: float = Field(1e-6, ge=0)
    """Decoupled from the gradient (Loshchilov & Hutter 2019), times the learning rate."""
    features: Literal["standardised", "layer_norm"] = "standardised"
    """By mean and deviation of each dimension over train, or of each sample over its dimensions."""
    batch_size: PositiveInt = 256
    epochs: PositiveInt = 10
    """Passes over train; more where they would be fewer than `min_steps` steps."""
    min_steps: PositiveInt = 1000
    seed: int = 0
    """Of the minibatches; heads start at 0."""

    def steps(self, samples: int) -> int:
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
    """Train a head for every learning rate and feature set, choose one on val, report test once.

    Arguments, the choice and the result are those of `probe.linear_probe`, with learning_rate for l2 and
    without converged; of equals the larger learning rate is taken. Samples count alike. Raises Unmeasurable
    when train holds fewer than two classes.
    """
    if train_y.ndim == 1 and len(np.unique(train_y)) < 2:
        raise Unmeasurable(f"a probe needs two classes or more in train, found {len(np.unique(train_y))}")
    protocol = protocol or Protocol()
    if train_y.ndim == 2:
        columns = train_y.shape[1]
    elif classes is None:
        columns = int(max(train_y.max(), val_y.max(), test_y.max())) + 1
    else:
        columns = classes
    judge = scores if train_y.ndim == 1 else label_scores
    x, val, test = named(train_x), named(val_x), named(test_x)

    def candidates() -> Iterator[Candidate]:
        for width in dict.fromkeys(features.shape[1] for features in x.values()):
            names = [name for name, features in x.items() if features.shape[1] == width]
            normalise = {name: _normaliser(protocol, x[name], device) for name in names}
            stacked = torch.stack([normalise[name](x[name]) for name in names])
            heads = train(stacked, torch.as_tensor(train_y, device=device), columns, protocol)
            for name, of_set in zip(names, heads, strict=True):
                for rate in np.argsort(protocol.learning_rates, kind="stable"):
                    predict = functools.partial(_predict, of_set[rate], train_y.ndim == 2)
                    yield Candidate(
                        {**label(name), "learning_rate": protocol.learning_rates[rate]},
                        predict(normalise[name](val[name])),
                        functools.partial(_predict_raw, predict, normalise[name], test[name]),
                    )

    setting, test_scores, tried = choose(candidates(), val_y, judge.quality)
    return {
        **{f"test_{score}": value for score, value in judge.summary(test_y, test_scores).items()},
        **setting,
        "val": tried,
        "test_scores": test_scores,
    }


@torch.inference_mode()
def train(x: Tensor, y: Tensor, columns: int, protocol: Protocol) -> Tensor:
    """Heads (sets, learning rates, columns, d + 1), the bias last, on normalised features (sets, n, d).

    `y` holds class indices (n,), or 0s and 1s (n, columns). The samples of step t are a function of
    (seed, t), the same for all heads; each head is what it would be if trained alone, to rounding.
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
        # Samples are the last dimension, along which the softmax over few columns is vectorised.
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
    """Adam's update (Kingma & Ba 2015, algorithm 1) number `count`, in place; `rate` is one a row."""
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    deviation = torch.sqrt(second, out=gradient).mul_((1 - BETAS[1] ** count) ** -0.5).add_(EPSILON)
    heads.addcmul_(first.div(deviation), rate, value=-1 / (1 - BETAS[0] ** count))


class _normaliser:
    """Features (n, d) to a float32 tensor on the device, as the protocol has them."""

    def __init__(self, protocol: Protocol, train_x: Array, device: str | torch.device) -> None:
        self._device = device
        self._standardise = standardiser(train_x) if protocol.features == "standardised" else None

    def __call__(self, x: Array) -> Tensor:
        if self._standardise is not None:
            return torch.as_tensor(self._standardise(x), dtype=torch.float32, device=self._device)
        tensor = torch.as_tensor(x, dtype=torch.float32, device=self._device)
        return F.layer_norm(tensor, tensor.shape[1:])


def _predict(head: Tensor, labels: bool, x: Tensor) -> NDArray[np.float64]:
    """Probabilities (m, columns) of normalised features by a head (columns, d + 1)."""
    logits = F.linear(x, head[:, :-1], head[:, -1])
    return (logits.sigmoid() if labels else logits.softmax(-1)).double().cpu().numpy()


def _predict_raw(predict: Any, normalise: _normaliser, x: Array) -> NDArray[np.float64]:
    return predict(normalise(x))
