"""The attentive probe: learned queries attend over the frozen patch tokens of an image, then a linear layer.

It follows the evaluations of V-JEPA 2 (Assran et al. 2025, arXiv:2506.09985), but has a single layer of
attention and no MLP, so that it stays a small probe. Each head has a query u. Its weights over the tokens x_t
of width d are softmax(u·x_t / √d), and the weighted means of the tokens, one for each head, are the input of
the linear layer. This is multi-head cross-attention with one query whose projections of keys and values are
part of u and of the linear layer. The first head begins at u = 0, the mean of the tokens.

The L2 strengths are fitted side by side as one tensor, each by Adam as if it were alone. Every strength keeps
its parameters from the check with the least loss on val (early stopping); then val chooses the strength.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.order import sample_index
from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness import selection
from eval_suite.usefulness.selection import Candidate
from isotorus.randomness import generator
from isotorus.section import Section

Values = NDArray[np.floating]
AT_ONCE = 256
"""Images whose tokens are in memory at the same time."""


class Protocol(Section):
    """How the probe is trained."""

    heads: PositiveInt = 4
    """Number of queries."""
    l2: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """L2 strengths of the linear layer, relative to the mean loss."""
    learning_rate: float = Field(1e-2, gt=0)
    """Initial learning rate of Adam; it falls to 0 along a cosine."""
    batch_size: PositiveInt = 128
    """Images in a minibatch."""
    epochs: PositiveInt = 10
    """Epochs over the train images; there are more if these are fewer than `min_steps` steps."""
    min_steps: PositiveInt = 300
    """Smallest number of steps."""
    checks: PositiveInt = 15
    """Number of checks of the loss on val; training ends after three checks without a smaller one."""
    seed: int = 0
    """Seed of the minibatches and of the first queries."""

    def steps(self, images: int) -> int:
        """Return the number of steps for this number of train images."""
        return max(self.min_steps, self.epochs * images // self.batch_size)


class Images(NamedTuple):
    """The tokens of some images, with their targets."""

    x: NDArray[np.floating]
    """(n, tokens, d), perhaps mapped from a file."""
    y: NDArray[Any]
    """Class indices (n,), or 0s and 1s or numbers (n, columns)."""

    def tokens(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the tokens (rows, tokens, d) of some of the images, as float32."""
        return torch.from_numpy(self.x[rows].astype(np.float32))


class Probe(NamedTuple):
    """Parameters for several strengths."""

    queries: Tensor
    """(strengths, heads, d)."""
    weight: Tensor
    """(strengths, heads · d, columns)."""
    bias: Tensor
    """(strengths, 1, columns)."""


def attentive_probe(
    train: Images,
    val: Images,
    test: Images,
    kind: str,
    *,
    protocol: Protocol | None = None,
    classes: int,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Train at every strength, choose one on val, report its scores on test.

    Tokens are standardised, each dimension by mean and deviation over the tokens of train. Classes have the
    same weight; targets of `kind` "multilabel" have a sigmoid each, and numbers are predicted by squared
    error. Returns what `selection.choose` does, with `l2` as the setting. Raises Unmeasurable when train has
    fewer than two classes.
    """
    protocol = protocol or Protocol()
    selection.require_two_classes(train.y)
    mean, std = moments(train)
    loss = _Loss(train.y, kind, classes)
    fitted = _fit(train, val, loss, mean, std, protocol, torch.device(device))

    def predict(images: Images, member: int) -> Values:
        one = Probe(*(part[member : member + 1] for part in fitted))
        parts = [loss.predicted(logits)[0] for _, logits in _logits(one, images, mean, std)]
        return torch.cat(parts).double().cpu().numpy()

    candidates = (
        Candidate(
            {"l2": float(protocol.l2[member])},
            predict(val, member),
            functools.partial(predict, test, member),
            functools.partial(predict, train, member),
        )
        for member in np.argsort(protocol.l2, kind="stable").tolist()
    )
    return selection.choose(candidates, val.y, test.y, kind, train.y)


def attend(queries: Tensor, x: Tensor) -> Tensor:
    """Return the means of tokens `x` (n, tokens, d) under the attention of queries (m, d): (n, m, d)."""
    weights = (x @ queries.T / queries.shape[1] ** 0.5).softmax(dim=1)
    return weights.transpose(1, 2) @ x


def logits_of(probe: Probe, x: Tensor) -> Tensor:
    """Return the logits (strengths, n, columns) of standardised tokens (n, tokens, d)."""
    strengths, heads, width = probe.queries.shape
    pooled = attend(probe.queries.reshape(-1, width), x)
    pooled = pooled.reshape(len(x), strengths, heads * width).transpose(0, 1)
    return pooled @ probe.weight + probe.bias


def moments(images: Images) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (d,) over all tokens of the images; a deviation of 0 becomes 1."""
    total, squares, count = torch.zeros(1), torch.zeros(1), 0
    for start in range(0, len(images.x), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(images.x)))
        x = images.tokens(rows).flatten(0, 1).double()
        total, squares, count = total + x.sum(0), squares + x.square().sum(0), count + len(x)
    if not count:
        raise Unmeasurable("there are no images in train")
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std[std <= 1e-6 * std.max()] = 1.0
    return mean.float(), std.float()


