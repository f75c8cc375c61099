"""The arguments --intensity, --nodata and --fill: how the numbers of images become brightness."""

import argparse
import math

from data_pipeline.decoders import intensity
from data_pipeline.decoders.intensity import NONE, Intensity
from isotorus.errors import UserError


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pack` and `index`."""
    forms = "window:LOW,HIGH, percentile:LOW,HIGH (of each image), asinh:STRETCH[,Q[,BLACK]] or none"
    text = f"how numbers become brightness, so that floats, signed and 32-bit images are read too: {forms}"
    text += " (default: none; the largest value of 8 or 16 unsigned bits is white); see docs/data.md"
    parser.add_argument("--intensity", metavar="RULE", type=_rule, help=text)
    text = "with --intensity: a value that stands for no measurement, as NaN does; e.g. --nodata -3.4e38"
    parser.add_argument("--nodata", metavar="VALUE", type=float, help=text)
    text = "with --intensity: brightness of NaN and nodata, from 0 (black, the default) to 1 (white)"
    parser.add_argument("--fill", metavar="SHARE", type=float, help=text)


def chosen(args: argparse.Namespace) -> Intensity | None:
    """Return the rule for brightness that was given; None if none was.

    Raises `UserError` for --nodata or --fill without a rule, and for values that they cannot have.
    """
    if args.intensity in (None, "none"):
        for option in ("nodata", "fill"):
            if getattr(args, option) is not None:
                raise UserError(
                    f"--{option} needs a rule beside it, such as --intensity window:0,4095; give one, or "
                    f"leave out --{option}"
                )
        return None if args.intensity is None else NONE
    if args.nodata is not None and not math.isfinite(args.nodata):
        raise UserError(f"--nodata {args.nodata}: NaN and infinities are never valid; leave the option out")
    if args.fill is not None and not 0 <= args.fill <= 1:
        raise UserError(f"--fill {args.fill:g}: expected a brightness from 0 (black) to 1 (white)")
    return Intensity(rule=args.intensity, nodata=args.nodata, fill=args.fill or 0.0)


def _rule(text: str) -> str:
    """Read a rule for brightness from the command line."""
    try:
        return intensity.spelled(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
