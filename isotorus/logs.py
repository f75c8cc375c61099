"""Log lines in which names and reasons are data: no line break or terminal escape of theirs acts."""

import logging

from isotorus.errors import one_line


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
