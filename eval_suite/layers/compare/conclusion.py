"""Say in words how alike two encoders are, from the rows of compare.json."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from eval_suite.layers.compare.vectors import EMBEDDING

ALIKE, DIFFERENT = 0.9, 0.5
"""Layers are called alike if the whole interval of their CKA is at least the first of these, and different if
it lies below the second."""
SINGULAR = {"are alike": "is alike", "differ": "differs", "are partly alike": "is partly alike"}
Row = Mapping[str, Any]


def conclude(rows: Sequence[Row], k: int) -> str:
    """Return a few sentences on `rows`, which are one or more; `k` is the number of neighbours.

    The first one says which layers are alike, the others compare them with untrained encoders and chance.
    """
    blocks = [row for row in rows if row["a"] != EMBEDDING]
    embedding = next((row for row in rows if row["a"] == EMBEDDING), None)
    said = [_over_depth(blocks, embedding) if same_depth(rows) else _best(blocks, embedding)]
    if (further := _beside_untrained(best_pairs(rows))) is not None:
        said.append(further)
    if embedding is not None:
        near = embedding["neighbours"]
        said.append(
            f"In the embeddings, {_percent(near['value'])} of the {k} images nearest to an image are the "
            f"same ({_percent(near['shuffled'])} by chance)."
        )
    return " ".join(said)


def same_depth(rows: Sequence[Row]) -> bool:
    """Return whether layers were compared one by one and not in all pairs."""
    return all(len({row[encoder] for row in rows}) == len(rows) for encoder in "ab")


def best_pairs(rows: Sequence[Row]) -> list[Row]:
    """Return for each layer of A the row of the layer of B with the largest CKA, in the order of depth."""
    return [max(of, key=lambda row: _known(row)) for _, of in groupby(rows, key=lambda row: row["a"])]


def verdict(row: Row) -> str:
    """Return "are alike", "differ" or "are partly alike" for two layers."""
    if (row["cka"]["low"] or 0.0) >= ALIKE:
        return "are alike"
    return "differ" if _known(row, "high") < DIFFERENT else "are partly alike"


def _over_depth(blocks: Sequence[Row], embedding: Row | None) -> str:
    """Say which blocks are alike, from the first to the last, and whether the embeddings are."""
    runs = [(said, list(of)) for said, of in groupby(blocks, key=verdict)]
    parts, before = [], 0
    for said, of in runs:
        count = len(of)
        last = before + count == len(blocks)
        if count == len(blocks):
            which = {1: "the only block", 2: "both blocks"}.get(count, f"all {count} blocks")
        else:
            place = "first" if not before else "last" if last else "next"
            which = f"the {place} {count} blocks" if count > 1 else f"the {place} block"
        verb = said if count > 1 else SINGULAR[said]
        parts.append(f"{which} {verb} (CKA {_range(of)})")
        before += count
    if embedding is not None:
        parts.append(f"the embeddings {verdict(embedding)} (CKA {_number(embedding['cka']['value'])})")
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _best(blocks: Sequence[Row], embedding: Row | None) -> str:
    """Say which blocks of two encoders of different depth are most alike, and whether the embeddings are."""
    parts = ["The encoders differ in depth"]
    if blocks:
        most = max(blocks, key=_known)
        parts.append(
            f"most alike are {most['a']} of A and {most['b']} of B (CKA {_number(most['cka']['value'])})"
        )
    if embedding is not None:
        parts.append(f"the embeddings {verdict(embedding)} (CKA {_number(embedding['cka']['value'])})")
    return "; ".join(parts) + "."


def _beside_untrained(rows: Sequence[Row]) -> str | None:
    """Say in how many layers the encoders are less, and more, alike than two untrained ones."""
    known = [row for row in rows if None not in (row["cka"]["untrained"], row["cka"]["value"])]
    if not known:
        return None
    less = sum(_known(row, "high") < row["cka"]["untrained"] for row in known)
    more = sum(row["cka"]["low"] > row["cka"]["untrained"] for row in known)
    if less == more == 0:
        return "They are neither more nor less alike than two encoders that are not trained."
    return (
        f"Beside two encoders that are not trained, they are more alike in {more} of {len(known)} layers and "
        f"less alike in {less}."
    )


def _range(rows: Sequence[Row]) -> str:
    """Return the CKA of the first and of the last of some rows."""
    first, last = (_number(row["cka"]["value"]) for row in (rows[0], rows[-1]))
    return first if first == last or len(rows) == 1 else f"{first} to {last}"


def _known(row: Row, key: str = "value") -> float:
    """Return a number of a row's CKA; that of no likeness at all where it has none."""
    value = row["cka"][key]
    return 0.0 if value is None else float(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"
