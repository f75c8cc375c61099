"""The logs of commands. Names and reasons in their lines are data: no line break or escape of theirs acts."""

import logging
import sys
from collections.abc import Iterable

from isotorus.errors import one_line


def start(level: int, quiet: Iterable[str] = ()) -> None:
    """Write log lines of `level` and above to standard error; of the libraries in `quiet`, only warnings."""
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    escape_arguments()
    for library in quiet:
        logging.getLogger(library).setLevel(logging.WARNING)


def escape_arguments() -> None:
    """Make the present handlers of logging write each argument of a line that is no number by `one_line`."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_escape)


def _escape(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(
            value if isinstance(value, int | float) else one_line(str(value)) for value in record.args
        )
    return True
