"""Read DICOM files with pydicom: images of one or several frames.

The values are the stored numbers after the rescale slope and intercept (or the modality LUT), so CT slices
are in Hounsfield units. Windows of the header (VOI LUT) are not applied. MONOCHROME1 is inverted before that:
a stored number v becomes lowest + highest − v, where lowest and highest are those that BitsStored allows, so
that larger values are brighter in all pictures. YBR and palette colours become RGB.
"""

import contextlib
import difflib
import logging
from collections.abc import Generator
from typing import Any, BinaryIO, cast

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import keyword_dict, tag_for_keyword
from pydicom.pixels import apply_color_lut, apply_modality_lut, iter_pixels
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from data_pipeline.decoders.pixels import check_size
from data_pipeline.scientific_formats import dicom_codecs
from data_pipeline.scientific_formats.picture import Picture, Reading, filled, numbered, plain
from data_pipeline.scientific_formats.values import scaled, storable

_DEFAULT = {
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "view": "ViewPosition",
    "laterality": "ImageLaterality",
}
"""Fields that every sample gets, by the name in its JSON; none identifies a patient."""
_NO_PICTURES = {"SEG": "segmentation", "RTDOSE": "dose distribution"}
"""Modalities whose pixels are results, not measurements."""

logging.getLogger("pydicom").setLevel(
    logging.CRITICAL
)  # its warnings about unusual values do not matter here


def read(file: BinaryIO, reading: Reading) -> Generator[Picture]:
    """Yield the frames of a DICOM file; a file of one frame gives a picture without a name.

    Raises ValueError for a file without pixels, and whatever pydicom raises for a damaged one.
    """
    dicom_codecs.register()
    file.seek(128)
    has_preamble = file.read(4) == b"DICM"
    file.seek(0)
    # Old files begin without a preamble, in the syntax that was the only one then.
    header = pydicom.dcmread(file, stop_before_pixels=has_preamble, force=not has_preamble)
    if "Rows" not in header or "Columns" not in header:
        what = f" ({header.SOPClassUID.name})" if "SOPClassUID" in header else ""
        raise ValueError(f"a DICOM file without pixels{what}" if has_preamble else "no DICOM file")
    if (kind := header.get("Modality")) in _NO_PICTURES:
        raise ValueError(f"a DICOM {_NO_PICTURES[kind]}, which is no picture")
    if not has_preamble and "TransferSyntaxUID" not in header.file_meta:
        header.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    _check_codec(header.file_meta.TransferSyntaxUID)
    count = int(header.get("NumberOfFrames") or 1)
    whole = not has_preamble or header.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    frames = range(0, count, reading.every)
    if whole and has_preamble:
        file.seek(0)
        header = pydicom.dcmread(file)
    check_size(header.Rows, header.Columns, header.get("SamplesPerPixel", 1))
    fields = _fields(header, reading.keep)
    pixels = iter_pixels(header if whole else file, indices=list(frames))
    with contextlib.closing(cast(Generator[NDArray[Any]], pixels)):  # at its end it moves in the file
        for number, stored in zip(frames, pixels, strict=True):
            name = numbered("f", number, count) if count > 1 else ""
            values = _values(header, stored, number)
            padding = _padding(header, stored, number) if values.ndim == 2 else None
            yield Picture(name, values, fields | _geometry(header, number), padding)


def field(file: BinaryIO, name: str) -> Any:
    """Return a field of the header by its keyword or tag; None if the header lacks it."""
    tag = _tag(name)
    if tag is None:
        return None
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[tag], force=True)
    return _plain(header[tag].value) if tag in header else None


def unknown(name: str) -> str:
    """Return what is wrong with the name of a field, with the nearest one; "" if it is a keyword or tag."""
    if _tag(name) is not None:
        return ""
    near = difflib.get_close_matches(name, keyword_dict, n=1)
    return f"{name} is no keyword of DICOM" + (
        f"; do you mean {near[0]}?" if near else ", such as PatientAge"
    )


def _check_codec(syntax: UID) -> None:
    """Raise ValueError if the pixels are compressed in a way that no installed library decodes."""
    if not syntax.is_transfer_syntax:
        raise ValueError(f"a DICOM file of unknown transfer syntax {syntax}")
    if not syntax.is_encapsulated:
        return
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        raise ValueError(f"a DICOM file compressed as {syntax.name}, which is not read") from None
    if not decoder.is_available:
        raise ValueError(
            f'a DICOM file compressed as {syntax.name}; to read it: pip install "isotorus[medical]"'
        )


