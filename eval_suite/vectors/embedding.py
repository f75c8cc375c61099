"""Embed the missing parts of a file of vectors, or take them from the cache of an evaluation."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.dataset import sidecars
from data_pipeline.dataset.index import Dataset
from eval_suite import progress
from eval_suite.features import cache, embed
from eval_suite.features.representation import Representation
from eval_suite.vectors.parts import Parts, joined


def embed_parts(
    parts: Parts,
    numbers: Sequence[int],
    dataset: Dataset,
    r: Representation,
    name: str,
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
) -> None:
    """Embed the parts with these `numbers`, and write each as soon as it is whole.

    `name` is the feature set. Damaged images are left out with their reason. Raises UserError for data that
    cannot be read, and where the disk refuses.
    """
    if not numbers:
        return
    none = _rows(embed.blank(r, device)[name])
    spans = [parts.span(number) for number in numbers]
    batches = (
        list(span[start : start + batch_size]) for span in spans for start in range(0, len(span), batch_size)
    )
    embedded = embed.stream([r], dataset, batches, device, workers)
    total, done = sum(map(len, spans)), 0
    for number, span in zip(numbers, spans, strict=True):
        vectors = [none]
        damaged: dict[int, str] = {}
        for _ in range(0, len(span), batch_size):
            batch = next(embedded)
            damaged |= batch.damaged
            vectors += [_rows(sets[name]) for sets in batch.vectors]
            done += len(batch.samples) + len(batch.damaged)
            progress.doing(f"{done:,} of {total:,} images")
        beside = sidecars.read(dataset, span.start, span.stop)
        parts.write(number, joined(span, beside, np.concatenate(vectors), damaged))


def _rows(x: Tensor) -> NDArray[np.floating]:
    """Return vectors (n, width) as they are, and maps (n, width, h, w) as the tokens of each in float16:
    (n, h · w · width), row after row of the grid.
    """
    if x.dim() == 4:
        x = x.movedim(1, -1).flatten(1).half()
    vectors: NDArray[np.floating] = x.detach().cpu().numpy()
    return vectors


def copy_parts(
    parts: Parts, numbers: Sequence[int], dataset: Dataset, features: Iterator[NDArray[np.float32]]
) -> None:
    """Write the parts with these `numbers` from the features of all samples, which come part by part."""
    wanted = set(numbers)
    for number, vectors in enumerate(features):
        if number in wanted:
            span = parts.span(number)
            progress.doing(f"{span.start:,} of {parts.samples:,} vectors from the cache of the evaluation")
            parts.write(number, joined(span, sidecars.read(dataset, span.start, span.stop), vectors, {}))


def cached(
    folder: Path,
    representations: Sequence[Representation],
    dataset: Dataset,
    device: torch.device,
    **how: Any,
) -> Iterator[NDArray[np.float32]] | None:
    """Return the features that an evaluation has cached for the first possible representation; else None.

    `how` is that of `cache.rows`: the name of the set, and the rows of a piece.
    """
    for r in representations:
        file = folder / f"{r.key(device)}-{dataset.fingerprint}.npz"
        if (found := cache.rows(file, len(dataset), **how)) is not None:
            return found
    return None
