"""Measure how fast files become numbers, beside the library of each format alone.

DICOM, FITS, TIFF and JPEG files of one image are written to a temporary folder, and read by turns with this
project and with the library. Prints Markdown rows for RESULTS.md with the least CPU time of each and their
ratio.
"""

import argparse
import io
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import simplejpeg
import tifffile
from astropy.io import fits
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from data_pipeline.decoders.decode import decode
from data_pipeline.decoders.pixels import NEWEST_RULES
from data_pipeline.decoders.tiff import read as read_tiff
from data_pipeline.scientific_formats import formats
from data_pipeline.scientific_formats.picture import Reading

COMMAND = "PYTHONPATH=. python benchmarks/images/reading.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512, help="pixels (default %(default)s)")
    parser.add_argument("--times", type=int, default=40, help="readings of each (default %(default)s)")
    given = parser.parse_args()
    values = np.random.default_rng(0).integers(-1000, 3000, (given.side, given.side), dtype=np.int16)
    grey = ((values.astype(np.int32) + 1000) >> 4).astype(np.uint8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dicom(folder / "a.dcm", values)
        fits.writeto(folder / "a.fits", values.astype(np.float32))
        tifffile.imwrite(folder / "a.tif", values)
        (folder / "a.jpg").write_bytes(simplejpeg.encode_jpeg(np.dstack([grey] * 3), 90))
        jpeg, tiff = ((folder / f"a.{ending}").read_bytes() for ending in ("jpg", "tif"))
        cases: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "DICOM, pydicom": (
                lambda: pictures("DICOM", folder / "a.dcm"),
                lambda: of_pydicom(folder / "a.dcm"),
            ),
            "FITS, astropy": (
                lambda: pictures("FITS", folder / "a.fits"),
                lambda: of_astropy(folder / "a.fits"),
            ),
            "TIFF, tifffile": (
                lambda: read_tiff(tiff, NEWEST_RULES),
                lambda: tifffile.imread(io.BytesIO(tiff)),
            ),
            "JPEG, simplejpeg": (lambda: decode(jpeg), lambda: simplejpeg.decode_jpeg(jpeg)),
        }
        for case, both in cases.items():
            ours, theirs = best(both, given.times)
            print(
                f"| {platform.processor() or 'CPU'} | {case} | {given.side}² | {ours * 1e3:.2f} | "
                f"{theirs * 1e3:.2f} | {ours / theirs:.2f} | `{COMMAND}` |"
            )


def best(both: tuple[Callable[[], object], Callable[[], object]], times: int) -> tuple[float, float]:
    """Return the least seconds of CPU time of each of two functions, called by turns."""
    seconds: list[list[float]] = [[], []]
    for _ in range(times):
        for taken, function in zip(seconds, both, strict=True):
            start = time.process_time()
            function()
            taken.append(time.process_time() - start)
    return min(seconds[0]), min(seconds[1])


def pictures(name: str, file: Path) -> object:
    """Return the values of all pictures of a file."""
    with formats.opened(file) as stream:
        return [picture.values for picture in formats.read(name, stream, Reading())]


def of_pydicom(file: Path) -> object:
    """Return the values of a DICOM file after its rescale."""
    dataset = pydicom.dcmread(file)
    return pydicom.pixels.apply_rescale(dataset.pixel_array, dataset)


def of_astropy(file: Path) -> object:
    """Return a copy of the first image of a FITS file."""
    with fits.open(file) as parts:
        return np.array(parts[0].data)


def write_dicom(file: Path, values: np.ndarray) -> None:
    """Write an uncompressed CT slice."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
    dataset = FileDataset(file, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = CTImageStorage, "1.2.3", "CT"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -24
    dataset.PixelData = values.tobytes()
    dataset.save_as(file, enforce_file_format=True)


if __name__ == "__main__":
    main()
