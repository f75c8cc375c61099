"""`preview`: look at packed data as training would, write a page about it, and say in short what it says."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.preview import contact
from data_pipeline.preview.findings import find, many
from data_pipeline.preview.page import render
from data_pipeline.preview.recipe import read_recipe
from data_pipeline.preview.sets import Sets
from isotorus.errors import UserError, from_os_error
from isotorus.files import atomic


@dataclass(frozen=True)
class Preview:
    """What a page that was written says in short."""

    page: str
    exact_copies: int
    """Not counting the first of each group."""
    leaked: int
    """Images of the sets not trained on that are also in another set."""
    near_copies: int
    """Among the images looked at, not counting the first of each group."""
    warnings: list[str]

    def as_text(self) -> str:
        return (
            f"{self.page}: {many(self.exact_copies, 'exact copy')}, {many(self.leaked, 'image')} in several "
            f"sets, {many(self.near_copies, 'near copy')}, {many(len(self.warnings), 'warning')}"
        )

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def preview(path: str, config: str | None, out: Path, *, samples: int, seed: int, workers: int) -> Preview:
    """Write a page about the data set, or the sets of a split, in `path`, as the recipe's training sees it.

    `config` is a recipe's YAML file or name. `seed` decides which images are shown and looked at; how
    they are cut follows from the recipe's. Raises UserError for what the user can mend.
    """
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"--out {out}: expected a file in a folder that exists, e.g. preview.html")
    sets = Sets(path)
    first = sets.datasets[0]
    recipe = read_recipe(config, first.path, first.channels)
    positions = contact.choose(first.labels, samples, recipe.seed, seed)
    cards = list(contact.cards(recipe, positions))
    findings = find(sets, recipe.views, seed, workers)
    html = render(path, config, recipe, sets, cards, findings)
    try:
        with atomic(out) as file:
            file.write(html.encode(errors="replace"))  # keys may hold bytes that are no UTF-8
    except OSError as error:
        raise from_os_error(error, f"writing {out}") from error
    leaked = sum(findings.exact.leaked(number) for number in range(1, len(sets.datasets)))
    return Preview(str(out), findings.exact.surplus, leaked, findings.near.surplus, findings.warnings)
