"""The request that starts a check-up, the findings that it returns, and the table that shows them."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

Facts = dict[str, Any]
ByHost = dict[str, Facts]
"""What the first rank of each host measured, in the order of the hosts."""

VARIABLE = "ISOTORUS_DOCTOR"
"""The environment variable in which a rank receives its `Request` as JSON."""
ANSWER = "isotorus doctor: "
"""Marks the line of stdout that holds the findings as JSON."""


@dataclass(frozen=True)
class Request:
    """What the ranks of a check-up need to know. Only `rank` differs between them."""

    hosts: list[str]
    ranks: list[int]
    """The number of ranks on each host."""
    address: str
    """Where the ranks meet, together with `port`."""
    port: int
    patience: float
    """Seconds after which a rank that has not arrived is given up."""
    config: str | None
    """The recipe, or None to check no data, run folder and MLflow."""
    overrides: list[str]
    rank: int = 0

    @property
    def firsts(self) -> list[int]:
        """The number of the first rank on each host."""
        return [sum(self.ranks[:number]) for number in range(len(self.ranks))]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "not applicable"


_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red", Status.SKIPPED: "dim"}


class Finding(NamedTuple):
    """One row of the table."""

    check: str
    status: Status
    hosts: list[str]
    """The hosts concerned; empty if all are."""
    found: str
    """What the check observed."""
    remedy: str = ""
    """What the user can do about it; empty if nothing needs to be done."""


def ok(check: str, observed: str) -> list[Finding]:
    return [Finding(check, Status.OK, [], observed)]


def skipped(check: str, reason: str) -> list[Finding]:
    return [Finding(check, Status.SKIPPED, [], reason)]


def grouped(check: str, status: Status, problems: dict[str, tuple[str, str]]) -> list[Finding]:
    """Return one finding for each different problem, with all hosts that have it.

    `problems` holds what was observed on a host and the remedy, by host.
    """
    by_text: dict[tuple[str, str], list[str]] = {}
    for host, text in problems.items():
        by_text.setdefault(text, []).append(host)
    return [Finding(check, status, hosts, observed, remedy) for (observed, remedy), hosts in by_text.items()]


def span(values: Iterable[float], text: Callable[[float], str]) -> str:
    """Return "least to largest", or one text if both are the same."""
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
    for check, status, concerned, observed, remedy in findings:
        text = f"{observed}\n→ {remedy}" if remedy else observed
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
