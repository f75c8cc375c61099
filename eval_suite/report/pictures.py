"""Pictures in the report: maps of the embedding, and images beside their nearest neighbours."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.pixels import Pixels
from data_pipeline.transforms.views import center_view
from eval_suite.attempts import Unmeasurable
from eval_suite.features.constant import is_constant
from eval_suite.usefulness.neighbors import nearest
from isotorus.randomness import generator

Array = NDArray[np.floating]

MAP_POINTS = 1000
"""Largest number of points of a map; more would take t-SNE long and overlap."""
THUMBNAIL = 96
"""Side of a thumbnail, in pixels."""


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI, its class (None without label), and how it compares with the query."""

    uri: str
    label: str | None
    similarity: float | None = None
    agrees: bool | None = None


def pca_map(x: Array) -> NDArray[np.float64]:
    """Return the first two principal components (n, 2) of `x` (n, d), divided by the spread of the first.

    Raises Unmeasurable where nothing varies.
    """
    points = _components(x, 2)
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))


def tsne_map(x: Array) -> NDArray[np.float64]:
    """Return t-SNE (van der Maaten & Hinton 2008) of `x` (n, d) as (n, 2), or PCA for n < 8 or d = 1.

    Raises Unmeasurable where nothing varies.
    """
    if len(x) < 8 or x.shape[1] < 2:
        return pca_map(x)
    # Fifty components keep almost all of the distances and make the search much cheaper.
    reduced = _components(x, 50)
    perplexity = min(30.0, (len(x) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(reduced)


def _components(x: Array, most: int) -> NDArray[np.float64]:
    """Return at most `most` principal components of `x` (n, d), divided by the deviation of the first.

    If no feature varies, the start of scikit-learn's t-SNE is not finite, and the process ends with a
    segmentation fault. So this function raises Unmeasurable if the variation lies within rounding.
    """
    if len(x) < 2:
        raise Unmeasurable(f"{len(x)} sample; a map needs two or more")
    if is_constant(x):
        raise Unmeasurable("all samples have the same vector, up to rounding")
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    centred /= np.abs(centred).max()
    points = PCA(min(most, *x.shape), svd_solver="full").fit_transform(centred)
    points /= points[:, 0].std()
    assert np.isfinite(points).all()
    return points


def neighbour_rows(
    train: Dataset,
    train_x: Array,
    queries: Dataset,
    query_x: Array,
    channels: int,
    seed: int,
    rows: int = 6,
    columns: int = 5,
) -> list[tuple[Picture, list[Picture]]]:
    """Return random queries of alternating classes, each with the train images most similar to it."""
    chosen = _choose(queries.labels, rows, seed)
    similarity, ids = nearest(train_x, query_x[chosen], min(columns, len(train_x)))
    table = []
    for place, query in enumerate(chosen):
        label = int(queries.labels[query])
        neighbours = [
            Picture(
                thumbnail(train, int(i), channels),
                _class(train, int(i)),
                float(s),
                None if label < 0 or train.labels[i] < 0 else bool(train.labels[i] == label),
            )
            for s, i in zip(similarity[place], ids[place], strict=True)
        ]
        shown = Picture(thumbnail(queries, int(query), channels), _class(queries, int(query)))
        table.append((shown, neighbours))
    return table


def turn(
    train: Dataset, samples: Sequence[int], angles: Sequence[float], channels: int, count: int = 12
) -> list[Picture]:
    """Return images along a circular coordinate: the samples nearest to `count` evenly spaced angles."""
    away = np.asarray(angles)[None] - np.linspace(0, 2 * np.pi, count, endpoint=False)[:, None]
    nearest_to = np.abs(np.angle(np.exp(1j * away))).argmin(axis=1)
    chosen = [int(samples[place]) for place in nearest_to]
    return [Picture(thumbnail(train, i, channels), _class(train, i)) for i in chosen]


def _choose(labels: NDArray[np.integer], count: int, seed: int) -> NDArray[np.int64]:
    """Choose `count` random samples of alternating classes; unlabelled ones only if no sample has a label."""
    order = generator(seed).permutation(len(labels))
    if (labels >= 0).any():
        order = order[labels[order] >= 0]
    # The first sample of every class comes before the second sample of any class.
    turn = np.zeros(len(order), dtype=np.int64)
    for label in np.unique(labels[order]):
        members = labels[order] == label
        turn[members] = np.arange(members.sum())
    return order[np.lexsort((labels[order], turn))][:count]


def _class(dataset: Dataset, i: int) -> str | None:
    """Return the class name of a sample; None without a label."""
    label = int(dataset.labels[i])
    return dataset.classes[label] if label >= 0 else None


def thumbnail(dataset: Dataset, i: int, channels: int) -> str:
    """Return the centre crop of a sample as a JPEG in a data URI."""
    return thumbnail_of(dataset.pixels(i, channels, dataset.depth))


def thumbnail_of(pixels: Pixels) -> str:
    """Return the centre crop of an image (H, W, C) as a JPEG in a data URI."""
    return data_uri(visible(center_view(pixels, THUMBNAIL)), "JPEG")


def visible(image: Tensor) -> Image.Image:
    """Return an image (C, H, W), uint8 or uint16, as one to look at: grey for fewer than three channels.

    Images with more than three channels show the first three.
    """
    values = image.float()
    if image.dtype == torch.uint16:  # 16-bit values often use a small part of the range
        values = (values - values.min()) / (values.max() - values.min()).clamp(min=1) * 255
    shown = values.byte().permute(1, 2, 0).numpy()
    return Image.fromarray(shown[..., 0] if len(image) < 3 else shown[..., :3])


def data_uri(image: Image.Image, format: Literal["JPEG", "PNG"]) -> str:
    """Return an image as a data URI, which a page can hold."""
    stream = io.BytesIO()
    image.save(stream, format, quality=82)  # PNG has no quality, and ignores it
    return f"data:image/{format.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
