"""Errors that the user can fix, errors for want of memory, and the exit codes of commands."""

import argparse
import errno
import os
import re
import select
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from isotorus.processes import first_rank_reports
from isotorus.secrets import masked

USER_ERROR = 2
"""Exit code after a `UserError`. The same command would meet the same error again."""
TRY_AGAIN = 75
"""Exit code of a run that did not save and can be started again (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells: 128 + SIGINT."""
NO_READER = 141
"""Exit code where nobody reads the output any more, as after `| head`; as in shells: 128 + SIGPIPE."""
DEAD_READER = "DataLoader worker (pid"
"""Text of torch's error if a process that reads data was killed, which is mostly for want of memory."""
_SAID = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory|bad_alloc|ALLOC_FAILED"
)


def one_line(text: str) -> str:
    """Return the text with line breaks, terminal escapes and invalid UTF-8 spelled out.

    The no-break space stays, which Python does not count as printable and our own sentences contain.
    """
    return "".join(c if c.isprintable() or c == "\u00a0" else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """An error that the user can fix. Its message is what was given, what was expected and what to do next.

    `str` makes the message one line and masks the secrets in whatever it quotes.
    """

    def __str__(self) -> str:
        return one_line(masked(super().__str__()))


class MachineError(UserError):
    """A `UserError` about one machine, which its message names: other machines may be well."""


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises `UserError`: one line, printed by one rank.

    A negative number with an exponent is a value, as from Python 3.14 on, and no option.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def from_os_error(error: OSError, doing: str) -> UserError:
    """Return a `UserError` for an error of the file system, with advice on what to do about it."""
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


def no_memory(file: str, error: MemoryError) -> UserError:
    """Return a `UserError` for memory that ran out while something was read."""
    reason = f" ({error})" if str(error) else ""
    return UserError(
        f"memory ran out while {file} was read{reason}; run the same command again with fewer --workers, or "
        "with more memory (ulimit -v, the limit of the job or container)"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out.

    torch raises a RuntimeError for it, on CPUs without a class of its own, so its text is looked at.
    """
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_SAID.search(str(error)) or DEAD_READER in str(error))


def exit_code(main: Callable[[], int]) -> int:
    """Run a command and return its exit code: 2 for a `UserError`, which is printed, and 130 for Ctrl-C.

    141 is returned, and nothing is printed, if the output is a pipe that its reader has closed.
    Every rank of a launch raises the same `UserError` before there is a process group, so rank 0 alone prints
    it. A `MachineError` is printed by the first rank of its machine.
    """
    try:
        code = main()
        sys.stdout.flush()  # otherwise Python does it at its end, where nobody can catch the error
        return code
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return NO_READER
    except (UserError, MemoryError) as error:
        if not first_rank_reports(of_machine=isinstance(error, MachineError)):
            known = error if isinstance(error, UserError) else no_memory("the input", error)
            print(f"error: {known}", file=sys.stderr, flush=True)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def _reader_is_gone() -> bool:
    """Return whether standard output or error is a pipe without a reader; if so, discard what is still
    written.
    """
    gone = []
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            gone.append(descriptor)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in gone:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return bool(gone)
