"""The one exception that means "the user can mend this", and how a command ends with it."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from isotorus.secrets import masked


def one_line(text: str) -> str:
    """Text with what a terminal or a log should not get (line breaks, escapes, no UTF-8) spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """What was given, what was expected and what to do next: one line without secrets, whatever is quoted."""

    def __str__(self) -> str:
        return one_line(masked(super().__str__()))


class ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments as a `UserError`, so in one line and on one rank."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def from_os_error(error: OSError, doing: str) -> UserError:
    """Say in one line what the file system refused while `doing` something, and what to do."""
    advice = {
        errno.ENOSPC: "free some space there and run the same command again",
        errno.EDQUOT: "raise the quota or free some space there and run the same command again",
        errno.EFBIG: "the file size limit is reached; raise it (ulimit -f) and run the same command again",
        errno.EROFS: "that file system is read-only; choose another folder",
        errno.EACCES: "check its permissions or choose another folder",
        errno.EPERM: "check its permissions or choose another folder",
        errno.EEXIST: "a file is in the way; choose another folder",
        errno.ENOTDIR: "a file is in the way; choose another folder",
    }.get(error.errno or 0, "check the path and run the same command again")
    where = f" ({error.filename})" if error.filename else ""
    return UserError(f"{doing}: {error.strerror or error}{where}; {advice}")


def exit_code(main: Callable[[], int]) -> int:
    """Run a command; a `UserError` becomes one line on stderr and exit code 2, Ctrl-C exit code 130.

    A `UserError` that every rank raises alike before there is a process group is printed by rank 0
    alone.
    """
    try:
        return main()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
