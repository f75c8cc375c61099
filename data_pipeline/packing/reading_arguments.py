"""The options of `pack` about files of scientific formats, such as DICOM."""

import argparse

from isotorus.numbers import positive


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument_group("files of medicine, astronomy and microscopy").add_argument
    hdu = "number or name of the part (HDU) of a FITS file that is read (default: the first with an image)"
    add("--hdu", help=hdu)
    axis = "which slices of a NIfTI volume are its pictures (default: axial)"
    add("--axis", choices=("axial", "coronal", "sagittal"), help=axis)
    add("--tile", type=positive, help="side in pixels of the tiles of a whole slide (default: 256)")
    add("--mpp", type=float, help="micrometres a pixel of these tiles (default: 0.5, about 20×)")
    add("--tissue", type=float, help="least share of a tile that is tissue (default: 0.25)")
    add("--every", type=positive, metavar="N", help="take every N-th picture of a file (default: all)")
    kept = "field of the files' headers to keep beside the pictures, by its name in the format, such as "
    kept += "PatientAge; may be given several times. Names and numbers of patients, dates and free text are "
    add("--keep", action="append", metavar="FIELD", help=f"{kept}left out unless they are named here")
