"""Write the page of `preview`, and summarise it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.preview import contact
from data_pipeline.preview.findings import find, many
from data_pipeline.preview.page import render
from data_pipeline.preview.recipe import read_recipe
from data_pipeline.preview.sets import Sets
from data_pipeline.transforms.action_checks import refuse_rotations, refuse_unfit
from data_pipeline.transforms.physical import check_views
from isotorus.errors import UserError, from_os_error
from isotorus.files import atomic


@dataclass(frozen=True)
class Preview:
    """The summary of a page that was written."""

    page: str
    """Path of the page."""
    exact_copies: int
    """Number of exact copies, not counting the first image of each group."""
    leaked: int
    """Number of images in the val and test sets that are also in another set."""
    near_copies: int
    """Number of near copies among the images that were decoded, not counting the first of each group."""
    warnings: list[str]

    def as_text(self) -> str:
        """Return the summary as a sentence."""
        return (
            f"{self.page}: {many(self.exact_copies, 'exact copy')}, {many(self.leaked, 'image')} in several "
            f"sets, {many(self.near_copies, 'near copy')}, {many(len(self.warnings), 'warning')}"
        )

    def as_json(self) -> str:
        """Return the summary as JSON."""
        return json.dumps(asdict(self))


def preview(path: str, config: str | None, out: Path, *, samples: int, seed: int, workers: int) -> Preview:
    """Write a page about the data set in `path`, or about all sets of a split there, and return its summary.

    `config` is the file or the name of a recipe. `seed` chooses the images that are shown and decoded; how
    they are cropped follows from the seed in the recipe. Raises `UserError` for errors that the user can
    correct.
    """
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"--out {out}: expected a file in a folder that exists, e.g. preview.html")
    sets = Sets(path)
    first = sets.datasets[0]
    recipe = read_recipe(config, first.path, first.channels)
    refuse_unfit(recipe.views.actions, recipe.data.channel_count, [first])
    refuse_rotations(recipe.views.actions, recipe.augment)
    check_views(recipe.views, [first])
    positions = contact.choose(first.labels, samples, recipe.seed, seed)
    cards = list(contact.cards(recipe, positions))
    findings = find(sets, recipe.views, seed, workers)
    html = render(path, config, recipe, sets, cards, findings)
    try:
        with atomic(out) as file:
            file.write(html.encode(errors="replace"))  # keys may contain bytes that are not UTF-8
    except OSError as error:
        raise from_os_error(error, f"writing {out}") from error
    leaked = sum(findings.exact.leaked(number) for number in range(1, len(sets.datasets)))
    return Preview(str(out), findings.exact.surplus, leaked, findings.near.surplus, findings.warnings)
