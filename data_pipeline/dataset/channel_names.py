"""Names of channels, by which data sets of several instruments are combined.

A data set may name its channels, such as DAPI and GFP, in the order in which its images have them. An encoder
that is trained on several such sets has the channels of all sets, and finds the channels of an image by name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.index import Dataset
from isotorus.errors import UserError, one_line

if TYPE_CHECKING:  # packing does not wait for torch
    import torch
    from torch import Tensor


def checked(names: Iterable[str]) -> list[str]:
    """Return names without blanks at their ends; raise ValueError if one is empty or given twice."""
    stripped = [name.strip() for name in names]
    if not all(stripped):
        raise ValueError("a channel without a name; name each channel")
    if twice := [name for name in stripped if stripped.count(name) > 1]:
        raise ValueError(f"two channels are called {one_line(twice[0])}; name each differently")
    return stripped


def channel_list(text: str) -> tuple[str, ...]:
    """Read names of channels, such as dapi,gfp, from the command line."""
    try:
        return tuple(checked(text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def stated(lists: Iterable[Sequence[str]], channels: int) -> list[str] | None:
    """Return the names of the channels if all files state the same ones, else None.

    `lists` are the names that the files state; a file without names gives an empty list. None is also
    returned for names that are empty, given twice, or not as many as `channels`.
    """
    distinct = {tuple(names) for names in lists}
    if len(distinct) != 1:
        return None
    names = list(distinct.pop())
    try:
        return names if checked(names) == names and len(names) == channels else None
    except ValueError:
        return None


def of_header(header: Any, channels: int) -> list[str]:
    """Return the names of channels in the JSON of an image; [] if it has none, or another number of them."""
    names = header.get("channels") if isinstance(header, dict) else None
    fits = isinstance(names, list) and len(names) == channels and all(isinstance(n, str) for n in names)
    return [name.strip() for name in names] if fits and names else []


def required(dataset: Dataset) -> list[str]:
    """Return the names of the channels of a data set; raise `UserError` if it has none."""
    names = dataset.channel_names
    if names is None:
        raise UserError(
            f"{dataset.path} does not name its {dataset.channels} channels, which are found by name; name "
            f"them with: isotorus name-channels {dataset.path} NAME,…"
        )
    return names


def union(datasets: Sequence[Dataset]) -> list[str]:
    """Return the names of the channels of all data sets, sorted by the code points of their letters.

    The order depends neither on that of the sets nor on that of their channels. Raises `UserError` if a set
    does not name its channels, and for names that differ only in upper and lower case.
    """
    where = {name: dataset.path for dataset in datasets for name in required(dataset)}
    names = sorted(where)
    alike: dict[str, str] = {}
    for name in names:
        other = alike.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"the channels {one_line(other)} of {where[other]} and {one_line(name)} of {where[name]} "
                "differ in upper and lower case alone; if they are the same channel, rename one with: "
                f"isotorus name-channels {where[name]} NAME,…"
            )
    return names


class Placement(NamedTuple):
    """The positions of the channels of a data set among the channels of an encoder."""

    places: tuple[int, ...]
    """The position of each channel of the data set; -1 for a channel that the encoder does not have."""
    channels: int
    """Number of channels of the encoder."""

    @property
    def own(self) -> int:
        """Number of channels of the data set's images."""
        return len(self.places)

    @property
    def kept(self) -> list[int]:
        """The positions of those channels that the encoder also has, in the encoder's order."""
        return sorted(place for place in self.places if place >= 0)

    @property
    def present(self) -> NDArray[np.bool_]:
        """For each channel of the encoder (channels,), whether the images have it."""
        return np.isin(np.arange(self.channels), self.places)

    def mask(self, device: torch.device) -> Tensor:
        """Return a factor (channels, 1, 1) for normalised images: 0 where they lack a channel, else 1."""
        import torch

        return torch.from_numpy(self.present.astype(np.float32)).to(device)[:, None, None]

    def spread(self, images: Tensor) -> Tensor:
        """Return images (…, own, H, W) as (…, channels, H, W); channels that they lack are zero."""
        *outer, _, height, width = images.shape
        out = images.new_zeros((*outer, self.channels, height, width))
        for channel, place in enumerate(self.places):
            if place >= 0:
                out.select(-3, place).copy_(images.select(-3, channel))
        return out


def placed(dataset: Dataset, names: Sequence[str]) -> Placement:
    """Return the positions of a data set's channels among `names`; raise `UserError` if `names` has none of
    these channels.
    """
    own = required(dataset)
    places = tuple(names.index(name) if name in names else -1 for name in own)
    if max(places) < 0:
        raise UserError(
            f"{dataset.path} has the channels {', '.join(map(one_line, own))}, of which the encoder has none "
            f"({', '.join(map(one_line, names))}); name another data set, or rename its channels with: "
            f"isotorus name-channels {dataset.path} NAME,…"
        )
    return Placement(places, len(names))
