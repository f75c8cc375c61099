"""The HTML page of `preview`: one file that contains everything and loads nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from pydantic import BaseModel

from data_pipeline.dataset.index import Corrupt
from data_pipeline.preview import figures
from data_pipeline.preview.contact import Card
from data_pipeline.preview.figures import OUTLINE_BARS, Histogram, histogram, outlines
from data_pipeline.preview.findings import Duplicates, Findings, many
from data_pipeline.preview.recipe import Recipe
from data_pipeline.preview.sets import Sets

_GROUPS = 24  # most groups of copies
_MEMBERS = 6  # most images of a group
_CLASSES = 40  # most classes
_THUMBNAIL = 112  # pixels


@dataclass(frozen=True)
class Member:
    """One image of a group of copies; `picture` is a data URI or None."""

    key: str
    place: str
    picture: str | None


@dataclass(frozen=True)
class Group:
    """A group of copies; `more` is the number of members that are not shown."""

    members: list[Member]
    more: int
    crossing: bool
    conflicting: bool


def render(
    path: str, config: str | None, recipe: Recipe, sets: Sets, cards: list[Card], findings: Findings
) -> str:
    """Return the page about `sets` in `path`; `config` is the file or name of the recipe."""
    measured = findings.measured
    return _template().render(
        name=path,
        head=_head(sets),
        reading=list(_reading(sets, findings)),
        warnings=findings.warnings,
        sets=_sets(sets, findings.exact),
        views=recipe.views,
        run_seed=recipe.seed,
        shown_set=sets.names[0] if len(sets.datasets) > 1 else "the data set",
        rendering=figures.describe_display(recipe.data.channel_count, sets.datasets[0].depth),
        cards=cards,
        classes=_classes(sets),
        class_count=len(sets.classes),
        unlabelled=len(sets) - int(sets.class_counts().sum()),
        total=f"{len(sets):,}",
        sizes=_sizes(sets),
        looked_at=f"{len(measured.index):,}",
        brightness=histogram("Images", measured.brightness, "{:.3g}".format) if measured.index.size else None,
        shades=outlines(measured.shades, sets.depth),
        outline_bars=OUTLINE_BARS,
        exact=_groups(sets, findings.exact, pictured=1),
        exact_note=_exact_note(findings),
        near=_groups(sets, findings.near, pictured=_MEMBERS),
        settings=_settings(recipe),
        config=config,
        channels=_seen(recipe, sets),
    )


def _template() -> jinja2.Template:
    """Return the page's template."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["bytes"] = _bytes
    text = files("data_pipeline.preview").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def _head(sets: Sets) -> list[str]:
    """Return the facts in the page's head line."""
    facts = [dataset.description for dataset in sets.datasets]
    generations = sorted({dataset.generation for dataset in sets.datasets})
    return [
        many(len(sets), "image"),
        many(len(sets.classes), "class") if sets.classes else "no classes",
        _channels(facts[0].channels),
        f"{sets.depth} bit",
        f"{_bytes(sum(fact.bytes for fact in facts))} in {many(sum(fact.shards for fact in facts), 'shard')}",
        "generation " + ", ".join(map(str, generations)),
    ]


def _reading(sets: Sets, findings: Findings) -> Iterator[tuple[str, bool]]:
    """Yield the sentences of the summary, each with whether it is a warning."""
    exact, near = findings.exact, findings.near
    for number, name in enumerate(sets.names[1:], start=1):
        if leaked := exact.leaked(number):
            yield f"{many(leaked, 'image')} of {name} also in another set.", True
    if len(sets.names) > 1 and not exact.crossing.any():
        yield "No file is in two sets.", False
    if exact.surplus:
        yield f"{many(exact.surplus, 'exact copy')} in all.", False
    elif len(sets.names) == 1:
        yield "No file is there twice.", False
    if near.surplus:
        across = bool(near.crossing.any())
        looked_at = f"{many(len(findings.measured.index), 'image')} looked at"
        where = ", also across sets" if across else ""
        yield f"{many(near.surplus, 'near copy')} among {looked_at}{where}.", across


def _sets(sets: Sets, exact: Duplicates) -> list[dict[str, Any]]:
    """Return the rows of the table of sets."""
    labelled = sets.class_counts().sum(axis=1)
    return [
        {
            "name": name,
            "count": f"{len(dataset):,}",
            "labelled": f"{labelled[number]:,}",
            "size": _bytes(dataset.description.bytes),
            "leaked": exact.leaked(number),
        }
        for number, (name, dataset) in enumerate(zip(sets.names, sets.datasets, strict=True))
    ]


