"""Recognise pictures that are not read, by the ending of their name or by their first bytes."""

import re
from collections import Counter
from pathlib import Path

from data_pipeline.scientific_formats import formats
from isotorus.errors import one_line


def _endings(*lines: str) -> frozenset[str]:
    """Return the endings in these lines, with their dots."""
    return frozenset(f".{ending}" for line in lines for ending in line.split())


_PICTURES = _endings(
    # web, phones and drawings
    "gif apng mng jng avifs heic heif hif jxl jpm jxr wdp hdp bpg svg svgz ico cur",
    "icns",
    # raw frames of cameras
    "dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw raw rwl 3fr fff iiq kdc dcr mrw x3f erf mef mos",
    "gpr cap",
    # medicine, microscopes, telescopes
    "dcm dicom ima nii nii.gz nrrd nhdr mha mhd mgz fits fit fts czi lif lsm nd2 oib oif vsi zvi stk ims svs",
    "ndpi scn mrxs bif qptiff",
    # other programs
    "ppm pgm pbm pnm pfm pam psd psb tga pcx exr hdr dds qoi xcf kra eps ai wbmp xbm xpm sgi rgb ras cin dpx",
    "dib emf wmf mpo jps pns btf",
)
_CONVERTERS = (
    ("heic heif hif", "heif-convert of libheif"),
    ("czi lif nd2 oib oif vsi zvi stk", "bfconvert of Bio-Formats, to OME-TIFF"),
    ("mrxs bif qptiff", "vips tiffsave --pyramid, then named .svs"),
    ("nrrd nhdr mha mhd mgz", "3D Slicer or nibabel, to .nii.gz"),
)
"""Endings of pictures that are not read for want of a free library, and what converts them."""
NOT_LOOKED_INTO = _endings(
    "txt json jsonl csv tsv xml html htm md rst yaml yml toml ini cfg log py ipynb sh js css cls parquet xls",
    "xlsx doc docx pdf zip tar gz bz2 xz zst 7z rar npz pt pth safetensors h5 hdf5 db sqlite xmp aae thm mp4",
    "mov avi mkv webm wav mp3",
)
"""Endings of files that hold no picture, or a small copy of one (.thm)."""
_FIRST_BYTES = re.compile(
    b"|".join(
        [
            rb"\xff\xd8\xff",  # JPEG
            rb"\x89PNG\r\n\x1a\n",
            rb"GIF8[79]a",
            rb"RIFF....WEBP",
            rb"II[*+]\0|MM\0[*+]",  # TIFF, BigTIFF and most raw formats
            rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",  # BMP with the size of a known header
            rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1|avi[fs]|crx )",  # HEIC, AVIF, CR3
            rb"\0\0\0\x0c(?:jP  |JXL )\r\n\x87\n|\xff\x4f\xff\x51|\xff\x0a",  # JPEG 2000, JPEG XL
            rb"8BPS\0|qoif|\x76\x2f\x31\x01|DDS |FUJIFILMCCD-RAW",  # Photoshop, QOI, EXR, DDS, Fuji
            rb"SIMPLE  =|.{128}DICM",  # FITS, DICOM
        ]
    ),
    re.DOTALL,
)


def known_ending(name: str) -> str | None:
    """Return the ending of a name, in lower case, if it is that of a picture that no decoder here reads."""
    name = name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix
    return suffix if suffix in _PICTURES else None


def ending(file: Path) -> str | None:
    """Return the ending of a picture's name, in lower case, if it is one that no decoder here reads.

    Files whose ending says nothing are recognised by their first bytes; "without ending" stands for those
    without an ending. Returns None for other files, for hidden ones, and for files that cannot be read.
    """
    suffix = file.suffix.lower()
    if file.name.startswith(".") or file.name.lower() in formats.NOT_PICTURES:
        return None
    if by_name := known_ending(file.name):
        return by_name
    if suffix in NOT_LOOKED_INTO:
        return None
    try:
        with file.open("rb") as stream:
            known = _FIRST_BYTES.match(stream.read(132))
    except OSError:
        return None
    return (suffix or "without ending") if known else None


def advice(counts: Counter[str]) -> str:
    """Return what to do with pictures of these endings."""
    tools = "".join(
        f"; {', '.join(found)} with {tool}"
        for endings, tool in _CONVERTERS
        if (found := sorted(counts.keys() & _endings(endings)))
    )
    return f"convert them to PNG or TIFF{tools}, or rename files of a format that is read to its usual ending"


def summary(counts: Counter[str]) -> str:
    """Return a phrase with the number of pictures of each ending, the most frequent first."""
    each = ", ".join(
        f"{one_line(name)} {count}" for name, count in sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    )
    total = counts.total()
    return f"{total} picture{'s' * (total > 1)} of formats or names that are not read ({each})"
