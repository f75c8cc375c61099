"""`python -m eval_suite winding RUN_OR_CHECKPOINT… --data SHARDS --out DIR`: does the torus head go round?

Images are turned, moved and coloured once round; the angles of the torus head along each such path have a
winding vector. A head that follows the path winds once, one that ignores it does not wind.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.decode import decode
from data_pipeline.transforms.views import center_view
from eval_suite import results
from eval_suite.features import embed
from eval_suite.inputs import find
from eval_suite.torus_head import winding_page
from eval_suite.torus_head.image_paths import COLOUR, PATHS
from isotorus import randomness
from isotorus.errors import ArgumentParser, UserError, from_os_error
from pretrain.geometry.winding import unwrapped, winding

MARGIN = 0.25
"""Radians: a step nearer to half a turn than this is flagged."""


def main(arguments: Sequence[str]) -> int:
    """Measure all that is named; exit code 0, 2 for what the user can mend."""
    given = parse(arguments)
    names = path_names(given.paths)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoints = find.find(given.names, given.every)
    if not (given.data or given.frames):
        raise UserError("nothing to look at; name a packed data set with --data, or a folder with --frames")
    data = Dataset(given.data) if given.data else None
    out = Path(given.out)
    results.make_folder(out)
    measured: list[dict[str, Any]] = []
    left_out: list[str] = []
    for checkpoint in checkpoints:
        title = f"{checkpoint.name}, step {checkpoint.encoder.step}"
        if not checkpoint.angles:
            left_out.append(f"{title} has no angles: its head is no torus")
            continue
        found: dict[str, Any] = {
            "name": checkpoint.name,
            "step": checkpoint.encoder.step,
            "folder": str(checkpoint.folder),
            "weights_sha256": checkpoint.weights_sha256,
        }
        r = embed.pretrained(checkpoint, ("angles",))
        r.model.to(device)
        images = None if data is None else load(data, r, given.images, given.seed).to(device)
        frames = load_frames(Path(given.frames), r).to(device) if given.frames else None
        if images is not None:
            chosen = [name for name in names if r.channels == 3 or name not in COLOUR]
            if dropped := [name for name in names if name not in chosen]:
                left_out.append(f"{title}: no {', '.join(dropped)}, as its images have no colour")
            found["paths"] = along_paths(r, images, chosen, given.steps, given.batch_size, title)
        if frames is not None:
            path = angles(r, frames, given.batch_size)[None]
            found["frames"] = summary(path, closed=given.closed)
        measured.append(found)
    if not measured:
        raise UserError(
            f"{left_out[0]}; evaluate a run of a recipe with objective.kind=torus, such as torus_m2"
        )
    written = results.json_safe(
        {"format": 1, "data": given.data, "seed": given.seed, "checkpoints": measured, "left_out": left_out}
    )
    results.write(out / "winding.html", winding_page.render(written))
    for found in written["checkpoints"]:
        for path in (*found.get("paths", {}).values(), found.get("frames", {})):
            path.pop("strip", None)  # pictures belong to the page alone
    results.write(out / "winding.json", results.as_json(written))
    say(written, out)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m eval_suite winding",
        description="How often the angles of a torus head go round while an image is turned, moved or "
        "coloured once round, or along the frames of a sequence.",
    )
    parser.add_argument("names", nargs="+", metavar="RUN_OR_CHECKPOINT", help="as for the evaluation")
    parser.add_argument("--data", metavar="SHARDS", help="packed data set that the images come from")
    parser.add_argument("--out", required=True, metavar="DIR", help="where winding.html and winding.json go")
    parser.add_argument(
        "--paths",
        default=",".join(PATHS),
        help="of %(default)s (default: all); translation means both of its directions",
    )
    parser.add_argument("--frames", metavar="DIR", help="images of one sequence, in the order of their names")
    parser.add_argument("--closed", action="store_true", help="the last frame leads on to the first")
    parser.add_argument("--images", type=int, default=32, help="how many, at random (default 32)")
    parser.add_argument(
        "--steps", type=int, default=36, help="samples of a path, an even number (default 36)"
    )
    parser.add_argument(
        "--every", type=int, metavar="STEPS", help="also checkpoints of multiples of these steps"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images (default 0)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default 64)")
    given = parser.parse_args(arguments)
    if given.steps < 4 or given.steps % 2:
        raise UserError(
            f"--steps {given.steps}: a path needs an even number of samples, 4 or more; 36 is usual"
        )
    if min(given.images, given.batch_size) < 1:
        raise UserError("--images and --batch-size take 1 or more")
    if given.every is not None and given.every < 1:
        raise UserError(f"--every {given.every}: expected a number above 0")
    return given


def path_names(given: str) -> list[str]:
    """In the order of `PATHS`; a name that begins several means them all."""
    wanted = [name.strip() for name in given.split(",") if name.strip()]
    for name in wanted:
        if not any(known.startswith(name) for known in PATHS):
            raise UserError(f"--paths: unknown path '{name}'; one of {', '.join(PATHS)}")
    if not wanted:
        raise UserError(f"--paths names none; give some of {', '.join(PATHS)}")
    return [known for known in PATHS if any(known.startswith(name) for name in wanted)]


def load(data: Dataset, r: embed.Representation, count: int, seed: int) -> Tensor:
    """Up to `count` random images as floats (n, C, size, size) in [0, 1]."""
    embed.check_channels(r.channels, data)
    chosen = randomness.rows(len(data), count, seed).tolist()
    images = [_unit(embed.read_views(data, i, r.channels, [r.size])[0]) for i in chosen]
    if not images:
        raise UserError(f"{data.path} has no images; pack some")
    return torch.stack(images)


def load_frames(folder: Path, r: embed.Representation) -> Tensor:
    """All images of a folder in the order of their names, as floats (T, C, size, size) in [0, 1]."""
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
        if len(files) < 2:
            raise UserError(
                f"--frames {folder} holds {len(files)} files; a sequence needs two frames or more"
            )
        frames = []
        for file in files:
            try:
                frames.append(_unit(center_view(decode(file.read_bytes(), r.channels, 8), r.size)))
            except ValueError as error:
                raise UserError(f"{file} is no frame ({error}); leave only images in --frames") from None
    except OSError as error:
        raise from_os_error(error, "reading the frames") from error
    return torch.stack(frames)


def _unit(view: Tensor) -> Tensor:
    return view.float() / torch.iinfo(view.dtype).max


@torch.inference_mode()
def angles(r: embed.Representation, images: Tensor, batch_size: int) -> Tensor:
    """The torus head's angles (n, m) in radians of float images (n, C, size, size) in [0, 1]."""
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (r.mean, r.std))
    parts = []
    for part in images.split(batch_size):
        pairs = r.embed_normalised((part - mean) / std)["angles"].unflatten(1, (-1, 2))
        parts.append(torch.atan2(pairs[..., 1], pairs[..., 0]).cpu())
    return torch.cat(parts)


def along_paths(
    r: embed.Representation, images: Tensor, names: Sequence[str], steps: int, batch_size: int, title: str
) -> dict[str, Any]:
    """What `summary` says of each path of `PATHS`, with pictures of the first image along it."""
    found = {}
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=len(names) * steps)
        for name in names:
            samples = []
            for step in range(steps):
                samples.append(angles(r, PATHS[name](images, step / steps), batch_size))
                progress.advance(task)
            found[name] = summary(torch.stack(samples, 1), closed=True)
            shown = [PATHS[name](images[:1], k / winding_page.STRIP)[0] for k in range(winding_page.STRIP)]
            found[name]["strip"] = [winding_page.picture(image) for image in shown]
    return found


def summary(path: Tensor, *, closed: bool) -> dict[str, Any]:
    """Of angles (n, T, m) of n images along a path, ready for JSON."""
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


def say(written: dict[str, Any], out: Path) -> None:
    console = Console()
    for found in written["checkpoints"]:
        console.print(winding_page.table(found))
    for line in (*written["left_out"], f"page: {out / 'winding.html'} (open it in a browser)"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    sys.stdout.flush()
