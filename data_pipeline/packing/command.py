"""The command `pack`: its arguments, what it refuses, and what it prints."""

import argparse
import math
import re
from pathlib import Path
from typing import Any

from data_pipeline.dataset.channel_names import channel_list
from data_pipeline.decoders import intensity_arguments
from data_pipeline.packing.manifest import Columns
from data_pipeline.packing.share import read_share
from data_pipeline.shared_arguments import add_channels, add_missing, add_workers, local_folder
from data_pipeline.storage.reader import is_remote
from isotorus.errors import UserError
from isotorus.numbers import positive

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
"""Bytes by the first letter of a unit."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pack`."""
    add = parser.add_argument
    add("source", type=_source, metavar="SRC", help="folder that contains the images")
    add("dest", type=local_folder, metavar="DEST", help="local folder to write the data set to")
    labels = "'folder': the class of an image is the first folder in its path; or a CSV or Parquet file that"
    add("--labels", help=f"{labels} has a row for each image")
    paths = "column of the --labels file with the paths of the images, relative to SRC (default %(default)s)"
    add("--image-column", default="image", help=paths)
    names = "column of the --labels file with class names (default %(default)s)"
    add("--label-column", default="label", help=names)
    group = "images of one group, e.g. of a patient, go to the same side of the split"
    add("--group-column", help=f"column of the --labels file with the group of each image; {group}")
    pattern = "regular expression such as 'patient([0-9]+)': the text in parentheses is the image's group"
    add("--group-pattern", help=f"instead of --group-column, applied to the image's path: {pattern}")
    header = (
        "instead of --group-column, for DICOM, NIfTI and FITS: field of the header with the group, such as "
    )
    add("--group-field", metavar="FIELD", help=f"{header}PatientID; only a hash of it is kept")
    sides = "column of the --labels file that says train, val or test for each image"
    add("--split-column", help=f"{sides}; instead of the fractions")
    for name in ("val", "test"):
        share = f"fraction of the images (or groups) to put into DEST/{name} (default %(default)s)"
        add(f"--{name}-fraction", type=float, default=0.0, help=share)
    alike = "divide each class in these fractions, as far as groups that stay whole allow"
    add("--stratify", action="store_true", help=f"{alike} (default: by the hash of each group or image)")
    add_missing(parser)
    add("--append", action="store_true", help="add the images that the data set in DEST does not contain yet")
    _add_masks(parser)
    add_channels(parser)
    order = "names of the channels, in the order of the images, such as dapi,gfp"
    files = "(default: as OME-TIFF, OME-Zarr and GeoTIFF files state them)"
    add("--channel-names", metavar="A,B,…", type=channel_list, help=f"{order} {files}")
    _add_reading(parser)
    intensity_arguments.add_to(parser)
    _add_duplicates(parser)
    add(
        "--shard-size",
        type=_size,
        default="256MB",
        help="approximate size of a shard (default %(default)s)",
    )
    add_workers(parser)
    some = "write only part I (from 0) of N parts of the shards, so that N processes on one or many nodes "
    some += "share the work; then the same command without --part publishes the data set"
    add("--part", type=read_share, metavar="I/N", help=some)
    add("--strict", action="store_true", help="stop with an error if any file would be left out")


def run(args: argparse.Namespace) -> None:
    """Run `pack`; raise `UserError` for options that contradict each other."""
    # Imported here: the other commands do not need the image decoders.
    from data_pipeline.packing.pack import Options, pack
    from data_pipeline.scientific_formats.picture import Reading

    _refuse_contradictions(args)
    columns = Columns(args.image_column, args.label_column, args.group_column, args.split_column)
    given = {name: getattr(args, name) for name in Reading.model_fields if getattr(args, name) is not None}
    options = Options(
        labels=args.labels,
        columns=columns,
        missing=args.missing,
        group_pattern=args.group_pattern,
        group_field=args.group_field,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        stratify=args.stratify,
        channels=args.channels,
        channel_names=args.channel_names,
        reading=Reading(**given) if given else None,
        intensity=intensity_arguments.chosen(args),
        shard_size=args.shard_size,
        append=args.append,
        **_chosen_duplicates(args),
        workers=args.workers,
        part=args.part,
        **_chosen_masks(args),
        strict=args.strict,
    )
    print(pack(args.source, args.dest, options))


