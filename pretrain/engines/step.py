"""One optimizer step, exact for any number of micro-batches.

The head (projector, batch norm, SIGReg) sees the embeddings of the whole batch at once. With accumulation the
encoder runs twice: first without gradient, to gather the embeddings; then micro-batch by micro-batch, against
the gradient that the head gave each embedding (gradient caching, Gao et al. 2021, arXiv:2101.06983). Loss and
gradient equal those of the undivided step.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.engines import Engine
from pretrain.methods.base import HeadOutput


class MicroBatch(NamedTuple):
    """Views of some images, with the keys of their randomness."""

    views: list[Tensor]
    """Normalised images, one (v, n, C, H, W) for each size."""
    keys: Tensor
    """Keys that decide what drop-path drops, int64 (V, n)."""
    beside: Tensor | None = None
    """What the head takes beside embeddings: radians (V, n, actions) by which views were turned, or targets
    (1, n, outputs)."""

    def split(self, count: int) -> "list[MicroBatch]":
        """Divide the images into `count` micro-batches."""
        parts = zip(*(x.tensor_split(count, dim=1) for x in [*self.views, self.keys]), strict=True)
        beside = [None] * count if self.beside is None else self.beside.tensor_split(count, dim=1)
        return [MicroBatch(list(views), keys, b) for (*views, keys), b in zip(parts, beside, strict=True)]


class StepResult(NamedTuple):
    """Results of a step, detached and still on the device."""

    parts: dict[str, Tensor]
    """The loss, its parts and `grad_norm`: scalars of the global batch, equal on all ranks."""
    embeddings: Tensor
    """The encoder's output (V, N, D) for this rank's images."""
    projections: Tensor
    """The head's output (V, N, K) for the same images."""


def train_step(
    engine: Engine,
    batch: MicroBatch,
    step: int,
    lr: float,
    momentum: float = 1.0,
    limit: Callable[[Tensor], Tensor] | None = None,
    head_only: bool = False,
) -> StepResult:
    """Update the networks once, on this rank's images; with `head_only`, the encoder stays as it is.

    `momentum` is that of the target network, where there is one. `limit` maps the loss to the largest
    gradient norm with which the update is accepted.
    """
    batches = batch.split(engine.config.accumulation)
    if head_only:
        result = head_backward(engine, batches, step)
        result.parts["grad_norm"] = engine.step(lr, momentum, limit and limit(result.parts["loss"]))
        return result
    exact = engine.config.accumulate == "exact"
    result = (accumulated_backward if exact else microbatch_backward)(engine, batches, step)
    result.parts["grad_norm"] = engine.step(lr, momentum, limit and limit(result.parts["loss"]))
    return result


def accumulated_backward(engine: Engine, batches: list[MicroBatch], step: int) -> StepResult:
    """Compute the gradient of the global batch and leave it in the parameters."""
    beside = _beside(engine, batches)
    if len(batches) == 1:
        embeddings = engine.encode(batches[0].views, batches[0].keys)
        output = engine.head(embeddings, step, beside)
        engine.backward(output.parts["loss"])
        return _detached(output, embeddings)

    with torch.no_grad():
        pieces = [engine.encode(batch.views, batch.keys) for batch in batches]
    embeddings = torch.cat(pieces, dim=1).requires_grad_()
    output = engine.head(embeddings, step, beside)
    engine.backward(output.parts["loss"])
    assert embeddings.grad is not None
    gradients = embeddings.grad.split([piece.shape[1] for piece in pieces], dim=1)
    for batch, gradient in zip(batches[:-1], gradients[:-1], strict=True):
        with engine.no_sync():
            engine.backward(engine.encode(batch.views, batch.keys), gradient)
    engine.backward(engine.encode(batches[-1].views, batches[-1].keys), gradients[-1])
    return _detached(output, embeddings)


def head_backward(engine: Engine, batches: list[MicroBatch], step: int) -> StepResult:
    """Compute the gradient of the head alone, and leave it in its parameters."""
    with torch.no_grad():
        embeddings = torch.cat([engine.encode(batch.views, batch.keys) for batch in batches], dim=1)
    output = engine.head(embeddings, step, _beside(engine, batches))
    engine.backward(output.parts["loss"])
    return _detached(output, embeddings)


def microbatch_backward(engine: Engine, batches: list[MicroBatch], step: int) -> StepResult:
    """Accumulate as usual, by a mean of the losses of the micro-batches: one forward pass, another objective.

    SIGReg and covariances of a micro-batch are not those of the batch, and batch norm sees fewer images.
    """
    results, share = [], 1 / len(batches)
    for batch in batches:
        beside = _beside(engine, [batch])
        with engine.no_sync() if batch is not batches[-1] else contextlib.nullcontext():
            embeddings = engine.encode(batch.views, batch.keys)
            output = engine.head(embeddings, step, beside)
            engine.backward(output.parts["loss"] * share)
        results.append(_detached(output, embeddings))
    return StepResult(
        {name: torch.stack([r.parts[name] for r in results]).mean() for name in results[0].parts},
        torch.cat([r.embeddings for r in results], dim=1),
        torch.cat([r.projections for r in results], dim=1),
    )


def _beside(engine: Engine, batches: list[MicroBatch]) -> Tensor | None:
    """Return the head's other input for the batches, if it takes one; see `Engine.head`.

    The target's projections are those of the global views, which come first among the views.
    """
    beside = [batch.beside for batch in batches if batch.beside is not None]
    if beside:
        return torch.cat(beside, dim=1)
    n_global = len(batches[0].views[0])
    return engine.target([b.views[:1] for b in batches], [b.keys[:n_global] for b in batches])


def _detached(output: HeadOutput, embeddings: Tensor) -> StepResult:
    """Return the results of a step without their graph."""
    parts = {name: value.detach() for name, value in output.parts.items()}
    return StepResult(parts, embeddings.detach(), output.projections)
