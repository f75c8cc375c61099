"""Winding numbers of a torus head's angles along image paths, for `isotorus eval winding`.

Images are rotated, shifted or recoloured until they are the same again. Along such a path each angle of the
head makes a whole number of turns; these numbers are the winding vector. A head that follows the path has an
angle that turns once, and a head that ignores it has the vector 0. A head that was trained with actions sees
the turns of its training, as in `eval certificate`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.decode import decode
from data_pipeline.decoders.intensity import Intensity, NeedsRule
from data_pipeline.transforms.physical import check_square, refuse_square
from data_pipeline.transforms.views import center_view
from eval_suite.features import embed
from eval_suite.features.images import normalise, unit_range
from eval_suite.features.representation import Representation
from eval_suite.torus_head import image_paths, winding_page
from isotorus import randomness
from isotorus.errors import UserError, from_os_error, one_line
from pretrain.geometry.winding import unwrapped, winding

MARGIN = 0.25
"""A step is called ambiguous if it is within this angle, in radians, of half a turn."""


def load(data: Dataset, r: Representation, count: int, seed: int) -> Tensor:
    """Read up to `count` random images as floats (n, C, size, size) in [0, 1]."""
    embed.check_channels(r.channels, data)
    check_square(r.square, data)
    chosen = randomness.rows(len(data), count, seed).tolist()
    images = [unit_range(embed.read_views(data, i, r.channels, [r.size], r.square)[0]) for i in chosen]
    if not images:
        raise UserError(f"{data.path} has no images; pack some")
    return torch.stack(images)


def load_frames(folder: Path, r: Representation, intensity: Intensity) -> Tensor:
    """Read all images of a folder in the order of their names, as floats (T, C, size, size) in [0, 1].

    Their numbers become brightness by `intensity`. Raises UserError for fewer than two files and for a file
    that is not an image, or not one that the rule reads, and for an encoder that sees squares of a physical
    size.
    """
    refuse_square(r.square, "--frames")
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
        if len(files) < 2:
            raise UserError(
                f"--frames {folder} holds {len(files)} files; a sequence needs two frames or more"
            )
        frames = []
        for file in files:
            try:
                pixels = decode(file.read_bytes(), r.channels, intensity=intensity)
                frames.append(unit_range(center_view(pixels, r.size)))
            except NeedsRule as error:
                raise UserError(
                    f"{file} holds {error.found}, and the encoder was trained on images of 8 or 16 unsigned "
                    "bits, where the largest is white; give such frames"
                ) from None
            except ValueError as error:
                read = (
                    f" by the encoder's --intensity {one_line(str(intensity))}" if intensity.is_stated else ""
                )
                raise UserError(
                    f"{file} is no frame{read} ({error}); leave only images in --frames"
                ) from None
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