class _Loss:
    """The loss of one kind of targets, and what predictions it gives."""

    def __init__(self, y: NDArray[Any], kind: str, classes: int) -> None:
        self._kind = kind
        self.columns = classes if kind == "multiclass" else y.shape[1]
        if kind == "multiclass":
            counts = np.bincount(y, minlength=classes)
            weight = len(y) / (np.maximum(counts, 1) * (counts > 0).sum())
            self._weight = torch.from_numpy(weight).float()
        if kind == "regression":
            std = y.std(axis=0)
            self._mean = torch.from_numpy(y.mean(axis=0)).float()
            self._std = torch.from_numpy(np.where(std > 0, std, 1.0)).float()

    def __call__(self, logits: Tensor, y: NDArray[Any]) -> Tensor:
        """Return the sum over images of the loss of logits (strengths, n, columns): (strengths,)."""
        device = logits.device
        if self._kind == "multiclass":
            of = torch.from_numpy(y).to(device)
            wanted = of.expand(len(logits), -1)
            each = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
            return (each * self._weight.to(device)[of]).sum(1)
        target = torch.from_numpy(y).to(device, torch.float32).expand_as(logits)
        if self._kind == "multilabel":
            return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum((1, 2))
        target = (target - self._mean.to(device)) / self._std.to(device)
        return 0.5 * (logits - target).square().sum((1, 2))

    def predicted(self, logits: Tensor) -> Tensor:
        """Return probabilities, or numbers in the units of the targets."""
        if self._kind == "multiclass":
            return logits.softmax(-1)
        if self._kind == "multilabel":
            return logits.sigmoid()
        return logits * self._std.to(logits.device) + self._mean.to(logits.device)


def _fit(
    train: Images,
    val: Images,
    loss: _Loss,
    mean: Tensor,
    std: Tensor,
    protocol: Protocol,
    device: torch.device,
) -> Probe:
    """Return the parameters of each strength with the least loss on val."""
    mean, std = mean.to(device), std.to(device)
    probe = _start(len(protocol.l2), protocol, len(mean), loss.columns, device)
    optimizer = torch.optim.Adam(probe, lr=protocol.learning_rate)
    strengths = torch.tensor(protocol.l2, device=device)
    n, size = len(train.y), min(protocol.batch_size, len(train.y))
    steps = protocol.steps(n)
    order = sample_index(np.arange(steps * size, dtype=np.int64), n, protocol.seed).reshape(steps, size)
    every = max(1, steps // protocol.checks)
    best, least, stale = _copy(probe), torch.full_like(strengths, torch.inf), 0
    for step in range(steps):
        rate = protocol.learning_rate * 0.5 * (1 + np.cos(np.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate
        rows = np.sort(order[step])
        x = (train.tokens(rows).to(device) - mean) / std
        penalty = 0.5 * strengths * probe.weight.square().sum((1, 2))
        objective = loss(logits_of(probe, x), train.y[rows]) / size + penalty
        optimizer.zero_grad()
        objective.sum().backward()
        optimizer.step()
        if (step + 1) % every and step + 1 < steps:
            continue
        now = sum(loss(logits, val.y[rows]) for rows, logits in _logits(probe, val, mean, std))
        assert isinstance(now, Tensor)
        better = now < least
        least, stale = torch.where(better, now, least), 0 if bool(better.any()) else stale + 1
        for kept, part in zip(best, probe, strict=True):
            kept[better] = part.detach()[better]
        if stale == 3:
            break
    return best


def _start(strengths: int, protocol: Protocol, width: int, columns: int, device: torch.device) -> Probe:
    """Return the first parameters, the same for all strengths; they depend only on the seed and the sizes."""
    drawn = generator(protocol.seed).standard_normal((protocol.heads, width)).astype(np.float32)
    drawn[0] = 0
    queries = torch.from_numpy(drawn).to(device).repeat(strengths, 1, 1)
    weight = torch.zeros(strengths, protocol.heads * width, columns, device=device)
    bias = torch.zeros(strengths, 1, columns, device=device)
    return Probe(*(part.requires_grad_() for part in (queries, weight, bias)))


def _copy(probe: Probe) -> Probe:
    return Probe(*(part.detach().clone() for part in probe))


@torch.no_grad()
def _logits(
    probe: Probe, images: Images, mean: Tensor, std: Tensor
) -> list[tuple[NDArray[np.int64], Tensor]]:
    """Return the rows (m,) and logits (strengths, m, columns) of each batch of images."""
    device = probe.bias.device
    found = []
    for start in range(0, len(images.x), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(images.x)))
        x = (images.tokens(rows).to(device) - mean.to(device)) / std.to(device)
        found.append((rows, logits_of(probe, x)))
    return found
