"""The share of the shards that one of several processes writes, as `pack --part 3/8` says."""

import argparse
import re
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Share(NamedTuple):
    """Part `number`, counted from 0, of `of` parts."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def of_list(self, every: list[T]) -> list[T]:
        """Return the elements of this part: those at number, number + of, …"""
        return every[self.number :: self.of]


def read_share(text: str) -> Share:
    """Read a part such as 3/8 from the command line."""
    match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, such as 0/8, got {text!r}")
    return Share(int(match[1]), int(match[2]))