def _add_masks(parser: argparse.ArgumentParser) -> None:
    """Add the options about masks."""
    pixels = "folder with a PNG mask for each image: scan.png or scan.mask.png for scan.jpg"
    parser.add_argument(
        "--masks", type=Path, metavar="FOLDER", help=f"{pixels}, whose values are classes; 255 is none"
    )
    objects = "pixel values of the masks' classes, with names, such as 0=background,255=cell"
    parser.add_argument("--mask-classes", metavar="V=NAME,…", help=f"{objects}; other values are no class")


def _chosen_masks(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was given as fields of `pack.Options`; raise `UserError` for classes without masks."""
    from data_pipeline.packing import masks  # the other commands do not need the image decoders

    if args.mask_classes is not None and args.masks is None:
        raise UserError("--mask-classes needs masks; give their folder with --masks FOLDER")
    rule = None if args.mask_classes is None else masks.rule(args.mask_classes)
    return {"masks": args.masks, "mask_rule": rule}


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options about files of scientific formats, such as DICOM."""
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


def _add_duplicates(parser: argparse.ArgumentParser) -> None:
    """Add the options about near copies."""
    title = "near copies, which are an error across the sets of a new split"
    add = parser.add_argument_group(title).add_argument
    drop = (
        "leave out near copies of other images, and list them in DEST/duplicates.jsonl; decodes images twice"
    )
    add("--drop-duplicates", action="store_true", help=drop)
    group = "keep near copies on one side of the split, as groups; decodes images twice"
    add("--group-duplicates", action="store_true", help=group)
    allow = "publish the sets as they are, with a note: right for different objects that look alike"
    add("--allow-duplicates", action="store_true", help=allow)


def _chosen_duplicates(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was given as fields of `pack.Options`; raise `UserError` for contradictions."""
    if args.drop_duplicates and args.group_duplicates:
        raise UserError("--drop-duplicates and --group-duplicates exclude each other; give one of them")
    if args.group_duplicates and args.split_column is not None:
        raise UserError(
            "--split-column says where each image is, so --group-duplicates can move none; correct that "
            "column, or give --val-fraction in its place"
        )
    is_divided = args.val_fraction or args.test_fraction or args.split_column is not None
    for name in ("group_duplicates", "allow_duplicates"):
        if getattr(args, name) and (args.append or not is_divided):
            raise UserError(
                f"--{name.replace('_', '-')} is about the sets of a new split; give --val-fraction or "
                "--test-fraction, or leave it out"
            )
    names = ("drop_duplicates", "group_duplicates", "allow_duplicates")
    return {name: getattr(args, name) for name in names}


def _source(text: str) -> Path:
    """Read the path of a local folder of images from the command line."""
    if is_remote(text):
        raise argparse.ArgumentTypeError(f"{text} is no folder on a disk; copy the images to one")
    return Path(text)


def _size(text: str) -> int:
    """Read the size of a shard in bytes from the command line, such as 256MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 256MB, got {text!r}")
    return max(int(float(match[1]) * _UNITS[match[2]]), 1)


def _refuse_contradictions(args: argparse.Namespace) -> None:
    """Raise `UserError` for options of `pack` that contradict each other."""
    if min(args.val_fraction, args.test_fraction) < 0 or args.val_fraction + args.test_fraction >= 1:
        raise UserError(
            f"--val-fraction {args.val_fraction:g} --test-fraction {args.test_fraction:g}: "
            "expected shares from 0 that are less than 1 together"
        )
    if args.mpp is not None and not 0 < args.mpp < math.inf:
        raise UserError(f"--mpp {args.mpp:g}: expected micrometres a pixel above 0, such as 0.5")
    if args.tissue is not None and not 0 <= args.tissue <= 1:
        raise UserError(f"--tissue {args.tissue:g}: expected a share from 0 to 1")
    if args.labels in (None, "folder"):
        for option in ("group_column", "split_column", "missing"):
            if getattr(args, option) is not None:
                raise UserError(
                    f"--{option.replace('_', '-')} is about a table; give that with --labels FILE.csv"
                )
    options = ("group_column", "group_pattern", "group_field")
    given = [f"--{name.replace('_', '-')}" for name in options if getattr(args, name) is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} both say what a group is; give one of them")
    fractions = bool(args.val_fraction or args.test_fraction)
    if args.split_column is not None and (fractions or args.stratify):
        raise UserError("--split-column names the set of each image; leave out the fractions and --stratify")
    if args.part is not None and args.append:
        raise UserError("--part is for a new data set; leave it out with --append")
    if args.stratify and not args.append and (args.labels is None or not fractions):
        raise UserError("--stratify divides classes; give --labels, and --val-fraction or --test-fraction")
