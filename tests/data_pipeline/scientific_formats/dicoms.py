"""DICOM files for the tests, written by pydicom; compressed frames are encoded by imagecodecs."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def ct_values(seed: int, height: int = 48, width: int = 40) -> NDArray[np.int16]:
    """Return Hounsfield units of a round body in air, with noise."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    noise = np.random.default_rng(seed).normal(0, 20, (height, width))
    return (np.where(x**2 + y**2 < 0.6, 40 + 30 * np.cos(7 * x + seed), -1000) + noise).astype(np.int16)


def write_dicom(
    path: Path,
    pixels: NDArray[Any],
    *,
    stored_bits: int | None = None,
    frames: list[bytes] | None = None,
    syntax: str = ExplicitVRLittleEndian,
    **fields: Any,
) -> FileDataset:
    """Write `pixels` (H, W), (H, W, 3) or with `NumberOfFrames` (N, H, W[, 3]), or their encoded `frames`."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = syntax
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientBirthDate = "Roe^Jane", "MRN-4711", "19500203"
    data.AccessionNumber, data.StudyDate, data.StudyDescription = "A-99", "20200101", "seen by Dr. Who"
    data.Modality, data.Manufacturer, data.ManufacturerModelName = "CT", "Acme", "Scan 9"
    data.PixelSpacing, data.SliceThickness = [0.7, 0.8], 2.5
    many = "NumberOfFrames" in fields
    data.Rows, data.Columns = pixels.shape[many : many + 2]
    data.SamplesPerPixel = pixels.shape[2 + many] if pixels.ndim == 3 + many else 1
    data.PhotometricInterpretation = "RGB" if data.SamplesPerPixel == 3 else "MONOCHROME2"
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = pixels.dtype.itemsize * 8
    data.BitsStored = stored_bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in fields.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes() if frames is None else encapsulate(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return data


def write_ct(path: Path, seed: int, **fields: Any) -> NDArray[np.int16]:
    """Write a CT slice as scanners do, with an intercept of -1024, and return its Hounsfield units."""
    values = ct_values(seed)
    stored = (values + 1024).clip(0, 4095).astype(np.uint16)
    write_dicom(path, stored, stored_bits=12, RescaleSlope=1, RescaleIntercept=-1024, **fields)
    return stored.astype(np.int16) - 1024


def read_by_pydicom(path: Path) -> NDArray[Any]:
    """Return the values as pydicom gives them: float64, after the rescale."""
    data = pydicom.dcmread(path)
    return pydicom.pixels.apply_rescale(data.pixel_array, data)
