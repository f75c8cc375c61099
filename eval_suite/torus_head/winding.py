"""The sub-command `isotorus eval winding`: winding numbers of a torus head's angles along image paths.

Images are rotated, shifted or recoloured until they are the same again. Along such a path each angle of the
head makes a whole number of turns; these numbers are the winding vector. A head that follows the path has an
angle that turns once, and a head that ignores it has the vector 0. A head that was trained with actions sees
the turns of its training, as in `eval certificate`.
"""

import argparse
import copy
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.decode import decode
from data_pipeline.transforms.views import center_view
from eval_suite import arguments, results
from eval_suite.attempts import each
from eval_suite.features import embed
from eval_suite.features.images import normalise, unit_range
from eval_suite.features.representation import Representation, pretrained
from eval_suite.inputs import find
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.torus_head import image_paths, winding_page
from eval_suite.torus_head.image_paths import COLOUR, PATHS
from isotorus import randomness
from isotorus.errors import ArgumentParser, UserError, from_os_error
from pretrain.geometry.winding import unwrapped, winding

MARGIN = 0.25
"""A step is called ambiguous if it is within this angle, in radians, of half a turn."""


def main(argv: Sequence[str]) -> int:
    """Run the sub-command; return exit code 0, or 1 if some of several checkpoints failed.

    Raises UserError for arguments that cannot work, and if all checkpoints failed.
    """
    args = parse(argv)
    names = path_names(args.paths)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoints = find.find(args.names, args.every)
    if not (args.data or args.frames):
        raise UserError("nothing to look at; name a packed data set with --data, or a folder with --frames")
    data = Dataset(args.data) if args.data else None
    out = Path(args.out)
    measured: list[dict[str, Any]] = []
    left_out: list[str] = []

    def measure(checkpoint: Checkpoint) -> None:
        checkpoint.require_whole()
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
        r, paths = pretrained(checkpoint, ("angles",)), PATHS
        if (torus := checkpoint.encoder.torus) and torus.actions:
            r, paths = replace(r, size=torus.size), image_paths.of_actions(torus.actions, torus.border)
        r.model.to(device)
        images = None if data is None else load(data, r, args.images, args.seed).to(device)
        frames = load_frames(Path(args.frames), r).to(device) if args.frames else None
        if images is not None:
            chosen = [name for name in names if r.channels == 3 or name not in COLOUR]
            if dropped := [name for name in names if name not in chosen]:
                left_out.append(f"{title}: no {', '.join(dropped)}, as its images have no colour")
            entry["paths"] = along_paths(
                r, images, {name: paths[name] for name in chosen}, args.steps, args.batch_size, title
            )
        if frames is not None:
            path = angles(r, frames, args.batch_size)[None]
            entry["frames"] = summary(path, closed=args.closed)
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
    plain = copy.deepcopy(contents)
    for entry in plain["checkpoints"]:
        for path in (*entry.get("paths", {}).values(), entry.get("frames", {})):
            path.pop("strip", None)
    results.write(out / "winding.json", results.as_json(plain))
    results.write_page(out / "winding.html", lambda: winding_page.render(contents))


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
        help=f"what is done to the images: some of {', '.join(PATHS)}; translation means both (default: all)",
    )
    parser.add_argument(
        "--frames", metavar="DIR", help="folder with the images of a sequence, in the order of their names"
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


def load(data: Dataset, r: Representation, count: int, seed: int) -> Tensor:
    """Read up to `count` random images as floats (n, C, size, size) in [0, 1]."""
    embed.check_channels(r.channels, data)
    chosen = randomness.rows(len(data), count, seed).tolist()
    images = [unit_range(embed.read_views(data, i, r.channels, [r.size])[0]) for i in chosen]
    if not images:
        raise UserError(f"{data.path} has no images; pack some")
    return torch.stack(images)


def load_frames(folder: Path, r: Representation) -> Tensor:
    """Read all images of a folder in the order of their names, as floats (T, C, size, size) in [0, 1].

    Raises UserError for fewer than two files and for a file that is not an image.
    """
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
        if len(files) < 2:
            raise UserError(
                f"--frames {folder} holds {len(files)} files; a sequence needs two frames or more"
            )
        frames = []
        for file in files:
            try:
                frames.append(unit_range(center_view(decode(file.read_bytes(), r.channels, 8), r.size)))
            except ValueError as error:
                raise UserError(f"{file} is no frame ({error}); leave only images in --frames") from None
    except OSError as error:
        raise from_os_error(error, "reading the frames") from error
    return torch.stack(frames)


@torch.inference_mode()
def angles(r: Representation, images: Tensor, batch_size: int) -> Tensor:
    """Return the torus head's angles (n, m) in radians for float images (n, C, size, size) in [0, 1]."""
    parts = []
    for part in images.split(batch_size):
        pairs = r.embed_normalised(normalise(part, r.mean, r.std))["angles"].unflatten(1, (-1, 2))
        parts.append(torch.atan2(pairs[..., 1], pairs[..., 0]).cpu())
    return torch.cat(parts)


def along_paths(
    r: Representation,
    images: Tensor,
    paths: Mapping[str, image_paths.Path],
    steps: int,
    batch_size: int,
    title: str,
) -> dict[str, Any]:
    """Measure each path by its name; return its `summary` with pictures of the first image along it."""
    summaries = {}
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=len(paths) * steps)
        for name, path in paths.items():
            samples = []
            for step in range(steps):
                samples.append(angles(r, path(images, step / steps), batch_size))
                progress.advance(task)
            summaries[name] = summary(torch.stack(samples, 1), closed=True)
            shown = [path(images[:1], k / winding_page.STRIP)[0] for k in range(winding_page.STRIP)]
            summaries[name]["strip"] = [winding_page.picture(image) for image in shown]
    return summaries


