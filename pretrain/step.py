"""One optimizer step, exact for any number of micro-batches.

The head (projector, batch norm, SIGReg) sees the whole batch's embeddings at once. With
accumulation the encoder runs twice: first without gradient to gather the embeddings, then micro-batch
by micro-batch against the fixed gradient that the head gave each embedding (gradient caching, Gao et
al. 2021, arXiv:2101.06983). Loss and gradient equal the undivided step's.
"""

import torch
from torch import Tensor

from pretrain.engines.ddp import DDPEngine


def train_step(
    engine: DDPEngine, views: list[Tensor], step: int, lr: float, accumulation: int = 1
) -> dict[str, Tensor]:
    """Update once on this rank's views, one (v, N, C, H, W) a size; returns scalars, still on the device.

    `accumulation` is the number of micro-batches that the N images are cut into.
    """
    parts = accumulated_backward(engine, views, step, accumulation)
    parts["grad_norm"] = engine.step(lr)
    return parts


def accumulated_backward(
    engine: DDPEngine, views: list[Tensor], step: int, accumulation: int
) -> dict[str, Tensor]:
    """Leave the global batch's gradient in the parameters; returns the loss and its parts, detached."""
    if accumulation == 1:
        parts = engine.head(engine.encode(views), step)
        engine.backward(parts["loss"])
        return {name: value.detach() for name, value in parts.items()}

    chunks = list(zip(*(x.tensor_split(accumulation, dim=1) for x in views), strict=True))
    with torch.no_grad():
        embeddings = [engine.encode(list(chunk)) for chunk in chunks]
    whole = torch.cat(embeddings, dim=1).requires_grad_()
    parts = engine.head(whole, step)
    engine.backward(parts["loss"])
    assert whole.grad is not None
    gradients = whole.grad.split([x.shape[1] for x in embeddings], dim=1)
    for chunk, gradient in zip(chunks[:-1], gradients[:-1], strict=True):
        with engine.no_sync():
            engine.backward(engine.encode(list(chunk)), gradient)
    engine.backward(engine.encode(list(chunks[-1])), gradients[-1])
    return {name: value.detach() for name, value in parts.items()}
