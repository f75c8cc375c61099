"""What the ranks of a check-up are told."""

import json
from dataclasses import asdict, dataclass

VARIABLE = "ISOTORUS_DOCTOR"
ANSWER = "isotorus doctor: "
"""What the line with the findings begins with."""


@dataclass(frozen=True)
class Request:
    """The same for all ranks but for `rank`."""

    hosts: list[str]
    ranks: list[int]
    """Of each host."""
    address: str
    port: int
    patience: float
    """Seconds until a rank that has not come is given up."""
    config: str | None
    overrides: list[str]
    rank: int = 0

    @property
    def firsts(self) -> list[int]:
        return [sum(self.ranks[:number]) for number in range(len(self.ranks))]

    def to_json(self) -> str:
        return json.dumps(asdict(self))
