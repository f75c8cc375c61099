"""Write a file of vectors, and read one piece after piece: Parquet or .npz. Token maps are only written."""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from eval_suite.features import npz
from eval_suite.inputs import seals
from eval_suite.inputs.vectors import refuse_maps
from eval_suite.metrics import MAPS_SUFFIX
from eval_suite.vectors import zarr_store
from eval_suite.vectors.about import KEY, About
from eval_suite.vectors.table import Tables, is_text, numbers, vectors_of
from isotorus import foreign_files
from isotorus.errors import UserError, from_os_error, one_line
from isotorus.files import atomic

SUFFIXES = (".parquet", ".npz")
"""Endings of files of vectors; stores of token maps end in `MAPS_SUFFIX`."""
_PIECE = 4096
"""Number of rows that are read at a time."""
_LONGEST = 2**20
"""Largest length of a file's description, in characters."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a file of vectors."""

    keys: list[str]
    labels: list[str | None]
    """None for a row without label."""
    samples: NDArray[np.int64]
    """Number of each row's sample in the data set, (n,)."""
    vectors: NDArray[np.float32]
    """(n, width)."""


@dataclass(frozen=True)
class VectorsFile:
    """A file that `isotorus embed` wrote, or the description of a store of token maps."""

    path: Path
    about: About

    def pieces(self) -> Iterator[Piece]:
        """Yield the rows of the file in their order; raises UserError if it is damaged."""
        with _readable(self.path):
            read = _npz_pieces if self.path.suffix == ".npz" else _parquet_pieces
            yield from read(self.path, self.about.width)

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield these columns of a Parquet file, a table for each row group."""
        with _readable(self.path), foreign_files.open_binary(self.path) as stream:
            stored = pq.ParquetFile(stream)
            for group in range(stored.num_row_groups):
                yield stored.read_row_group(group, columns=columns).replace_schema_metadata(None)

    @property
    def columns(self) -> list[str]:
        """The names of the columns of a Parquet file."""
        with _readable(self.path), foreign_files.open_binary(self.path) as stream:
            names: list[str] = pq.ParquetFile(stream).schema_arrow.names
            return names

    @property
    def own(self) -> bool:
        """Whether this user's `embed` wrote the file, and nobody has moved or changed it since."""
        return seals.holds(_seal(self.path), [_sealed(self.path)])


def open_file(given: str | Path) -> VectorsFile:
    """Open a file of vectors; raises UserError for anything that `isotorus embed` did not write."""
    path = Path(given).absolute()
    refuse_maps(path)
    check_suffix(path)
    return described(path)


def described(path: Path) -> VectorsFile:
    """Return a file of vectors or a store of token maps; errors are those of `open_file`."""
    with _readable(path):
        about = _about(path)
    if about is None:
        raise UserError(
            f"{path} does not say which encoder made its vectors; make it with isotorus embed, which writes "
            "that down"
        )
    return VectorsFile(path, about)


