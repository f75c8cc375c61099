"""The sub-command `isotorus eval codes`: discrete codes of embeddings, compared with each other."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval_suite import arguments
from isotorus.errors import ArgumentParser, UserError

if TYPE_CHECKING:
    from eval_suite.inputs.checkpoints import Checkpoint


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the sub-command; raises UserError for values that cannot work."""
    parser = ArgumentParser(
        prog="isotorus eval codes",
        description="Compare discrete codes of the embeddings of images: how many addresses they use, how "
        "often two images share one, within and between classes and by chance, and how stable they are under "
        "noise.",
    )
    arguments.add_checkpoints(parser)
    arguments.add_data(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for codes.html and codes.json")
    parser.add_argument(
        "--bins",
        default="4,8,16",
        help="numbers of bins for each angle of a torus head, a code for each number (default %(default)s)",
    )
    parser.add_argument(
        "--levels",
        default="8,5,5,5",
        help="levels of finite scalar quantisation (FSQ), a number for each digit (default %(default)s)",
    )
    arguments.add_seed(parser)
    arguments.add_batches(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the sub-command; return exit code 0, or 1 if some of several checkpoints failed.

    Raises UserError for arguments that cannot work, and if all checkpoints failed.
    """
    args = parse(argv)
    bins = arguments.numbers(args.bins, "--bins", 2, "4,8,16")
    levels = arguments.numbers(args.levels, "--levels", 2, "8,5,5,5")
    # Imported here because they take seconds; a mistyped option is refused before that.
    import torch
    from accelerate import PartialState

    from data_pipeline.dataset.index import Dataset
    from eval_suite import results
    from eval_suite.attempts import each
    from eval_suite.features import embed
    from eval_suite.features.representation import pretrained
    from eval_suite.inputs import find
    from eval_suite.report.pages import template
    from eval_suite.torus_head import codes

    checkpoints = find.find(args.names, args.every)
    data, out = Dataset(args.data), Path(args.out)
    if len(data) < 2:
        raise UserError(f"{data.path} has {len(data)} images; pairs are compared, so give two or more")
    state = PartialState(cpu=not torch.cuda.is_available())
    embed.one_process(state, "eval codes")
    options = {"batch_size": args.batch_size, "workers": args.workers}
    measured: list[dict[str, Any]] = []

    def measure(checkpoint: "Checkpoint") -> None:
        checkpoint.require_whole()
        checkpoint = checkpoint.for_images_of(data)
        representation = pretrained(checkpoint, ())
        features = embed.extract([representation], data, out / "features", state, **options)
        x = features["pretrained"]["embedding"]
        known = codes.known_codes(checkpoint, x, bins, levels)
        measured.append(
            {
                "name": checkpoint.name,
                "step": checkpoint.encoder.step,
                "folder": str(checkpoint.folder),
                "images": len(x),
                "classes": len(data.classes),
                "codes": codes.measure(known, torch.from_numpy(x), data.labels, args.seed),
            }
        )

    with results.folder(out):
        failed = each(checkpoints, measure)
        contents = results.json_safe(
            {"format": 1, "data": args.data, "noise": codes.NOISE, "checkpoints": measured}
        )
        results.write(out / "codes.json", results.as_json(contents))
        page = template("codes")
        results.write_page(
            out / "codes.html", lambda: page.render(found=contents, reading=reading, size=_size)
        )
    show(contents, out)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def reading(row: Mapping[str, Any], images: int) -> str:
    """Say in a sentence whether a code distinguishes images, and whether it groups classes."""
    used, shared = row["occupancy"]["used"], row["collisions"]
    if used == images:
        first = "no two images share an address"
    else:
        first = f"{images:,} images share {used:,} addresses, so it collides"
    if used == 1:
        return "All images have one address: the code says nothing."
    if shared["within"] is None or shared["between"] is None:
        return f"{first[0].upper()}{first[1:]}."
    within, between = shared["within"], shared["between"]
    if within == between == 0:
        second = "and it groups nothing"
    elif between == 0:
        second = "pairs of one class share one, pairs of two never"
    elif within > 2 * between:
        second = f"pairs of one class share one {within / between:.1f} times as often as pairs of two"
    else:
        second = "pairs of two classes share one about as often as pairs of one: it does not see classes"
    return f"{first[0].upper()}{first[1:]}; {second}."


def show(contents: Mapping[str, Any], out: Path) -> None:
    """Print a table for each checkpoint of codes.json, and where the page is."""
    console = Console()
    for checkpoint in contents["checkpoints"]:
        title = Text(f"{checkpoint['name']}, step {checkpoint['step']}, {checkpoint['images']} images")
        table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
        table.add_column("", no_wrap=True)
        for column in "used", "of", "bits", "equal", "chance", "in\nclass", "across", "kept":
            table.add_column(column, justify="right", no_wrap=True)
        for row in checkpoint["codes"]:
            occupied, shared = row["occupancy"], row["collisions"]
            table.add_row(
                row["name"],
                str(occupied["used"]),
                _size(row["cells"]),
                f"{occupied['entropy']:.1f}",
                *(_percent(shared[key]) for key in ("pairs", "expected", "within", "between")),
                _percent(row["stable"][0]),
            )
        console.print(table)
    console.print(
        "In percent: pairs with one address, by chance, in a class, across classes; codes kept at 1 % noise.",
        soft_wrap=True,
    )
    console.print(
        f"page: {out / 'codes.html'} (open it in a browser)", markup=False, highlight=False, soft_wrap=True
    )


def _size(cells: int) -> str:
    """Write a number of addresses, a large one as a power of ten."""
    return f"{cells:,}" if cells < 10**6 else f"10^{len(str(cells)) - 1}"


def _percent(value: float | None) -> str:
    """Write a share as a number of percent."""
    return "–" if value is None else f"{100 * value:.2g}" if 0 < value < 0.1 else f"{100 * value:.0f}"
