"""The masks of a data set: for each pixel of an image the number of its class, in a file `<key>.mask.png`.

A mask is a grey PNG of 8 bits with the height and width of its image. 255 means that nobody labelled the
pixel. Like the JSON file of a sample, it lies between its image and the next one in the shard, or before it
in tars that others made.
"""

import functools
import io
from collections.abc import Callable, Hashable
from pathlib import PurePosixPath
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.dataset import sidecars
from data_pipeline.dataset.index import Corrupt, Dataset, key_prefix
from data_pipeline.storage.tar_reader import key_and_extension

EXTENSION = "mask.png"
IGNORED = 255
"""Value of pixels that belong to no class."""


def read(dataset: Dataset, i: int) -> NDArray[np.uint8] | None:
    """Return the mask (H, W) of sample `i`; None if it has none.

    Raises `Corrupt` if the mask cannot be decoded or has not the size of its image, and `UserError` if the
    shard cannot be read.
    """
    content = _file(dataset, i)
    if content is None:
        return None
    row = dataset.rows[i]
    try:
        mask = decode(content, int(row["height"]), int(row["width"]))
    except ValueError as error:
        raise Corrupt(f"the mask of sample {dataset.name(i)}: {error}; pack the images again") from None
    if mask.max(initial=0) > IGNORED:
        raise Corrupt(f"the mask of sample {dataset.name(i)} has values above {IGNORED}")
    return mask.astype(np.uint8)


def has(dataset: Dataset, i: int) -> bool:
    """Return whether sample `i` has a mask, which may be damaged; raises `UserError` for a shard that cannot
    be read.
    """
    return _file(dataset, i) is not None


def _file(dataset: Dataset, i: int) -> bytes | None:
    """Return the file with the mask of sample `i`; None if it has none."""
    key, _ = dataset.key_and_name(i)
    prefix = key_prefix(
        dataset.description.tar_names_in_keys, dataset.shard_name(int(dataset.rows[i]["shard"]))
    )
    for name, content in sidecars.files_beside(dataset, i, f".{EXTENSION}"):
        found = key_and_extension(name)
        if found is not None and prefix + found[0] == key and found[1].lower() == EXTENSION:
            return content
    return None


class Found(NamedTuple):
    """The masks of a data set."""

    known: NDArray[np.bool_]
    """Which samples (n,) have a mask."""
    classes: list[int]
    """The numbers of the classes that occur."""


LOOKED_AT = 64
"""Number of samples that are searched for masks if dataset.json says nothing about masks. Tars that others
made may hold some."""


P = ParamSpec("P")
R = TypeVar("R")


def _once(look: Callable[Concatenate[Dataset, P], R]) -> Callable[Concatenate[Dataset, P], R]:
    """Return a function that remembers what `look` returned for a data set and the other arguments.

    A command opens the same set several times, and each time would decode all its masks again.
    """
    known: dict[Hashable, R] = {}

    @functools.wraps(look)
    def remembered(dataset: Dataset, *arguments: P.args, **options: P.kwargs) -> R:
        key = dataset.path, dataset.fingerprint, *arguments, *options.items()
        if key not in known:
            known[key] = look(dataset, *arguments, **options)
        return known[key]

    return remembered


@_once
def find(dataset: Dataset) -> Found:
    """Find out which samples have a mask; raises `UserError` for a mask that cannot be read.

    Masks are read unless dataset.json says that every image has one. After `isotorus remove` they are read
    too, because dataset.json still names the classes of the masks that were removed.
    """
    facts, count = dataset.description.masks, len(dataset)
    if facts is not None and facts.images == count and not dataset.description.removed:
        return Found(np.ones(count, bool), facts.classes)
    known, present = np.zeros(count, bool), np.zeros(IGNORED + 1, bool)
    for i in range(count):
        if facts is None and i == LOOKED_AT and not known.any():
            break
        if (mask := read(dataset, i)) is not None:
            known[i] = True
            present[mask] = True
    return Found(known, np.flatnonzero(present[:IGNORED]).tolist())


@_once
def count_pixels(dataset: Dataset, samples: tuple[int, ...]) -> NDArray[np.int64]:
    """Return how many pixels of the masks of samples have each value (256,); raises as `read` does."""
    counts = np.zeros(IGNORED + 1, np.int64)
    for i in samples:
        if (mask := read(dataset, i)) is not None:
            counts += np.bincount(mask.ravel(), minlength=IGNORED + 1)
    return counts


def decode(data: bytes, height: int, width: int) -> NDArray[np.uint16]:
    """Return the values (height, width) of a PNG: grey, of a palette (its indices), or colours that are grey.

    Raises ValueError, with the reason in one line, for another size, for colours, and for bytes that are no
    PNG. The size is compared before anything is decoded.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        if image.size != (width, height):
            raise ValueError(
                f"it has {image.width} × {image.height} pixels, its image {width} × {height}; make them equal"
            )
        values = np.array(image)
    except ValueError:
        raise
    except Exception as error:  # Pillow raises nearly every kind of exception for damaged files
        raise ValueError(f"it is no PNG, or damaged ({' '.join(str(error).split())[:100]})") from None
    if values.ndim == 3:  # the last band of an even number is transparency
        bands = values[..., : values.shape[2] - (values.shape[2] % 2 == 0)]
        if (bands != bands[..., :1]).any():
            raise ValueError("it has colours; expected one channel with the number of each pixel's class")
        values = bands[..., 0]
    numbers: NDArray[np.uint16] = values.astype(np.uint16)
    return numbers


def encode(mask: NDArray[np.uint8]) -> bytes:
    """Return a grey PNG of 8 bits with the values of `mask` (H, W), and nothing else."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return file.getvalue()


def classes(png: bytes) -> list[int]:
    """Return the numbers of the classes in a mask that `encode` made."""
    return sorted(set(np.unique(np.array(Image.open(io.BytesIO(png)))).tolist()) - {IGNORED})


def is_mask(path: str) -> bool:
    """Return whether a path ends like that of a mask beside its image, as scan.mask.png does."""
    return PurePosixPath(path).name.lower().endswith(f".{EXTENSION}")
