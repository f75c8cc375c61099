"""The sub-command `isotorus eval certificate`: is there a torus, and do its angles turn with the image?"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from data_pipeline.transforms.config import ACTIONS, Action
from eval_suite import arguments
from isotorus.errors import ArgumentParser, UserError
from isotorus.nearest_name import nearest

if TYPE_CHECKING:
    from data_pipeline.dataset.index import Dataset
    from eval_suite.inputs.checkpoints import Checkpoint

EPILOG = """examples:
  isotorus eval certificate runs/torus --data shards/test
  isotorus eval certificate runs/torus --data shards/test --against runs/lejepa
  isotorus eval certificate runs/no-actions --data shards/test --actions rotation hue

Results go to RUN/eval/<step>/: certificate.html, a page to show, and certificate.json."""
MOST_JOBS = 4
"""Largest number of processes that compute persistent homology."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the sub-command; raises UserError for values that cannot work."""
    parser = ArgumentParser(
        prog="isotorus eval certificate",
        description="Certify that the angles of a torus head turn with known actions on unseen images, and\n"
        "that these angles, and the turns of single images in the embedding, are tori.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", metavar="RUN_OR_CHECKPOINT", help="a run (its newest checkpoint) or a checkpoint")
    add("--data", required=True, metavar="SHARDS", help="packed data set that training has not seen")
    others = "runs without angles, such as LeJEPA alone, whose orbits stand beside"
    add("--against", nargs="+", action="extend", default=[], metavar="RUN", help=others)
    turned_by = (
        f"what to turn images by, in the order of the angles: {', '.join(ACTIONS)} (default: as trained)"
    )
    add("--actions", nargs="+", default=[], metavar="ACTION", help=turned_by)
    often = "how often the angle of each action should go round (default: as trained; with --actions 1)"
    add("--order", nargs="+", type=arguments.at_least(1), default=[], metavar="K", help=often)
    round_ = "images that are turned once round by each action (default %(default)s)"
    add("--images", type=arguments.at_least(20), default=200, help=round_)
    of_one = "images all of whose turns are judged (default %(default)s)"
    add("--orbits", type=arguments.at_least(1), default=10, help=of_one)
    add("--out", metavar="DIR", help="folder for the results (default RUN/eval/<step>)")
    arguments.add_seed(parser)
    arguments.add_batches(parser, workers=None)
    add("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args(argv)
    args.actions = _actions(args.actions)
    return args


def _actions(given: Sequence[str]) -> list[Action]:
    """Return the actions that are named, divided by spaces or commas; raises UserError for other names."""
    names = [name for part in given for name in part.split(",") if name]
    for name in names:
        if name not in ACTIONS:
            near = nearest(name, ACTIONS)
            hint = f"did you mean {near}?" if near else f"one of {', '.join(ACTIONS)}"
            raise UserError(f"--actions: unknown action '{name}'; {hint}")
        if names.count(name) > 1:
            raise UserError(f"--actions names {name} twice; name each action once")
    return [cast(Action, name) for name in names]


def main(argv: Sequence[str]) -> int:
    """Write certificate.json and certificate.html and return exit code 0, certified or not.

    Raises UserError for arguments that cannot work.
    """
    args = parse(argv)
    # Imported here because they take seconds; a mistyped option is refused before that.
    from data_pipeline.dataset.index import Dataset
    from eval_suite import results, terminal
    from eval_suite.report import certified
    from eval_suite.torus_head.certificate import page

    started = time.monotonic()
    checkpoint = _one(args.name)
    data = Dataset(args.data)
    checkpoint = checkpoint.for_images_of(data)
    others = [(name, _one(name, option="--against").for_images_of(data)) for name in args.against]
    home = checkpoint.run / "eval" / checkpoint.results_name if checkpoint.run else checkpoint.folder
    out = Path(args.out) if args.out else home
    with results.folder(out, checkpoint.root):
        numbers, pictures = _certify(checkpoint, data, [other for _, other in others], args)
    numbers["seconds"] = round(time.monotonic() - started, 1)
    numbers = results.json_safe(numbers)
    results.write(out / certified.FILES[0], results.as_json(numbers))
    results.write_page(out / certified.FILES[1], lambda: page.render(numbers, pictures))
    certified.seal(out)
    in_report = certified.put_into_report(out, numbers)
    if args.json:
        print(json.dumps(numbers, indent=1))
    for line in (numbers["headline"], numbers["lead"], numbers["added"], *numbers["notes"]):
        terminal.tell(line, quiet=args.json)
    terminal.tell(f"page: {out / certified.FILES[1]} (open it in a browser)", quiet=args.json)
    if in_report:
        terminal.tell(f"also the first section of {out / results.FILES[1]}", quiet=args.json)
    return 0


def _one(name: str, option: str = "") -> "Checkpoint":
    """Return the one checkpoint that a name means; raises UserError for several."""
    from eval_suite.inputs import find

    before = f"{option} " if option else ""
    try:
        checkpoint, *others = find.find([name])
        checkpoint.require_whole()
    except UserError as error:
        raise UserError(f"{before}{name}: {error}" if option else str(error)) from None
    if others:
        raise UserError(f"{before}{name} means {1 + len(others)} checkpoints; name one run")
    return checkpoint


def _certify(
    checkpoint: "Checkpoint", data: "Dataset", others: "Sequence[Checkpoint]", args: argparse.Namespace
) -> tuple[dict[str, Any], Any]:
    """Measure everything; return the content of certificate.json and the pictures of the page."""
    import torch

    from data_pipeline.transforms.physical import check_square
    from eval_suite import progress
    from eval_suite.features import embed
    from eval_suite.report import certified
    from eval_suite.torus_head.certificate import assemble, beside
    from eval_suite.torus_head.certificate.measure import How

    torus = beside.actions_of(checkpoint, args.actions, args.order)
    for each in (checkpoint, *others):
        embed.check_channels(each.encoder.channels, data)
        check_square(each.encoder.square, data)
    if len(data) < args.images:
        raise UserError(
            f"{args.data} has {len(data):,} images, fewer than the {args.images} asked for; name a larger "
            f"set, or take --images {len(data)}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    how = How(
        images=args.images,
        orbits=args.orbits,
        seed=args.seed,
        batch_size=args.batch_size,
        jobs=min(MOST_JOBS, torch.get_num_threads()),
        device=device,
    )
    progress.evaluating(f"{checkpoint.name}, step {checkpoint.step}")
    numbers, pictures = assemble.certificate(checkpoint, torus, data, others, how)
    return {"format": certified.FORMAT, **numbers}, pictures