def _values(header: pydicom.Dataset, stored: NDArray[Any], frame: int) -> NDArray[Any]:
    """Return the values of a frame, (H, W) or (H, W, 3)."""
    photometric = header.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        return storable(apply_color_lut(stored, header))
    if stored.ndim == 3:
        return storable(stored)
    if photometric == "MONOCHROME1" and stored.dtype.kind in "iu":
        highest = 2 ** int(header.BitsStored) - 1
        signed = bool(header.PixelRepresentation)
        stored = ((-1 if signed else highest) - stored.astype(np.int64)).astype(stored.dtype)
    if "ModalityLUTSequence" in header:
        return storable(apply_modality_lut(stored, header))
    transformation = _functional(header, "PixelValueTransformationSequence", frame) or header
    slope, intercept = transformation.get("RescaleSlope"), transformation.get("RescaleIntercept")
    return scaled(stored, float(1 if slope is None else slope), float(intercept or 0))


def _padding(header: pydicom.Dataset, stored: NDArray[Any], frame: int) -> float | None:
    """Return the value of the pixels that the scanner did not measure; None if the header names none."""
    padding = header.get("PixelPaddingValue")
    if not isinstance(padding, int) or "PixelPaddingRangeLimit" in header or stored.dtype.kind not in "iu":
        return None
    limits = np.iinfo(stored.dtype)
    if not limits.min <= padding <= limits.max:
        return None
    return float(_values(header, np.full((1, 1), padding, stored.dtype), frame)[0, 0])


def _functional(header: pydicom.Dataset, name: str, frame: int) -> pydicom.Dataset | None:
    """Return an item of the functional groups of an enhanced multi-frame file; None if there is none.

    The item of the frame itself takes precedence over the one that all frames share.
    """
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for group in (*own[frame : frame + 1], *shared[:1]):
        if found := group.get(name):
            item: pydicom.Dataset = found[0]
            return item
    return None


def _fields(header: pydicom.Dataset, keep: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields that hold for all frames: the default ones, and those to `keep` by DICOM keyword."""
    fields = {name: plain(header.get(keyword)) for name, keyword in _DEFAULT.items()}
    maker = (header.get("Manufacturer"), header.get("ManufacturerModelName"))
    fields["device"] = plain(" ".join(str(part) for part in maker if part))
    for name in keep:
        tag = _tag(name)
        if tag is not None and tag in header:
            fields[header[tag].keyword or name] = _plain(header[tag].value)
    return filled(fields)


def _geometry(header: pydicom.Dataset, frame: int) -> dict[str, Any]:
    """Return the distance between rows and between columns in mm, and the thickness of the slice."""
    measures = _functional(header, "PixelMeasuresSequence", frame) or header
    spacing = measures.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    thickness = measures.get("SliceThickness")
    fields: dict[str, Any] = {}
    if spacing and len(spacing) == 2:
        fields |= {"spacing": [float(each) for each in spacing], "spacing_unit": "mm"}
    if thickness is not None:
        fields["thickness"] = float(thickness)
    return fields


def _tag(name: str) -> int | None:
    """Return the tag of a keyword, or that of eight hexadecimal digits, such as 0010,1010; None for other
    names.
    """
    if (known := tag_for_keyword(name)) is not None:
        return known
    digits = name.strip("()").replace(",", "").replace(" ", "")
    return int(digits, 16) if len(digits) == 8 and set(digits.lower()) <= set("0123456789abcdef") else None


def _plain(value: Any) -> Any:
    """Return the value of an element as JSON has it: `plain` for the types that only pydicom has, too.

    The items of a sequence become mappings by keyword.
    """
    if isinstance(value, pydicom.Sequence):
        return [{each.keyword or str(each.tag): _plain(each.value) for each in item} for item in value]
    if isinstance(value, pydicom.multival.MultiValue):
        return [_plain(each) for each in value]
    if isinstance(value, pydicom.valuerep.IS):
        return int(value)
    return plain(float(value) if isinstance(value, pydicom.valuerep.DSdecimal) else value)
