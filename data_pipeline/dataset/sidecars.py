"""What a sample has beside its image: its key, and the columns in the JSON file of its sample.

`pack` writes into this file all columns of a table of images except the path and the label, and the fields of
an image's header. Tars that others made may hold more. The index does not point to these files, so the bytes
between two images are searched for them.
"""

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from tarfile import BLOCKSIZE
from typing import Any, NamedTuple

from data_pipeline.dataset.index import Dataset, key_prefix
from data_pipeline.storage.tar_reader import Damaged, Tar, key_and_extension, stem

LARGEST = 2**26
"""Most bytes between two images that are searched; a longer piece holds other data than columns."""


class Sidecar(NamedTuple):
    """What the shard says about a sample beside its image."""

    key: str
    name: str
    """Name of its image file in the shard."""
    columns: dict[str, Any]
    """Values of its JSON file by name; {} without such a file."""


def read(dataset: Dataset, start: int, stop: int) -> list[Sidecar]:
    """Return what the data set says about samples `start` to `stop` - 1.

    The JSON file of an image may stand before it or after it, up to the next image of this range. A file that
    is not a JSON object gives no columns. Raises `UserError` if a shard cannot be read.
    """
    found: dict[tuple[str, str], bytes] = {}
    rows = dataset.rows
    for i in range(start, stop):
        prefix = key_prefix(dataset.description.tar_names_in_keys, dataset.shard_name(int(rows["shard"][i])))
        for name, content in files_beside(dataset, i, ".json", start):
            key, extension = key_and_extension(name) or (name, "")
            found[prefix + key, extension] = content
    sidecars = []
    for i in range(start, stop):
        key, name = dataset.key_and_name(i)
        # The columns of a.left.png are in a.json or, if that does not exist, in a.left.json.
        own = stem("", (key_and_extension(name) or ("", ""))[1])
        content = found.get((key, "json")) or found.get((key, f"{own}.json"), b"")
        sidecars.append(Sidecar(key, name, _columns(content)))
    return sidecars


def files_beside(
    dataset: Dataset, i: int, ending: str, start: int | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file between image `i` and its neighbours whose name ends in `ending`.

    With `start`, the first of several images that are read, what lies before image `i` is left out unless it
    is that one: it lies behind image `i` - 1.
    """
    for begin, end in _gaps(dataset, i, i if start is None else start):
        if 0 < end - begin <= LARGEST:
            yield from _files(dataset.read_range(i, begin, end - begin), ending)


def _gaps(dataset: Dataset, i: int, start: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the pieces of the shard between image `i` and the images before and after it.

    The piece before image `i` is left out if image `i` - 1 is in the range from `start` on: it is the piece
    after that image.
    """
    shards, offsets = dataset.rows["shard"], dataset.rows["offset"]
    if i == 0 or shards[i - 1] != shards[i]:
        yield 0, int(offsets[i])
    elif i == start:
        yield _end(dataset, i - 1), int(offsets[i])
    follows = i + 1 < len(dataset) and shards[i + 1] == shards[i]
    yield _end(dataset, i), int(offsets[i + 1] if follows else dataset.shards["bytes"][shards[i]])


def _end(dataset: Dataset, i: int) -> int:
    """Return where the blocks of image `i` end in its shard."""
    row = dataset.rows[i]
    return int(row["offset"]) + -(-int(row["size"]) // BLOCKSIZE) * BLOCKSIZE


def _columns(content: bytes) -> dict[str, Any]:
    """Return the values of a JSON object by name, {} for anything else."""
    with suppress(ValueError, RecursionError):
        values = json.loads(content)
        if isinstance(values, dict):
            return values
    return {}


def _files(data: bytes, ending: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file of this ending in a piece of a tar, which may end with the
    header of an image.
    """
    tar = Tar(io.BytesIO(data), len(data))
    with suppress(Damaged):  # because the image that the last header announces is not in the piece
        for member in tar:
            if member.name.lower().endswith(ending) and not member.link:
                yield member.name, tar.read()