def _classes(sets: Sets) -> list[dict[str, Any]]:
    """Return the largest classes; bar lengths are percentages of the largest class, one part for each set."""
    counts = sets.class_counts()
    totals = counts.sum(axis=0)
    largest = np.argsort(-totals, kind="stable")[:_CLASSES]
    return [
        {
            "name": sets.classes[c],
            "count": f"{totals[c]:,}",
            "shares": (100 * counts[:, c] / totals.max()).round(2).tolist(),
        }
        for c in largest.tolist()
    ]


def _sizes(sets: Sets) -> list[Histogram]:
    """Return histograms of image sizes and file sizes."""
    width, height = sets.column("width"), sets.column("height")
    return [
        histogram("Width", width, lambda x: f"{x:,.0f} px"),
        histogram("Height", height, lambda x: f"{x:,.0f} px"),
        histogram("Width over height", width / np.float32(1) / height, "{:.2f}".format, logarithmic=True),
        histogram("File size", sets.column("size"), _bytes, logarithmic=True),
    ]


def _groups(sets: Sets, duplicates: Duplicates, pictured: int) -> list[Group]:
    """Return the groups to show: first those in several sets, then those in several classes, then the
    largest.

    The first `pictured` members of each group get a picture.
    """
    copies = duplicates.copies
    starts = np.flatnonzero(np.diff(copies.group, prepend=-1))
    sizes = np.bincount(copies.group)
    chosen = np.lexsort((-sizes, ~duplicates.conflicting[starts], ~duplicates.crossing[starts]))[:_GROUPS]
    groups = []
    for group in chosen.tolist():
        start, size = int(starts[group]), int(sizes[group])
        rows = range(start, start + min(size, _MEMBERS))
        places = [(int(copies.dataset[row]), int(copies.index[row])) for row in rows]
        members = [_member(sets, *place, number < pictured) for number, place in enumerate(places)]
        crossing, conflicting = bool(duplicates.crossing[start]), bool(duplicates.conflicting[start])
        groups.append(Group(members, size - len(members), crossing, conflicting))
    return groups


def _member(sets: Sets, number: int, index: int, pictured: bool) -> Member:
    """Return one member of a group, with a picture if asked for and if the image can be read."""
    dataset = sets.datasets[number]
    try:
        uri = None
        if pictured:
            image = figures.unit_scale(dataset.pixels(index, dataset.channels, sets.depth))
            uri = figures.data_uri(image, *figures.display_range(image, sets.depth), _THUMBNAIL)
        return Member(dataset.key(index), sets.place(number, index), uri)
    except (Corrupt, ValueError):  # damaged since it was packed; a warning says so
        return Member(f"sample {index}", sets.place(number, index), None)


def _exact_note(findings: Findings) -> str:
    """Describe the exact copies in a sentence."""
    exact = findings.exact
    if not exact.surplus:
        return "None: all images of all sets were compared by size and checksum."
    counts = (
        f"{many(len(exact.copies.group), 'image')} in {many(exact.copies.groups, 'group')} of equal files"
    )
    if findings.unread:
        return f"{counts}, {findings.unread:,} of them recognised by size and checksum alone."
    return f"{counts}, compared byte by byte."


def _settings(recipe: Recipe) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Return for each section its fields: name, value, and whether it differs from the default."""
    sections: list[tuple[str, BaseModel]] = [("views", recipe.views), ("augment", recipe.augment)]
    return [
        (
            section,
            [
                (name.replace("_", " "), _value(getattr(model, name)), getattr(model, name) != field.default)
                for name, field in type(model).model_fields.items()
            ],
        )
        for section, model in sections
    ]


def _channels(number: int) -> str:
    """Describe a number of channels."""
    return {1: "1 channel (grey)", 3: "3 channels (colour)"}.get(number, f"{number} channels")


def _seen(recipe: Recipe, sets: Sets) -> str:
    """Describe the channels of the encoder, and say which of them the images that are shown lack."""
    names, own = recipe.data.channel_names, sets.datasets[0].channel_names or []
    if names is None:
        return _channels(recipe.data.channel_count)
    lacking = [name for name in names if name not in own]
    said = f"{len(names)} channels by name ({', '.join(names)})"
    return said + (f", of which these images lack {', '.join(lacking)}" if lacking else "")


def _value(value: object) -> str:
    """Format the value of a setting."""
    if isinstance(value, tuple):
        return " to ".join(map(_value, value))
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _bytes(size: float) -> str:
    """Format a size in bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g}\u00a0{unit}"
        size /= 1000
    return f"{size:,.3g}\u00a0TB"
