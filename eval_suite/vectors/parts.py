"""The finished parts of a file of vectors that is being made, in a folder beside it.

A part has the vectors of a fixed range of samples, so that any number of processes can share the work, and a
command that is started again embeds only what is missing. Each part is written whole or not at all, and
counts only with a seal of this user, because the folder may be somebody else's.
"""

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_pipeline.dataset.sidecars import Sidecar
from eval_suite.inputs import seals
from isotorus import foreign_files
from isotorus.errors import from_os_error
from isotorus.files import atomic, remove_leftovers

_LEFT_OUT = b"left_out"


@dataclass(frozen=True)
class Part:
    """The content of a part."""

    samples: NDArray[np.int64]
    """The samples (n,) that have vectors, in their order."""
    sidecars: list[Sidecar]
    """What the shards hold beside the image of each sample."""
    vectors: NDArray[np.floating]
    """(n, width): float32, or float16 for the tokens of a map, one after the other; (n, 0) if not read."""
    left_out: dict[int, str]
    """Why the other samples of the range have none."""


@dataclass(frozen=True)
class Parts:
    """The parts of one file; part i has the samples from i · `rows` on."""

    folder: Path
    samples: int
    """Number of samples of the data set."""
    rows: int
    """Samples of a part."""

    def __len__(self) -> int:
        return -(-self.samples // self.rows)

    def span(self, number: int) -> range:
        """Return the samples of a part."""
        return range(number * self.rows, min((number + 1) * self.rows, self.samples))

    def make_folder(self) -> None:
        """Make the folder, and remove what killed writers left there; raises UserError if it cannot be.

        A link out of the folder above it is refused, because somebody else may have put it there.
        """
        foreign_files.inside(self.folder, self.folder.parent)
        try:
            self.folder.mkdir(exist_ok=True)
            remove_leftovers(self.folder, ("*.parquet", "*.seal"))
        except OSError as error:
            raise from_os_error(error, f"writing {self.folder}") from error

    def missing(self) -> list[int]:
        """Return the numbers of the parts that this user has not finished."""
        files = [self._file(number) for number in range(len(self))]
        return [number for number, file in enumerate(files) if not seals.holds(_seal(file), [file])]

    def unwritten(self) -> list[int]:
        """Return the numbers of the parts that have no file."""
        return [number for number in range(len(self)) if not self._file(number).exists()]

    def write(self, number: int, part: Part) -> None:
        """Write a part; raises UserError where the disk refuses."""
        flat = pa.array(part.vectors.reshape(-1))
        columns = {
            "sample": pa.array(part.samples),
            "key": pa.array([text(sidecar.key) for sidecar in part.sidecars], pa.string()),
            "name": pa.array([text(sidecar.name) for sidecar in part.sidecars], pa.string()),
            # ASCII, because text of JSON may hold halves of characters, which UTF-8 does not have.
            "columns": pa.array([json.dumps(sidecar.columns) for sidecar in part.sidecars], pa.string()),
            "vectors": pa.FixedSizeListArray.from_arrays(flat, part.vectors.shape[1]),
        }
        table = pa.table(columns).replace_schema_metadata({_LEFT_OUT: json.dumps(part.left_out)})
        content = io.BytesIO()
        pq.write_table(table, content, use_dictionary=False, write_statistics=False)
        file = self._file(number)
        try:
            with atomic(file) as stream:
                stream.write(content.getbuffer())
        except OSError as error:
            raise from_os_error(error, f"writing {self.folder} (finished parts are kept)") from error
        seals.write(_seal(file), [file])

    def read(self, number: int, *, vectors: bool = True) -> Part:
        """Return the content of a part that `write` has made; the vectors are most of it."""
        beside = ["sample", "key", "name", "columns"]
        with foreign_files.open_binary(self._file(number)) as stream:
            table = pq.read_table(stream, columns=beside + ["vectors"] * vectors)
        x = np.empty((len(table), 0), np.float32)
        if vectors:
            width = table.schema.field("vectors").type.list_size
            x = table["vectors"].combine_chunks().flatten().to_numpy().reshape(-1, width)
        sidecars = zip(*(table[name].to_pylist() for name in beside[1:]), strict=True)
        left_out = json.loads(table.schema.metadata[_LEFT_OUT])
        return Part(
            table["sample"].to_numpy(),
            [Sidecar(key, name, json.loads(columns)) for key, name, columns in sidecars],
            x,
            {int(sample): why for sample, why in left_out.items()},
        )

    def remove(self) -> None:
        """Delete the parts, when the file that they are for is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"


def joined(
    samples: Sequence[int],
    sidecars: Sequence[Sidecar],
    vectors: NDArray[np.floating],
    damaged: Mapping[int, str],
) -> Part:
    """Return a part, given the sidecars of all its samples and the vectors of the undamaged ones.

    Vectors that are not finite are left out with their reason.
    """
    start = samples[0]
    embedded = np.array([i for i in samples if i not in damaged], dtype=np.int64)
    finite = np.isfinite(vectors).all(axis=1)
    why = (
        "its vector is not finite" if vectors.dtype == np.float32 else "its tokens are not finite in float16"
    )
    broken = {int(i): why for i in embedded[~finite]}
    kept = embedded[finite]
    return Part(kept, [sidecars[i - start] for i in kept.tolist()], vectors[finite], {**damaged, **broken})


def text(value: str) -> str:
    """Return text that UTF-8 can write: names of files may hold other bytes, JSON half characters."""
    return value.encode(errors="backslashreplace").decode()


def _seal(file: Path) -> Path:
    return file.with_name(f"{file.name}.seal")