def summary(path: Tensor, *, closed: bool) -> dict[str, Any]:
    """Summarise the winding of angles (n, T, m) in radians: n images at T samples of a path; ready for JSON.

    - `vector`: the most common winding vector, in turns of each angle; `share`: share of images with it;
    - `times`: greatest common divisor of the vector's entries, 0 if nothing winds;
    - `margin`: π minus the largest step of an angle, in radians; `ambiguous`: share of images below `MARGIN`;
    - `same_at_half`: share of images with the same vector if every second sample is left out;
    - `of_each_angle`: most common number of turns of each angle, and its share of the images;
    - `numbers`: winding vector of each image; `curves`: turns along the path of the angles that turn most.

    Raises UserError for angles that are not finite.
    """
    if not path.isfinite().all():
        raise UserError(
            "the head gives NaN or infinite angles; evaluate a checkpoint from before it diverged"
        )
    wound = winding(path, closed, MARGIN)
    margin = wound.margin.amin(-1)
    whole = wound.number.round().long()
    vectors, counts = torch.unique(whole, dim=0, return_counts=True)
    most = vectors[counts.argmax()]
    halved = winding(path[:, ::2], closed).number.round() if path.shape[1] >= 4 else wound.number
    turned = unwrapped(path, closed)
    shown = wound.number.abs().mean(0).argsort(descending=True, stable=True)[: winding_page.ANGLES]
    return {
        "closed": closed,
        "images": len(path),
        "samples": path.shape[1],
        "vector": most.tolist(),
        "times": math.gcd(*most.tolist()),
        "share": float((whole == most).all(-1).double().mean()),
        "margin": {"median": float(margin.median()), "least": float(margin.min())},
        "ambiguous": float(wound.ambiguous.any(-1).double().mean()),
        "same_at_half": float((halved == wound.number.round()).all(-1).double().mean()),
        "of_each_angle": [
            {"number": int(number), "share": float((whole[:, i] == number).double().mean())}
            for i, number in enumerate(whole.mode(0).values.tolist())
        ],
        "numbers": wound.number.tolist(),
        "curves": {
            int(i): [[round(float(v), 4) for v in curve] for curve in turned[: winding_page.CURVES, :, i]]
            for i in shown
        },
    }


def show(contents: dict[str, Any], out: Path) -> None:
    """Print a table for each checkpoint of winding.json, what was left out, and where the page is."""
    console = Console()
    for checkpoint in contents["checkpoints"]:
        console.print(winding_page.table(checkpoint))
    for line in (*contents["left_out"], f"page: {out / 'winding.html'} (open it in a browser)"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    sys.stdout.flush()
