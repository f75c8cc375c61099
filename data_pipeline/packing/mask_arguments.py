"""The options of `pack` about masks."""

import argparse
from pathlib import Path
from typing import Any

from isotorus.errors import UserError


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    pixels = "folder with a PNG mask for each image: scan.png or scan.mask.png for scan.jpg"
    parser.add_argument(
        "--masks", type=Path, metavar="FOLDER", help=f"{pixels}, whose values are classes; 255 is none"
    )
    objects = "pixel values of the masks' classes, with names, such as 0=background,255=cell"
    parser.add_argument("--mask-classes", metavar="V=NAME,…", help=f"{objects}; other values are no class")


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was given as fields of `pack.Options`; raise `UserError` for classes without masks."""
    from data_pipeline.packing import masks  # the other commands do not need the image decoders

    if args.mask_classes is not None and args.masks is None:
        raise UserError("--mask-classes needs masks; give their folder with --masks FOLDER")
    rule = None if args.mask_classes is None else masks.rule(args.mask_classes)
    return {"masks": args.masks, "mask_rule": rule}
