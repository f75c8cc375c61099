"""What a check says, and the table of all of them."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

Facts = dict[str, Any]
ByHost = dict[str, Facts]
"""What each host's first rank has measured, in the order of the hosts."""


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "not applicable"


_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red", Status.SKIPPED: "dim"}


class Finding(NamedTuple):
    check: str
    status: Status
    hosts: list[str]
    """Those concerned; empty for all."""
    found: str
    remedy: str = ""
    """What to do about it, where something is to be done."""


def ok(check: str, found: str) -> list[Finding]:
    return [Finding(check, Status.OK, [], found)]


def skipped(check: str, why: str) -> list[Finding]:
    return [Finding(check, Status.SKIPPED, [], why)]


def alike(check: str, status: Status, complaints: dict[str, tuple[str, str]]) -> list[Finding]:
    """A finding for each (found, remedy), with all hosts that have it."""
    by_text: dict[tuple[str, str], list[str]] = {}
    for host, text in complaints.items():
        by_text.setdefault(text, []).append(host)
    return [Finding(check, status, hosts, found, remedy) for (found, remedy), hosts in by_text.items()]


def span(values: Iterable[float], text: Callable[[float], str]) -> str:
    """The value, or the least and the largest."""
    values = list(values)
    least, most = text(min(values)), text(max(values))
    return least if least == most else f"{least} to {most}"


def exit_code(findings: list[Finding]) -> int:
    return 1 if any(finding.status == Status.FAILED for finding in findings) else 0


def show(findings: list[Finding], hosts: list[str], ranks: int) -> None:
    table = Table(title=f"{_count(len(hosts), 'host')}, {_count(ranks, 'rank')}", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("hosts", max_width=24)
    table.add_column("found, and what to do")
    for check, status, concerned, found, remedy in findings:
        text = f"{found}\n→ {remedy}" if remedy else found
        table.add_row(check, f"[{_STYLES[status]}]{status}[/]", _named(concerned), text)
    console = Console()
    console.print(table)
    failed = sum(finding.status == Status.FAILED for finding in findings)
    warnings = sum(finding.status == Status.WARNING for finding in findings)
    console.print(f"{failed} failed, {_count(warnings, 'warning')}")


def _named(hosts: list[str], most: int = 6) -> str:
    more = f" and {len(hosts) - most} more" if len(hosts) > most else ""
    return ", ".join(hosts[:most]) + more


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
