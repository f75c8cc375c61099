"""Read the hosts of a run from a host file in DeepSpeed's format."""

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

from isotorus import foreign_files
from isotorus.errors import UserError
from isotorus.numbers import whole_number

_NAME = re.compile(r"[A-Za-z0-9_:\[][A-Za-z0-9_.:@%\[\]-]{0,254}")
"""Host names that are safe for ssh and as a folder of logs: no option, no path, no character of a shell."""
_MOST_SLOTS = 4096


class Host(NamedTuple):
    name: str
    """The name or address that is passed to ssh."""
    slots: int
    """The number of ranks that the host runs, usually one for each GPU."""


def add_file_options(group: "argparse._ActionsContainer") -> None:
    """Add the options that name a host file and choose hosts from it."""
    file = "use the hosts in this file; each line is 'name slots=4'"
    group.add_argument("--hosts", metavar="FILE", help=file)
    group.add_argument("--include", default="", metavar="A,B", help="use only these hosts of the file")
    group.add_argument("--exclude", default="", metavar="A,B", help="leave out these hosts of the file")


def add_ssh_options(group: "argparse._ActionsContainer") -> None:
    """Add the options that say how a host is reached and which Python runs there."""
    add = group.add_argument
    add("--python", default=sys.executable, help="interpreter on the hosts; default: %(default)s")
    add("--ssh", default="ssh", metavar="COMMAND", help="ssh client and options, such as 'ssh -F my_config'")


def read_hosts(path: str, include: str = "", exclude: str = "") -> list[Host]:
    """Return the hosts of a file with lines `name slots=4`, in the file's order. `#` begins a comment.

    `include` keeps only some hosts and `exclude` leaves some out; both are names separated by commas.
    Raise UserError with file, line and host for any other line, for a host that appears twice or has no
    slots, and for names that are not in the file.
    """
    hosts: dict[str, Host] = {}
    lines: dict[str, int] = {}
    try:
        file = Path(path)
        text = foreign_files.read_bytes(file, file.resolve().parent).decode()  # no pipe, which may wait
    except foreign_files.Refused as error:
        raise UserError(f"host file {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(
            f"host file {path}: {reason}; give a file with a line 'name slots=4' a host"
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        host = _host(words, f"{path}, line {number}")
        if host.name in hosts:
            raise UserError(
                f"{path}, line {number}: host {host.name} is in line {lines[host.name]} already; "
                "give each host once, with all its slots"
            )
        hosts[host.name], lines[host.name] = host, number
    if not hosts:
        raise UserError(f"host file {path} names no host; give it a line 'name slots=4' a host")
    kept, dropped = _names(include, hosts, path), _names(exclude, hosts, path)
    left = [host for name, host in hosts.items() if (not kept or name in kept) and name not in dropped]
    if not left:
        raise UserError(f"no host of {path} is left; include or exclude other ones")
    return left


def is_host(name: str) -> bool:
    """Return whether a text can be the name or the address of a host."""
    return bool(_NAME.fullmatch(name))


def _host(words: list[str], where: str) -> Host:
    name, options = words[0], words[1:]
    if not is_host(name):
        raise UserError(f"{where}: '{name[:80]}' is no host; write 'name slots=4'")
    if len(options) != 1 or not options[0].startswith("slots="):
        raise UserError(f"{where}: host {name} has {' '.join(options) or 'no slots'}; write '{name} slots=4'")
    number = options[0].removeprefix("slots=")
    slots = whole_number(number) or 0
    if not 1 <= slots <= _MOST_SLOTS:
        raise UserError(
            f"{where}: host {name} has slots={number[:40]}; give it 1 to {_MOST_SLOTS}, or take it out"
        )
    return Host(name, slots)


def _names(listed: str, hosts: dict[str, Host], path: str) -> set[str]:
    names = {name for name in listed.split(",") if name}
    for name in sorted(names - hosts.keys()):
        raise UserError(f"host {name} is not in {path}; it has {', '.join(hosts)}")
    return names
