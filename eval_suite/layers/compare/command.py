"""The sub-command `isotorus eval compare`: how alike two encoders are, layer by layer."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_suite import arguments
from isotorus.errors import ArgumentParser, UserError

if TYPE_CHECKING:
    from eval_suite.inputs.checkpoints import Checkpoint
    from eval_suite.layers.compare.pairs import Layers

FEWEST = 50
"""Smallest number of images from which intervals are given."""
EPILOG = """examples:
  isotorus eval compare runs/a runs/b --data data/elpv/val
  isotorus eval compare runs/a/checkpoints/step_00000100 runs/a --data …     two steps of one run
  isotorus eval compare runs/a dinov2/ --data … --images 5000                beside a timm model folder

Results go to A/eval/STEP/compare/B-STEP/: compare.html, a page with one chart, and compare.json."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the sub-command; raises UserError for values that cannot work."""
    parser = ArgumentParser(
        prog="isotorus eval compare",
        description="Measure how alike two encoders are in every block and in the embedding, on the same\n"
        "images and without labels: CKA, Procrustes distance and nearest images in common.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in "ab":
        parser.add_argument(
            name,
            metavar=name.upper(),
            help="a run (its newest checkpoint), a checkpoint folder or its weights, or a timm model folder",
        )
    arguments.add_data(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: see below)")
    parser.add_argument(
        "--cache", metavar="DIR", help="folder that keeps features for later calls (default A/eval/cache)"
    )
    parser.add_argument(
        "--images",
        type=arguments.at_least(FEWEST),
        default=2000,
        help="images to compare on; memory grows with their number (default %(default)s)",
    )
    parser.add_argument(
        "--neighbours",
        type=arguments.at_least(1),
        default=10,
        metavar="K",
        help="nearest images that are looked for in both encoders (default %(default)s)",
    )
    arguments.add_seed(parser)
    arguments.add_batches(parser)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the sub-command and return exit code 0; raises UserError for what cannot be compared."""
    args = parse(argv)
    # Imported here because they take seconds; a mistyped option is refused before that.
    import torch
    from accelerate import PartialState

    from data_pipeline.dataset.index import Dataset
    from eval_suite import results, terminal
    from eval_suite.features import embed
    from eval_suite.features.representation import Representation, pretrained, untrained
    from eval_suite.layers.compare import page, screen
    from eval_suite.layers.compare.conclusion import conclude
    from eval_suite.layers.compare.pairs import Comparison, beside
    from eval_suite.layers.compare.vectors import of_layers
    from isotorus import randomness

    a, b = one_checkpoint(args.a), one_checkpoint(args.b)
    refuse_equal(a, b)
    data = Dataset(args.data)
    a, b = a.for_images_of(data), b.for_images_of(data)
    if len(data) < max(FEWEST, args.neighbours + 2):
        raise UserError(
            f"{data.path} has {len(data)} images; to compare encoders, give {FEWEST} or more, and more than "
            "--neighbours"
        )
    state = PartialState(cpu=not torch.cuda.is_available())
    embed.one_process(state, "eval compare")
    home = (a.run or a.folder) / "eval"
    out = Path(args.out) if args.out else home / a.results_name / "compare" / f"{b.name}-{b.step}"
    cache = Path(args.cache) if args.cache else (out if args.out else home) / "cache"
    rows = randomness.rows(len(data), args.images, args.seed)
    comparison = Comparison(args.neighbours, None if data.groups is None else data.groups[rows], args.seed)
    left_out: dict[str, str] = {}

    def layers(one: Representation, other: Representation) -> "tuple[Layers, Layers]":
        both = [of_layers("A", one), of_layers("B", other)]
        options = {"batch_size": args.batch_size, "workers": args.workers}
        found = embed.extract(both, data, cache, state, rows=rows, **options)
        return found["A"], found["B"]

    with results.folder(out, home.parent):
        of_a, of_b = layers(pretrained(a, ()), pretrained(b, ()))
        pairs = comparison.of(of_a, of_b, left_out)
        if not pairs:
            raise UserError(f"no layer can be compared: {next(iter(left_out.values()))}")
        # Another initialisation than that of A, also if the two runs had the same seed.
        level = comparison.of(*layers(untrained(a, ()), untrained(b, (), number=2)), {})
        found: dict[str, Any] = {
            "format": 1,
            "inputs": {
                "data": str(args.data),
                "data_fingerprint": data.fingerprint,
                "images": len(rows),
                "neighbours": args.neighbours,
                "seed": args.seed,
            },
            "a": described(a, of_a),
            "b": described(b, of_b),
            "conclusion": "",
            "next": what_next(args.a, args.b),
            "pairs": beside(pairs, level),
            "left_out": left_out,
        }
        found = results.json_safe(found)
        found["conclusion"] = conclude(found["pairs"], args.neighbours)
        results.write(out / "compare.json", results.as_json(found))
        results.write_page(out / "compare.html", lambda: page.render(found))
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        screen.show(found)
    terminal.tell(f"next: {found['next']}", quiet=args.json)
    terminal.tell(f"page: {out / 'compare.html'} (open it in a browser)", quiet=args.json)
    return 0


def one_checkpoint(name: str) -> "Checkpoint":
    """Return the checkpoint that a name stands for; raises UserError if there is not exactly one."""
    from eval_suite.inputs import find

    found = find.find([name])
    if len(found) != 1:
        raise UserError(
            f"{name} stands for {len(found)} checkpoints; two are compared, so name a single one each time"
        )
    found[0].require_whole()
    return found[0]


def refuse_equal(a: "Checkpoint", b: "Checkpoint") -> None:
    """Raise UserError if the encoders of two checkpoints have the same weights."""
    if a.weights_sha256.partition("-")[0] == b.weights_sha256.partition("-")[0]:
        raise UserError(
            f"{a.folder} and {b.folder} have the same weights, so there is nothing to compare; name another "
            "run, or another step of this one"
        )


def described(checkpoint: "Checkpoint", layers: "Layers") -> dict[str, Any]:
    """Return what compare.json says about one of the encoders."""
    return {
        "name": checkpoint.name,
        "step": checkpoint.step,
        "folder": str(checkpoint.folder),
        "weights": checkpoint.weights_sha256,
        "encoder": checkpoint.encoder.name,
        "layers": list(layers),
    }


def what_next(a: str, b: str) -> str:
    """Return a command that tells which of the two encoders is better."""
    return f"isotorus eval {a} --against {b} --train SHARDS --val SHARDS says which one is more useful"
