"""Search a file of vectors for what is near to images: embed them, list what is found, draw the page."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.decoders.decode import decode
from data_pipeline.decoders.intensity import NeedsRule
from data_pipeline.decoders.pixels import Pixels
from data_pipeline.scientific_formats import formats
from data_pipeline.transforms.physical import refuse_square
from data_pipeline.transforms.views import center_view
from eval_suite import results, terminal
from eval_suite.features.representation import Representation, pretrained
from eval_suite.inputs import find
from eval_suite.vectors import search, search_page, vectors_file
from eval_suite.vectors.about import About
from eval_suite.vectors.search import Hit, Query
from eval_suite.vectors.vectors_file import VectorsFile
from isotorus.errors import UserError, from_os_error, one_line
from isotorus.foreign_files import open_regular

_LARGEST = 2**32
"""Largest size of an image file, in bytes."""
_BATCH = 64


def run(args: argparse.Namespace) -> int:
    """Find what the arguments ask for, and print it; returns 1 if some of the images could not be read."""
    file = vectors_file.open_file(args.vectors)
    if args.page and not Path(args.page).parent.is_dir():
        raise UserError(f"--page {args.page}: there is no folder {Path(args.page).parent}; make it first")
    queries, failed = _queries(args.images, file.about)
    known, unknown = search.rows_of_keys(file, [query.name for query in queries if query.pixels is None])
    queries = [query for query in queries if query.pixels is not None or query.name in known]
    failed += unknown
    if not queries:
        raise UserError(failed[0])
    images = [query.pixels for query in queries if query.pixels is not None]
    made = iter(_embed(images, _encoder(args.checkpoint, file), file.about) if images else ())
    vectors = np.stack([known[q.name].vector if q.pixels is None else next(made) for q in queries])
    itself = [query.name if query.pixels is None else None for query in queries]
    found = search.nearest(file, vectors, itself, args.top)
    for query, hits in zip(queries, found, strict=True):
        _show(query.name, hits)
    if args.page:
        samples = {name: row.sample for name, row in known.items()}
        page = search_page.render(file, queries, samples, found, args.shards)
        results.write(Path(args.page), page.text)
        for line in page.notes:
            print(f"note: {one_line(line)}", file=sys.stderr)
        terminal.tell(f"page: {args.page} (open it in a browser)", quiet=False)
    else:
        terminal.tell("With --page near.html the images themselves are shown.", quiet=False)
    for line in failed:
        print(f"failed: {one_line(line)}", file=sys.stderr)
    return 1 if failed else 0


def _queries(given: Sequence[str], about: About) -> tuple[list[Query], list[str]]:
    """Return the images that are named, and why others cannot be read.

    A name that is not a file counts as a key.
    """
    queries, failed = [], []
    for name in given:
        if not Path(name).exists():
            queries.append(Query(name, None))
            continue
        try:
            queries.append(Query(name, _pixels(Path(name), about)))
        except UserError as error:
            failed.append(str(error))
    return queries, failed


def _pixels(path: Path, about: About) -> Pixels:
    """Return the pixels of an image file, read as those of the data set were.

    Raises UserError if it cannot be read in this way.
    """
    try:
        with open_regular(path) as stream:
            data = stream.read(_LARGEST)
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    if kind := formats.of(path):
        raise UserError(
            f"{path} is a {kind} file, which pack makes pictures of; name the key of one of these"
        )
    try:
        return decode(data, about.channels, about.depth, 1, about.pixel_rules, about.intensity)
    except NeedsRule as error:
        raise UserError(
            f"{path} holds {error.found}, and images of the data set have 8 or 16 unsigned bits, where the "
            "largest is white; give such an image"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path}: {error}; give images of {about.channels} channels, as in the data set"
        ) from None


def _encoder(named: str | None, file: VectorsFile) -> Representation:
    """Return the encoder that made a file; raises UserError if it is not there, or has other weights.

    The path in the file counts only if this user wrote it: a stranger's file names no file to open.
    """
    about = file.about
    if named is None and not file.own:
        raise UserError(
            f"{file.path} was moved or changed, or somebody else made it, so its checkpoint is not opened; "
            f"name it with --checkpoint ({about.encoder}, step {about.step}; it was {about.checkpoint})"
        )
    try:
        checkpoint, *_ = find.find([named or about.checkpoint])
        checkpoint.require_whole()
    except UserError as error:
        hint = "" if named else "; if it was moved, name it with --checkpoint"
        raise UserError(f"{error}{hint}") from None
    if checkpoint.weights_sha256 != about.weights_sha256:
        raise UserError(
            f"{checkpoint.weights} has other weights than those that made {file.path.name} ({about.encoder}, "
            f"step {about.step}, then in {about.checkpoint}); name these with --checkpoint, or embed again"
        )
    return pretrained(checkpoint, (about.feature_set,))


@torch.inference_mode()
def _embed(images: Sequence[Pixels], r: Representation, about: About) -> list[NDArray[np.float32]]:
    """Return the vector (width,) of each image.

    Raises UserError for vectors that are not finite, and for an encoder that sees squares of a physical size.
    """
    refuse_square(r.square, "files of images")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    r.model.to(device)
    vectors: list[NDArray[np.float32]] = []
    for start in range(0, len(images), _BATCH):
        views = [center_view(pixels, about.image_size) for pixels in images[start : start + _BATCH]]
        vectors += list(r.embed(torch.stack(views).to(device))[about.feature_set].cpu().numpy())
    if not np.isfinite(vectors).all():
        raise UserError("the encoder gives vectors that are not finite for these images; name others")
    return vectors


def _show(name: str, hits: Sequence[Hit]) -> None:
    """Print a table of what is near to one image."""
    title = Text(one_line(f"nearest to {name}"))
    table = Table(title=title, box=SIMPLE, pad_edge=False, title_justify="left")
    for column in ("", "cosine"):
        table.add_column(column, justify="right")
    table.add_column("key", overflow="fold")
    labelled = any(hit.label is not None for hit in hits)
    if labelled:
        table.add_column("label", overflow="fold")
    for place, hit in enumerate(hits, start=1):
        label = [Text(one_line(hit.label or "–"))] if labelled else []
        table.add_row(str(place), f"{hit.similarity:.4f}", Text(one_line(hit.key)), *label)
    Console().print(table)
