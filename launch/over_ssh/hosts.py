"""The hosts of a run, from a host file in DeepSpeed's format."""

from pathlib import Path
from typing import NamedTuple

from isotorus.errors import UserError


class Host(NamedTuple):
    name: str
    """What ssh reaches it by."""
    slots: int
    """Ranks that it runs, one a GPU where it has any."""


def read_hosts(path: str, include: str = "", exclude: str = "") -> list[Host]:
    """The hosts of a file with a line `name slots=4` each, in the file's order; `#` begins a comment.

    `include` keeps only some of them and `exclude` leaves some out: names with commas between them.
    Raises UserError naming file, line and host for what is not such a line, for a host given twice or
    without slots, and for names that are not in the file.
    """
    hosts: dict[str, Host] = {}
    lines: dict[str, int] = {}
    try:
        text = Path(path).read_text()
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


def _host(words: list[str], where: str) -> Host:
    name, given = words[0], words[1:]
    if name.startswith("-") or "=" in name:
        raise UserError(f"{where}: '{name}' is no host; write 'name slots=4'")
    if len(given) != 1 or not given[0].startswith("slots="):
        raise UserError(f"{where}: host {name} has {' '.join(given) or 'no slots'}; write '{name} slots=4'")
    number = given[0].removeprefix("slots=")
    if not number.isascii() or not number.isdigit() or int(number) == 0:
        raise UserError(f"{where}: host {name} has slots={number}; give it 1 or more, or take it out")
    return Host(name, int(number))


def _names(given: str, hosts: dict[str, Host], path: str) -> set[str]:
    names = {name for name in given.split(",") if name}
    for name in sorted(names - hosts.keys()):
        raise UserError(f"host {name} is not in {path}; it has {', '.join(hosts)}")
    return names
