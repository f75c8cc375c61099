"""Where the labels in tars may be, if the options find none: a refusal, or a line of advice."""

from collections import Counter

from data_pipeline.existing_tars.tar_scan import Rule, Scan
from data_pipeline.storage.tar_reader import printable
from isotorus.errors import UserError
from isotorus.nearest_name import nearest

_MOST_SHOWN = 10


def refuse_unknown_place(scans: list[Scan], rule: Rule) -> None:
    """Raise `UserError` if no sample has a label where the options say: their names are probably mistyped."""
    if _any_label(scans):
        return
    if rule.label_field is None and rule.label_extension is not None:
        others = sorted({f".{ending}" for scan in scans for ending in scan.unread})
        raise UserError(
            f"no sample has a label in a file that ends in .{printable(rule.label_extension)}; "
            + (f"its other files end in {_few(others)}; " if others else "it has no other files; ")
            + "choose with --label-extension, or leave that out"
        )
    if rule.label_field is None:
        return
    fields = list(dict.fromkeys(name for scan in scans for name in scan.fields))
    near = nearest(rule.label_field, fields, 0.4)
    guess = f"; did you mean {near!r}?" if near else ";"
    file = f".{printable(rule.label_ending)}"
    there = f"the fields are {_few(fields)}" if fields else f"there is no {file}"
    raise UserError(
        f"no sample has a label in the field {rule.label_field!r} of its {file}, {there}{guess} "
        "choose with --label-key"
    )


def hint(scans: list[Scan], rule: Rule) -> str:
    """Return a line about files that may hold the labels of samples without any; "" if there are none."""
    unread = sum((scan.unread for scan in scans), Counter[str]())
    if rule.label_field or rule.label_extension or _any_label(scans):
        return ""
    fields = list(dict.fromkeys(name for scan in scans for name in scan.fields))
    ways = []
    for name, count in unread.most_common(_MOST_SHOWN):
        ending = printable(name)
        if name != "json":
            ways.append(f"the text of the {count} .{ending} with --label-extension {ending}")
        elif fields:
            ways.append(f"a field of the {count} .json ({_few(fields)}) with --label-key FIELD")
    advice = "labels may be in other files; to read them, index into another folder with"
    return f"\n{advice}: {'; or '.join(ways)}" if ways else ""


def _any_label(scans: list[Scan]) -> bool:
    """Return whether any sample has a label."""
    return any(scan.labels.names or scan.labels.largest >= 0 for scan in scans)


def _few(names: list[str]) -> str:
    """Return names for messages, the first ones of many."""
    return ", ".join(map(printable, names[:_MOST_SHOWN])) + ", …" * (len(names) > _MOST_SHOWN)
