"""The command `isotorus search`: the rows of a file of vectors that are nearest to images."""

import argparse
from collections.abc import Sequence

from eval_suite import arguments
from isotorus.errors import ArgumentParser

EPILOG = """examples:
  isotorus search train.parquet photo.jpg other.png
  isotorus search train.parquet cells/0042 --top 20 --page near.html   an image of the data set, by its key"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the command; raises UserError for values that cannot work."""
    parser = ArgumentParser(
        prog="isotorus search",
        description="Find the images of a data set that are most similar to others, by the cosine of the "
        "vectors that isotorus embed wrote.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("vectors", metavar="VECTORS", help="file that isotorus embed wrote (.parquet, .npz)")
    add("images", nargs="+", metavar="IMAGE", help="an image file, or the key of an image of the data set")
    most = "number of rows to find for each image (default %(default)s)"
    add("--top", type=arguments.at_least(1), default=10, metavar="N", help=most)
    add("--page", metavar="FILE", help="also write a page with the images, such as near.html")
    weights = "the checkpoint that made the vectors (default: where it was, if you made the file)"
    add("--checkpoint", metavar="CHECKPOINT", help=weights)
    shards = "the packed data set, whose images the page shows (default: where it was, if you made the file)"
    add("--shards", metavar="SHARDS", help=shards)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Show what is near; returns exit code 0, or 1 if some of several images could not be read."""
    args = parse(argv)
    # Imported here because it takes seconds; a mistyped option is refused before that.
    from eval_suite.vectors import search_run

    return search_run.run(args)
