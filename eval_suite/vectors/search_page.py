"""The page of `isotorus search`: each image beside those that are near to it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_pipeline.dataset.index import Corrupt, Dataset
from eval_suite.report import pictures
from eval_suite.report.pages import template
from eval_suite.vectors.search import Hit, Query
from eval_suite.vectors.vectors_file import VectorsFile
from isotorus.errors import UserError


class Page(NamedTuple):
    """A page, and what could not be shown on it."""

    text: str
    notes: list[str]


def render(
    file: VectorsFile,
    queries: Sequence[Query],
    samples: Mapping[str, int],
    found: Sequence[Sequence[Hit]],
    shards: str | None,
) -> Page:
    """Return the page, with the images of the data set if its shards are there.

    `samples` has the sample of each query that is one of them. Raises UserError if `shards` is another data
    set than the one that was embedded.
    """
    dataset, note = _dataset(file, shards)

    def shown(sample: int) -> str | None:
        if dataset is None:
            return None
        try:
            return pictures.thumbnail(dataset, sample, file.about.channels)
        except (Corrupt, ValueError):  # an image that was damaged since; its key is listed anyway
            return None

    rows = [
        {
            "name": query.name,
            "uri": shown(samples[query.name])
            if query.pixels is None
            else pictures.thumbnail_of(query.pixels),
            "hits": [{"hit": hit, "uri": shown(hit.sample)} for hit in hits],
        }
        for query, hits in zip(queries, found, strict=True)
    ]
    text = template("search").render(about=file.about, file=file.path.name, rows=rows, note=note)
    return Page(text, [note] if note else [])


def _dataset(file: VectorsFile, shards: str | None) -> tuple[Dataset | None, str]:
    """Return the data set that was embedded, or None and why its images cannot be shown.

    The path in the file counts only if this user wrote it. A named data set that is another one raises
    UserError.
    """
    about = file.about
    if shards is None and not file.own:
        return None, f"the images of the data set are shown with --shards (it was {about.shards})"
    try:
        newest = Dataset(shards or about.shards)
        for number, generation in enumerate(newest.generations, start=1):
            if generation.fingerprint == about.set_fingerprint:
                return Dataset(newest.path, generation=number), ""
    except UserError as error:
        if shards is not None:
            raise
        return None, f"the images of the data set are not shown ({error}); name it with --shards"
    if shards is not None:
        raise UserError(
            f"--shards {shards} is another data set than the one of {file.path.name} (it was {about.shards})"
        )
    return None, f"{about.shards} was packed anew since, so its images are not shown; embed it again"
