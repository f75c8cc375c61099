"""The sub-command `isotorus eval winding`: winding numbers of a torus head's angles along image paths."""

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_suite import arguments, results
from isotorus.errors import ArgumentParser, UserError

if TYPE_CHECKING:
    from eval_suite.inputs.checkpoints import Checkpoint

PATHS = ("rotation", "shift_x", "shift_y", "hue")
"""The names of `image_paths.PATHS`."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the sub-command; raises UserError for values that cannot work."""
    parser = ArgumentParser(
        prog="isotorus eval winding",
        description="Measure how often each angle of a torus head turns while an image is rotated, shifted "
        "or recoloured until it is the same again, or along the frames of a sequence.",
    )
    arguments.add_checkpoints(parser)
    arguments.add_data(parser, required=False)
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for winding.html and winding.json"
    )
    parser.add_argument(
        "--paths",
        default=",".join(PATHS),
        help=f"what is done to the images: some of {', '.join(PATHS)}; shift means both (default: all)",
    )
    parser.add_argument(
        "--frames",
        metavar="DIR",
        help="folder with the images of a sequence, in the order of their names; numbers such as Hounsfield "
        "units become brightness by the rule (--intensity of pack) under which the encoder was trained",
    )
    parser.add_argument(
        "--closed", action="store_true", help="with --frames: the last frame is followed by the first"
    )
    parser.add_argument(
        "--images",
        type=arguments.at_least(1),
        default=32,
        help="images drawn from --data (default %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=36, help="samples along a path, an even number (default %(default)s)"
    )
    arguments.add_seed(parser)
    arguments.add_batches(parser, workers=None)
    args = parser.parse_args(argv)
    if args.steps < 4 or args.steps % 2:
        raise UserError(
            f"--steps {args.steps}: a path needs an even number of samples, 4 or more; 36 is usual"
        )
    if not (args.data or args.frames):
        raise UserError("nothing to look at; name a packed data set with --data, or a folder with --frames")
    return args


def path_names(text: str) -> list[str]:
    """Return the paths that a comma-separated list names, in the order of `PATHS`.

    The beginning of a name stands for all names that begin so. Raises UserError for an unknown name.
    """
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if not any(known.startswith(name) for known in PATHS):
            raise UserError(f"--paths: unknown path '{name}'; one of {', '.join(PATHS)}")
    if not wanted:
        raise UserError(f"--paths names none; give some of {', '.join(PATHS)}")
    return [known for known in PATHS if any(known.startswith(name) for name in wanted)]


def main(argv: Sequence[str]) -> int:
    """Run the sub-command; return exit code 0, or 1 if some of several checkpoints failed.

    Raises UserError for arguments that cannot work, and if all checkpoints failed.
    """
    args = parse(argv)
    names = path_names(args.paths)
    # Imported here because they take seconds; a mistyped option is refused before that.
    import torch

    from data_pipeline.dataset.index import Dataset
    from eval_suite.attempts import each
    from eval_suite.features.representation import pretrained
    from eval_suite.inputs import brightness, find
    from eval_suite.torus_head import image_paths, winding

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoints = find.find(args.names, args.every)
    data = Dataset(args.data) if args.data else None
    out = Path(args.out)
    measured: list[dict[str, Any]] = []
    left_out: list[str] = []

    def measure(checkpoint: "Checkpoint") -> None:
        checkpoint.require_whole()
        checkpoint = checkpoint if data is None else checkpoint.for_images_of(data)
        title = f"{checkpoint.name}, step {checkpoint.encoder.step}"
        if not checkpoint.angles:
            left_out.append(f"{title} has no angles: its head is no torus")
            return
        entry: dict[str, Any] = {
            "name": checkpoint.name,
            "step": checkpoint.encoder.step,
            "folder": str(checkpoint.folder),
            "weights_sha256": checkpoint.weights_sha256,
        }
        r, paths = pretrained(checkpoint, ("angles",)), image_paths.PATHS
        if (torus := checkpoint.encoder.torus) and torus.actions:
            r, paths = replace(r, size=torus.size), image_paths.of_actions(torus.actions, torus.border)
        r.model.to(device)
        images = None if data is None else winding.load(data, r, args.images, args.seed).to(device)
        frames = None
        if args.frames:
            rule = brightness.only_rule(checkpoint.encoder)
            frames = winding.load_frames(Path(args.frames), r, rule).to(device)
        if images is not None:
            chosen = [name for name in names if r.channels == 3 or name not in image_paths.COLOUR]
            if dropped := [name for name in names if name not in chosen]:
                left_out.append(f"{title}: no {', '.join(dropped)}, as its images have no colour")
            entry["paths"] = winding.along_paths(
                r, images, {name: paths[name] for name in chosen}, args.steps, args.batch_size, title
            )
        if frames is not None:
            path = winding.angles(r, frames, args.batch_size)[None]
            entry["frames"] = winding.summary(path, closed=args.closed)
        measured.append(entry)

    with results.folder(out):
        failed = each(checkpoints, measure)
        if not measured:
            raise UserError(
                f"{left_out[0]}; evaluate a run of a recipe with objective.kind=torus, such as torus_m2"
            )
        contents = results.json_safe(
            {"format": 1, "data": args.data, "seed": args.seed, "checkpoints": measured, "left_out": left_out}
        )
        _write(contents, out)
    show(contents, out)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _write(contents: dict[str, Any], out: Path) -> None:
    """Write winding.json, then winding.html, which alone shows pictures."""
    from eval_suite.torus_head import winding_page

    plain = copy.deepcopy(contents)
    for entry in plain["checkpoints"]:
        for path in (*entry.get("paths", {}).values(), entry.get("frames", {})):
            path.pop("strip", None)
    results.write(out / "winding.json", results.as_json(plain))
    results.write_page(out / "winding.html", lambda: winding_page.render(contents))


def show(contents: dict[str, Any], out: Path) -> None:
    """Print a table for each checkpoint of winding.json, what was left out, and where the page is."""
    from rich.console import Console

    from eval_suite.torus_head import winding_page

    console = Console()
    for checkpoint in contents["checkpoints"]:
        console.print(winding_page.table(checkpoint))
    for line in (*contents["left_out"], f"page: {out / 'winding.html'} (open it in a browser)"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    sys.stdout.flush()
