"""What `pack` and `index` say about labels and groups: the classes of each set and how often they occur."""

from collections.abc import Mapping

import numpy as np

from data_pipeline.dataset.index import Dataset
from isotorus.errors import one_line

FEW = 10
"""Images of a class in a set below which its scores say little."""
_MOST_SHOWN = 10


def lines(sets: Mapping[str, Dataset]) -> list[str]:
    """Return a line for each set, by its name ("" without a split), and one about a split's rare classes."""
    found = [f"  {name + ': ' if name else ''}{_labels(dataset)}" for name, dataset in sets.items()]
    return found + (_rare(sets) if len(sets) > 1 else [])


def _labels(dataset: Dataset) -> str:
    """Say which classes and groups a set has."""
    facts = dataset.description
    unlabelled = facts.count - sum(facts.class_counts)
    if not facts.classes:
        said = f"no labels ({unlabelled} images)"
    else:
        each = [
            f"{one_line(name)} ({count})"
            for name, count in zip(facts.classes, facts.class_counts, strict=True)
        ]
        more = f", … ({len(each) - _MOST_SHOWN} more)" if len(each) > _MOST_SHOWN else ""
        said = f"{len(each)} classes: {', '.join(each[:_MOST_SHOWN])}{more}; {unlabelled} without a label"
    if dataset.groups is None:
        return said
    alone = int((np.asarray(dataset.groups) == 0).sum())
    return f"{said}; {facts.groups} groups" + (
        f", and {alone} images without one, each by itself" if alone else ""
    )


def _rare(sets: Mapping[str, Dataset]) -> list[str]:
    """Return a line about classes that have few images or only one group in a set, if there are any."""
    rare = []
    for name, dataset in sets.items():
        facts = dataset.description
        groups = None if dataset.groups is None else np.asarray(dataset.groups)
        for label, (of_class, count) in enumerate(zip(facts.classes, facts.class_counts, strict=True)):
            if count < FEW:
                rare.append(f"{of_class!r} has {count} images in {name}")
            elif groups is not None:
                its = groups[dataset.labels == label]
                if its.all() and len(np.unique(its)) == 1:
                    rare.append(f"all {count} images of {of_class!r} in {name} are of one group")
    if not rare:
        return []
    more = f" ({len(rare) - 3} more)" if len(rare) > 3 else ""
    return [f"  few samples, so scores of these classes will be rough: {'; '.join(rare[:3])}{more}"]
