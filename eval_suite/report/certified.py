"""The certificate of a torus head beside an evaluation: its files, their seal, a section of the report."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from eval_suite import results
from eval_suite.inputs import seals
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.report.certificate_lines import lines
from eval_suite.report.pages import template
from isotorus import foreign_files

FILES = ("certificate.json", "certificate.html")
SEAL = ".certificate.seal"
FORMAT = 1
"""Version of certificate.json; it increases when the meaning of a key changes."""
_PLACE = re.compile("(<!-- certificate -->).*?(<!-- end of certificate -->)", re.DOTALL)
_LARGEST = 2**28  # bytes of a page


def seal(folder: Path) -> None:
    """Mark the certificate in a folder as made by this user."""
    seals.write(folder / SEAL, [folder / name for name in FILES])


def read(folder: Path, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the certificate of a checkpoint in the folder of its results; None if there is none.

    It must have been made by this user, because the folder may be somebody else's, and for these weights.
    """
    if not seals.holds(folder / SEAL, [folder / name for name in FILES]):
        return None
    found: dict[str, Any] = foreign_files.read_json(folder / FILES[0])
    ours = found["inputs"]["weights_sha256"] == checkpoint.weights_sha256
    return found if ours and found["format"] == FORMAT else None


def section(numbers: Mapping[str, Any] | None) -> Markup:
    """Return the section of a report about the content of certificate.json; empty for None."""
    if numbers is None:
        return Markup("")
    return Markup(template("certificate_section").render(found=numbers, lines=lines(numbers)))


def put_into_report(folder: Path, numbers: Mapping[str, Any]) -> bool:
    """Put the section into the report that is in a folder, and say whether there was one.

    Only a report that this user's evaluation has finished is changed, since somebody else may have put it
    there; it is sealed again.
    """
    page = folder / results.FILES[1]
    if not seals.holds(folder / results.SEAL, [folder / name for name in results.FILES]):
        return False
    text = foreign_files.read_text(page, most=_LARGEST)
    shown = str(section(numbers))
    changed, places = _PLACE.subn(lambda found: found[1] + shown + found[2], text, count=1)
    if places:
        results.write(page, changed)
        results.seal(folder)
    return bool(places)
