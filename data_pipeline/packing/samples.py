"""Turn one file into the samples that are packed: one for an image, and one for each picture of a volume."""

import contextlib
import functools
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.dataset.description import MaskRule
from data_pipeline.dataset.index import LARGEST_IMAGE, key_hash
from data_pipeline.decoders.decode import EXTENSIONS, decode_valid
from data_pipeline.decoders.intensity import Intensity, NoValidValue, Valid
from data_pipeline.decoders.pixels import PixelRules, Pixels, check_size
from data_pipeline.packing import item_bytes, masks
from data_pipeline.packing.listing import Item
from data_pipeline.packing.manifest import without_nan
from data_pipeline.scientific_formats import formats
from data_pipeline.scientific_formats import tiff_stack as stack
from data_pipeline.scientific_formats.picture import Picture, Reading
from data_pipeline.scientific_formats.stored import as_tiff
from isotorus.errors import UserError, from_os_error
from isotorus.foreign_files import open_regular

_TIFF = (".tif", ".tiff")
_Decode = Callable[[bytes], tuple[Pixels, Valid | None]]
"""`decode_valid` with the options of the packing."""


class Sample(NamedTuple):
    """One sample of a shard."""

    key: str
    extension: str
    """Ending of the image in the shard, without the dot."""
    data: bytes
    """Bytes of the image in the shard."""
    pixels: Pixels
    valid: Valid | None
    """Which of its values are valid; None if all are."""
    extra: str
    """Content of the JSON file of the sample; "" for no such file."""
    mask: bytes = b""
    """PNG with the class of each pixel; empty for no mask."""


class LeftOut(NamedTuple):
    """A picture or the mask of a file that is left out, while the others are packed."""

    name: str
    """The picture or the mask, in words."""
    reason: str


def samples(
    source: Path,
    item: Item,
    channels: int | None,
    rules: PixelRules,
    intensity: Intensity,
    reading: Reading,
    mask_rule: MaskRule,
) -> Iterator[Sample | LeftOut]:
    """Yield the samples of a file, and those of its pictures that are left out because no value is valid.

    A mask that does not fit its image is left out too, and the image is packed without.

    Raises ValueError, with the reason in one line, if the file is damaged or cannot be packed, `UserError` if
    it cannot be read or has changed since it was listed, and MemoryError.
    """
    if item.unread:
        raise ValueError(f"no regular file but a {item.unread}")
    extension = Path(item.path).suffix.lower()
    decode = functools.partial(decode_valid, channels=channels, depth=None, rules=rules, intensity=intensity)
    if item.format or (extension in _TIFF and rules > 1 and _is_stack(source, item)):
        with _one_reason():
            for picture in _pictures_of(source, item, reading, decode):
                own = isinstance(picture, Sample) and picture.key == item.key
                yield from _with_mask(picture, item, mask_rule) if own else (picture,)
        return
    if extension not in EXTENSIONS:
        raise ValueError(f"no image by its name; expected {', '.join(sorted(EXTENSIONS))}")
    if item.size > LARGEST_IMAGE:
        raise ValueError(f"{item.size} bytes; at most {LARGEST_IMAGE} are supported")
    data = _read(source, item)
    pixels, valid = decode(data)
    header = stack.fields_of_one(data) if extension in _TIFF and rules > 1 else {}
    sample = Sample(item.key, extension.removeprefix("."), data, pixels, valid, _extra(item, header))
    yield from _with_mask(sample, item, mask_rule)


def _with_mask(sample: Sample | LeftOut, item: Item, rule: MaskRule) -> Iterator[Sample | LeftOut]:
    """Yield a sample with its mask; before it why the mask is left out, if it is."""
    if item.mask is not None and isinstance(sample, Sample):
        height, width = sample.pixels.shape[:2]
        try:
            sample = sample._replace(mask=masks.packed(item.mask, height, width, rule))
        except ValueError as error:
            yield LeftOut(f"its mask {item.mask.name}", str(error))
    yield sample


