"""Samples that the library webdataset has read from the shards of a data set, decoded by its index."""

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from data_pipeline.dataset.index import Corrupt, Dataset, key_hash, key_prefix
from data_pipeline.storage.reader import join
from isotorus.errors import UserError


def shard_paths(dataset: Dataset) -> list[str]:
    """Return the paths or URLs of all shards."""
    return [join(dataset.path, dataset.shard_name(number)) for number in range(len(dataset.shards))]


@dataclass
class Decoder:
    """A stage of a pipeline: from the files of each sample to its image, label and metadata.

    Samples that are not in the index, such as images that `isotorus index` left out, are passed over.
    """

    dataset: Dataset
    channels: int | None
    depth: Literal[8, 16] | None
    pil: bool
    """Whether images are PIL images and not arrays."""

    def __post_init__(self) -> None:
        if self.pil and (self.depth != 8 or (self.channels or self.dataset.channels) not in (1, 3)):
            raise UserError("pil=True: PIL holds 8-bit images of 1 or 3 channels; leave it out for arrays")
        self._numbers = {path: number for number, path in enumerate(shard_paths(self.dataset))}

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the decoded samples."""
        shard, rows, prefix = -1, dict[int, int](), ""
        for sample in samples:
            number = self._numbers[sample["__url__"]]
            if number != shard:
                shard, rows, prefix = number, self._rows(number), self._prefix(number)
            key = prefix + sample["__key__"]
            if (row := rows.get(key_hash(key))) is not None:
                yield self._decoded(sample, key, row)

    def _rows(self, shard: int) -> dict[int, int]:
        """Return the rows of a shard's samples by the hashes of their keys."""
        start, count = (int(self.dataset.shards[name][shard]) for name in ("first", "samples"))
        hashes = self.dataset.rows["key"][start : start + count].tolist()
        return dict(zip(hashes, range(start, start + count), strict=True))

    def _prefix(self, shard: int) -> str:
        """Return what comes before the names in a shard to make keys."""
        return key_prefix(self.dataset.description.tar_names_in_keys, self.dataset.shard_name(shard))

    def _decoded(self, sample: dict[str, Any], key: str, row: int) -> dict[str, Any]:
        """Return one sample; raises `Corrupt` if its image is not the packed one, and ValueError if it cannot
        be decoded.
        """
        from data_pipeline.decoders.decode import decode

        dataset = self.dataset
        data = sample.get(dataset.extension(row), b"")
        if zlib.crc32(data) != dataset.rows["checksum"][row]:
            raise Corrupt(
                f"{key} in {sample['__url__']} changed since the index was made; "
                f"run: isotorus verify {dataset.path}, and pack again"
            )
        pixels = decode(
            data, self.channels, self.depth, rules=dataset.pixel_rules, intensity=dataset.intensity
        )
        label = int(dataset.labels[row])
        return {
            "__key__": key,
            "image": Image.fromarray(np.squeeze(pixels, 2) if pixels.shape[2] == 1 else pixels)
            if self.pil
            else pixels,
            "label": label,
            "class": dataset.classes[label] if label >= 0 else "",
            "metadata": json.loads(sample.get("json", b"{}")),
        }
