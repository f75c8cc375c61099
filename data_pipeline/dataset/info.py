"""The output of the `info` command, as text and as JSON."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.dataset.description import Generation, describe
from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.pixels import NEWEST_RULES
from data_pipeline.scientific_formats.picture import Reading
from data_pipeline.storage.cache import CacheConfig
from isotorus.errors import one_line

_CHANNELS = {1: "1 (greyscale)", 3: "3 (colour)"}


def as_dict(folder: str) -> dict[str, Any]:
    """Return the record of the newest generation, the path, and the records of all generations, oldest
    first.
    """
    generations = describe(folder, CacheConfig()).generations
    facts = [generation.model_dump() for generation in generations]
    return Dataset(folder).description.model_dump() | {"path": folder, "generations": facts}


def as_text(folder: str) -> str:
    """Return a readable summary of a data set."""
    facts = Dataset(folder).description
    generations = describe(folder, CacheConfig()).generations
    lines = {
        "images": f"{facts.count} ({facts.skipped} files skipped)",
        "classes": _counts(facts.classes, facts.class_counts, facts.count) or "none",
        "groups": "none named" if facts.groups is None else str(facts.groups),
        "spacing": f"known of {facts.spacing} images" if facts.spacing else "not known",
        "files": _counts(facts.extensions, facts.extension_counts, facts.count),
        "pixels": "width {min}-{max}, median {median}; ".format(**facts.width.model_dump())
        + "height {min}-{max}, median {median}".format(**facts.height.model_dump()),
        "channels": _CHANNELS.get(facts.channels, str(facts.channels)),
        "depth": _depth(facts),
        "pixel rules": _rules(facts),
        "intensity": _intensity(facts),
        "mean": " ".join(f"{x:.4f}" for x in facts.mean),
        "std": " ".join(f"{x:.4f}" for x in facts.std),
        "shards": f"{facts.shards}, {facts.bytes / 1e6:.1f} MB",
        "fingerprint": one_line(facts.fingerprint),
    }
    if facts.channel_names is not None:
        lines["channels"] += f": {', '.join(map(one_line, facts.channel_names))}"
    if facts.masks is not None:
        names = facts.masks.rule.names or [str(number) for number in facts.masks.classes]
        lines["masks"] = f"{facts.masks.images} images, classes {', '.join(map(one_line, names))}"
    if facts.reading is not None:
        lines["read with"] = _reading(facts.reading)
    if facts.removed:
        held = "; isotorus compact deletes their bytes" if facts.tables else ", and their bytes deleted"
        lines["removed"] = f"{facts.removed} images{held}"
    for number, g in enumerate(generations[:-1], start=1):
        lines[f"generation {number}"] = (
            f"{g.count} images in {g.shards} shards, fingerprint {one_line(g.fingerprint)}"
        )
    return "\n".join([one_line(folder), *(f"  {name:<12} {value}" for name, value in lines.items())])


def as_json(folders: list[str], split: bool) -> str:
    """Return the data set as a JSON object; with `split`, one such object for each set, by its name."""
    facts = [as_dict(folder) for folder in folders]
    named = {Path(folder).name: fact for folder, fact in zip(folders, facts, strict=True)}
    return json.dumps(named if split else facts[0], indent=1)


def _counts(names: list[str], counts: list[int], total: int) -> str:
    """List names with their counts, and how many of `total` have none of the names."""
    each = [f"{one_line(name)} {count}" for name, count in zip(names, counts, strict=True)]
    if each and total > sum(counts):
        each.append(f"without label {total - sum(counts)}")
    return ", ".join(each)


def _rules(facts: Generation) -> str:
    """Say by which rules files become pixels."""
    return f"{facts.pixel_rules}" + (
        "" if facts.pixel_rules == NEWEST_RULES else " (earlier ones, see docs/data.md)"
    )


def _intensity(facts: Generation) -> str:
    """Say how the numbers of files become brightness."""
    return str(facts.intensity) + ("" if facts.intensity.is_stated else " (the largest value is white)")


def _reading(reading: Reading) -> str:
    """Return the options of `pack` by which files of scientific formats were read."""
    given = reading.model_dump(exclude_defaults=True)
    options = [f"--{name} {one_line(str(value))}" for name, value in given.items() if name != "keep"]
    return " ".join([*options, *(f"--keep {one_line(name)}" for name in reading.keep)]) or "the defaults"


def _depth(facts: Generation) -> str:
    """Say how many bits a channel the images have."""
    if facts.sixteen_bit in (0, facts.count):
        return f"{facts.depth} bits a channel"
    return f"16 bits a channel in {facts.sixteen_bit} images, 8 in {facts.count - facts.sixteen_bit}"