def file_row(source: Path, item: Item, first: Sample) -> tuple[int, int, int]:
    """Return the row of `dataset.files` for a file, whose first sample is `first`."""
    if not item.format and first.key == item.key:
        return key_hash(item.key), item.size, zlib.crc32(first.data)
    try:
        size, checksum = item_bytes.size_and_checksum(source / item.path)
    except OSError as error:
        raise from_os_error(error, "reading the images") from error
    if size != item.size:
        raise _changed(source, item)
    return key_hash(item.key), item.size, checksum


def _pictures_of(source: Path, item: Item, reading: Reading, decode: _Decode) -> Iterator[Sample | LeftOut]:
    """Yield the samples of a file of a scientific format: one for each of its pictures."""
    with formats.opened(source / item.path) as file:
        if not isinstance(file, Path) and os.fstat(file.fileno()).st_size != item.size:
            raise _changed(source, item)
        pictures = formats.read(item.format or formats.STACK, file, reading)
        # Closed before the file, because libraries still seek in the file when they close.
        with contextlib.closing(pictures), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that are unusual or damaged
            for picture in pictures:
                yield _sample(item, picture, decode)


def _sample(item: Item, picture: Picture, decode: _Decode) -> Sample | LeftOut:
    """Return the sample of a picture. A picture without a valid value is left out if its file has several.

    Raises ValueError, as `decode` does, for a picture that cannot be packed.
    """
    height, width, *more = picture.values.shape
    check_size(height, width, more[0] if more else 1)
    data = as_tiff(picture.values, picture.nodata)
    try:
        pixels, valid = decode(data)
    except NoValidValue as error:  # as at the ends of a cube
        if not picture.name:
            raise
        return LeftOut(picture.name, str(error))
    key = f"{item.key}/{picture.name}" if picture.name else item.key
    return Sample(key, "tif", data, pixels, valid, _extra(item, picture.header))


@contextlib.contextmanager
def _one_reason() -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into a ValueError with the reason in one line.

    Raises `UserError` if the file cannot be read, and lets MemoryError pass.
    """
    try:
        yield
    except (MemoryError, UserError):
        raise
    except OSError as error:
        if error.errno:  # libraries raise OSError without a number for files that are damaged
            raise from_os_error(error, "reading the images") from error
        raise ValueError(_reason(error)) from error
    except Exception as error:  # libraries raise nearly every kind of exception for damaged files
        raise ValueError(_reason(error)) from error


def _is_stack(source: Path, item: Item) -> bool:
    """Return whether a TIFF is a stack of pictures."""
    try:
        with open_regular(source / item.path) as file:
            return stack.is_stack(file)
    except OSError as error:
        raise from_os_error(error, "reading the images") from error


def _reason(error: Exception) -> str:
    """Return one line about a file that a library could not read."""
    said = " ".join(str(error).split())
    if not isinstance(error, ValueError):
        return f"the file is damaged ({type(error).__name__}: {said})"
    return said if _is_ours(error) else f"the file is damaged, or unusual ({said})"


def _is_ours(error: Exception) -> bool:
    """Return whether an error was raised by this package, whose reasons are meant for users."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("data_pipeline.")


def _extra(item: Item, header: Mapping[str, Any]) -> str:
    """Return the JSON of a sample: the fields of its header, and the columns of its row in the table, which
    take precedence.
    """
    if not header:
        return item.extra
    fields = dict(header) | (json.loads(item.extra) if item.extra else {})
    return json.dumps(without_nan(fields), sort_keys=True, ensure_ascii=False)


def _read(source: Path, item: Item) -> bytes:
    """Return the bytes of an image file; raise `UserError` if its size has changed since it was listed."""
    try:
        with open_regular(source / item.path) as file:
            data = file.read(item.size + 1)
    except OSError as error:
        raise from_os_error(error, "reading the images") from error
    if len(data) != item.size:
        raise _changed(source, item)
    return data


def _changed(source: Path, item: Item) -> UserError:
    """Return the error for a file that has another size than when it was listed."""
    return UserError(
        f"{source / item.path} changed while it was packed; wait until it is complete and pack again"
    )