def check_suffix(path: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Raise UserError unless the name of a file ends in one of `suffixes`."""
    if path.suffix not in suffixes:
        *others, last = suffixes
        raise UserError(
            f"{path.name}: a file of vectors ends in {', '.join(others)} or {last}, not in "
            f"{path.suffix or 'nothing'}; choose one of them"
        )


def write(path: Path, tables: Tables, about: About) -> None:
    """Write a file of vectors, or a store of token maps, from its rows, whole or not at all.

    Raises UserError where the disk refuses.
    """
    try:
        if path.suffix == MAPS_SUFFIX:
            zarr_store.write(path, tables, about)
        else:
            with atomic(path) as stream:
                (_write_npz if path.suffix == ".npz" else _write_parquet)(stream, tables, about)
    except OSError as error:
        raise from_os_error(error, f"writing {path} (finished parts are kept)") from error
    seals.write(_seal(path), [_sealed(path)])


def _write_parquet(stream: Any, tables: Tables, about: About) -> None:
    """Write each table as a row group."""
    writer = None
    for table in tables():
        if writer is None:
            schema = table.schema.with_metadata({KEY: about.model_dump_json()})
            # Compression hardly makes vectors smaller, and nobody reads their dictionaries and bounds.
            packed = {field.name: "snappy" for field in schema if not pa.types.is_fixed_size_list(field.type)}
            names = [name for name in packed if name != "sample"]
            writer = pq.ParquetWriter(
                stream, schema, compression=packed, use_dictionary=names, write_statistics=list(packed)
            )
        writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=len(table))
    assert writer is not None
    writer.close()


def _write_npz(stream: Any, tables: Tables, about: About) -> None:
    """Write `features` piece by piece, and then the other columns, which are held in memory."""
    with zipfile.ZipFile(stream, "w") as archive:

        def write_array(name: str, values: NDArray[Any]) -> None:
            npz.write(archive, name, values.shape, values.dtype, [values])

        write_array(KEY, np.array(about.model_dump_json()))
        shape = (about.rows, about.width)
        vectors = (vectors_of(table) for table in tables())
        npz.write(archive, "features", shape, np.dtype("<f4"), vectors)
        others = pa.concat_tables(tables(features=False))
        for name in others.column_names:
            write_array(name, _as_array(others[name].combine_chunks()))


def _as_array(column: pa.Array) -> NDArray[Any]:
    """Return a column as an array without objects; a missing text is "", a missing number NaN."""
    if pa.types.is_fixed_size_list(column.type):
        return _as_array(column.flatten()).reshape(len(column), column.type.list_size)
    if is_text(column):
        return np.array(["" if value is None else value for value in column.to_pylist()], dtype=np.str_)
    return numbers(column, missing=column.null_count > 0)


def _about(path: Path) -> About | None:
    """Return what a file says about itself; None if it says nothing."""
    if path.suffix == MAPS_SUFFIX:
        said = zarr_store.attributes(path).get(KEY)
        return None if said is None else About.model_validate(said)
    with foreign_files.open_binary(path) as stream:
        if path.suffix == ".npz":
            with np.load(stream, allow_pickle=False) as stored:
                written = str(stored[KEY]) if KEY in stored.files else None
        else:
            metadata = pq.ParquetFile(stream).schema_arrow.metadata or {}
            written = metadata[KEY.encode()].decode() if KEY.encode() in metadata else None
    return None if written is None or len(written) > _LONGEST else About.model_validate_json(written)


def _parquet_pieces(path: Path, width: int) -> Iterator[Piece]:
    with foreign_files.open_binary(path) as stream:
        stored = pq.ParquetFile(stream)
        names = [name for name in ("key", "label", "sample", "features") if name in stored.schema_arrow.names]
        for batch in stored.iter_batches(_PIECE, columns=names):
            table = pa.Table.from_batches([batch])
            labels: list[str | None] = [None] * len(table)
            if "label" in names:
                labels = table["label"].to_pylist()
            vectors = vectors_of(table).astype(np.float32, copy=False)
            yield _checked(path, width, table["key"].to_pylist(), labels, table["sample"].to_numpy(), vectors)


def _npz_pieces(path: Path, width: int) -> Iterator[Piece]:
    with foreign_files.open_binary(path) as stream, np.load(stream, allow_pickle=False) as stored:
        keys, samples = stored["key"], stored["sample"]
        labels = stored["label"] if "label" in stored.files else None
    start = 0
    for vectors in npz.Rows(path, "features").pieces(_PIECE):
        rows = slice(start, start + len(vectors))
        start += len(vectors)
        named: list[str | None] = [None] * len(vectors)
        if labels is not None:
            named = [label or None for label in labels[rows].tolist()]
        yield _checked(path, width, keys[rows].tolist(), named, samples[rows], vectors)


def _checked(
    path: Path, width: int, keys: list[str], labels: list[str | None], samples: Any, vectors: Any
) -> Piece:
    """Return the rows of a file after checks, because another program may have changed the file."""
    n = len(vectors)
    if vectors.shape != (n, width) or not len(keys) == len(labels) == len(samples) == n:
        raise UserError(f"{path}: its columns do not fit its description; embed the images again")
    if not np.isfinite(vectors).all():
        raise UserError(f"{path}: some vectors are not finite; embed the images again")
    return Piece(keys, labels, samples, vectors)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise UserError, in one line, for whatever is wrong with a file that is read in this block."""
    try:
        yield
    except UserError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise UserError(
            f"{path} describes itself otherwise than isotorus embed does ({where}: {first['msg'][:200]}); "
            "embed the images again"
        ) from None
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    except MemoryError:
        raise
    except Exception as error:  # numpy, zipfile and pyarrow raise nearly every kind for damaged files
        said = one_line((str(error).splitlines() or [type(error).__name__])[0])[:200]
        raise UserError(f"{path} cannot be read ({said}); embed the images again") from None


def _seal(path: Path) -> Path:
    return path.with_name(f".{path.name}.seal")


def _sealed(path: Path) -> Path:
    """Return the file that the seal is for; of a store, it is the one that describes it and its arrays."""
    return path / zarr_store.METADATA if path.suffix == MAPS_SUFFIX else path
