"""Names by which people call the sets of a split."""

from typing import Any

from data_pipeline.tables.cells import as_text

SIDES = ("train", "val", "test")
SYNONYMS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "tst"),
}
_SIDE = {name: side for side, names in SYNONYMS.items() for name in names}


def side(cell: Any) -> str | None:
    """Return which of train, val and test a name means, in upper or lower case; None for other names."""
    return _SIDE.get(as_text(cell).lower())


def accepted() -> str:
    """Return the accepted names, for messages."""
    return "; ".join(", ".join(names) for names in SYNONYMS.values())
