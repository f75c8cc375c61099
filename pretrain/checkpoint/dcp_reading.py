"""Read a DCP checkpoint without running anything that it holds.

DCP keeps its metadata, and values that are no tensors, as pickles, which run whatever code they name. A run
folder may come from somebody else, and the checksums in it prove nothing then. So the metadata are read by an
unpickler that accepts the few classes they consist of, and values by torch's reader of plain data.
"""

import io
import pickle
from pathlib import PurePath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, kind in vars(torch).items() if isinstance(kind, torch.dtype))},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},  # Python 3.13's name of the same
}
"""What metadata consist of, by module."""


class Foreign(Exception):
    """A checkpoint that holds something that this program never writes."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _CLASSES.get(module, ()):
            raise Foreign(
                f".metadata names {module[:80]}.{name[:80]}, which could run code, and was not read"
            )
        return super().find_class(module, name)


class Reader(dcp.FileSystemReader):
    """Reads the files of a checkpoint's folder; raises Foreign for what is no metadata of DCP."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read .metadata; raises Foreign, and OSError."""
        with open(self._get_metadata_path(kwargs.get("rank")), "rb") as file:  # noqa: PTH123, as DCP names it
            try:
                metadata = _Unpickler(file).load()
            except (Foreign, OSError):
                raise
            except Exception as error:  # damaged pickles raise nearly every kind
                raise Foreign(f".metadata cannot be read ({type(error).__name__})") from None
        places = getattr(metadata, "storage_data", None)
        if not isinstance(metadata, Metadata) or not isinstance(places, dict):
            raise Foreign(".metadata is not that of a checkpoint")
        for place in places.values():
            if str(place.relative_path) in ("..", ".") or "/" in str(place.relative_path):
                raise Foreign(f".metadata names a file elsewhere, {str(place.relative_path)[:80]}")
        if metadata.storage_meta is None:
            metadata.storage_meta = dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class Planner(DefaultLoadPlanner):
    """Reads values that are no tensors as plain data: numbers, texts, lists and mappings."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value into the state dict that is being loaded, through bytes of our own.

        The planner would run whatever the bytes of the checkpoint name, so it gets others of equal value.
        """
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


def load(state: dict[str, Any], checkpoint: PurePath, *, no_dist: bool = False) -> None:
    """Fill `state` from a checkpoint as `dcp.load` does."""
    dcp.load(state, storage_reader=Reader(checkpoint), planner=Planner(), no_dist=no_dist)
