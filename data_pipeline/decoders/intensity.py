"""The rule by which the numbers of an image become brightness: `--intensity`, `--nodata` and `--fill`.

Without a rule (`none`), the largest value of an unsigned type of 8 or 16 bits is white. Under any other rule,
the numbers of a file may be of any type, and an image becomes uint16, where 65535 is white:

    window:LOW,HIGH            b = (x − LOW) / (HIGH − LOW)
    percentile:LOW,HIGH        the same, between two percentiles of the image's own valid values in a channel
    asinh:STRETCH[,Q[,BLACK]]  b = asinh(Q (x − BLACK) / STRETCH) / Q, Lupton et al. 2004 (PASP 116, 133)

The brightness b is clipped to [0, 1]. NaN, ±infinity and nodata are not valid: they become the fill, and they
are left out of percentiles and of the mean and standard deviation of a data set.
"""

import functools
import math
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from data_pipeline.decoders.pixels import Numbers, Pixels
from isotorus.errors import UserError
from isotorus.section import Section

Valid = NDArray[np.bool_]
"""Which values (H, W, C) of an image are valid."""

_WHITE = 65_535
_AT_ONCE = 2**17  # values in a block, so that the block stays in the CPU's cache
_FORMS = "expected window:LOW,HIGH, percentile:LOW,HIGH, asinh:STRETCH[,Q[,BLACK]] or none"
_Q, _BLACK = 8.0, 0.0  # defaults of asinh, as in astropy's make_lupton_rgb


class _Rule(NamedTuple):
    """A rule that was read from its text."""

    kind: Literal["none", "window", "percentile", "asinh"]
    numbers: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(map(_shortest, self.numbers))}" if self.numbers else self.kind


class Intensity(Section):
    """How the numbers of the images of a data set become brightness; two are equal if they do the same."""

    rule: str = "none"
    """The rule as it is given on the command line, such as "window:-160,240"."""
    nodata: float | None = Field(None, allow_inf_nan=False)
    """A value that means "not measured", in addition to NaN, ±infinity and the values that a file names."""
    fill: float = Field(0.0, ge=0, le=1)
    """Brightness of values that are not valid: 0 is black, 1 is white."""

    @field_validator("rule")
    @classmethod
    def _one_spelling(cls, text: str) -> str:
        return spelled(text)

    @property
    def is_stated(self) -> bool:
        """Whether there is a rule, so that numbers of any type are read."""
        return self.rule != "none"

    @classmethod
    def parse(cls, text: str) -> "Intensity":
        """Read the text that `str` of an `Intensity` returns; raises ValueError for any other text."""
        rule, *options = text.split(" --")
        values = {name: float(value) for name, _, value in (option.partition("=") for option in options)}
        return cls.model_validate({"rule": rule, **values})

    def __str__(self) -> str:
        """Return what follows --intensity on the command line."""
        nodata = "" if self.nodata is None else f" --nodata={_shortest(self.nodata)}"
        return self.rule + nodata + (f" --fill={_shortest(self.fill)}" if self.fill else "")


class NoValidValue(ValueError):
    """An image without a valid value."""


class NeedsRule(ValueError):
    """A file whose numbers become brightness only by a rule, and no rule is given. `found` says which numbers
    it holds.
    """

    def __init__(self, found: str, example: str) -> None:
        super().__init__(f"{found}: say what is black and what is white, e.g. with --intensity {example}")
        self.found = found


NONE: Final = Intensity()
"""The absence of a rule: the largest value of an unsigned type is white."""


def refuse_other(path: str, packed: Intensity, asked: Intensity | None) -> None:
    """Raise `UserError` if another rule is asked for than that of the data set in `path`."""
    if asked not in (None, packed):
        raise UserError(
            f"{path} was made with --intensity {packed}, not {asked}; give that one, or make a set of all "
            "images in another folder"
        )


def brightness(image: Numbers, intensity: Intensity) -> tuple[Pixels, Valid | None]:
    """Return the pixels (H, W, C) of an image, and which of them are valid; None if all are.

    Pixels are uint16 under a rule; without one they keep their type. Raises `NoValidValue`, and `NeedsRule`
    if the type needs a rule and there is none.
    """
    values = image.values
    if not intensity.is_stated:
        if values.dtype not in (np.uint8, np.uint16):
            raise _needs_a_rule(image)
        return (~values if image.inverted else values), None
    valid = _valid(image, intensity)
    if not valid.any():
        raise NoValidValue(f"no valid value: all {values.size} are NaN, infinite or nodata")
    rule = _parsed(intensity.rule)
    low, high = _limits(values, valid, rule) if rule.kind != "asinh" else (np.empty(0), np.empty(0))
    pixels = np.empty(values.shape, np.uint16)
    step = max(_AT_ONCE // (values.shape[1] * values.shape[2]), 1)
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        x = np.where(valid[rows], values[rows], 0).astype(np.float64)
        with np.errstate(over="ignore"):  # of huge values, or where both percentiles are nearly equal
            if rule.kind == "asinh":
                stretch, q, black = rule.numbers
                b = np.arcsinh(q * (x - black) / stretch) / q
            else:
                b = (x - low) / (high - low)
        b = np.clip(b, 0, 1)
        if image.inverted:
            b = 1 - b
        pixels[rows] = np.rint(np.where(valid[rows], b, intensity.fill) * _WHITE)
    return pixels, None if valid.all() else valid


def _valid(image: Numbers, intensity: Intensity) -> Valid:
    """Return which values of an image are finite and not nodata."""
    values = image.values
    valid: Valid = np.isfinite(values)
    for nodata in (*image.nodata, *([] if intensity.nodata is None else [intensity.nodata])):
        if values.dtype.kind == "f":
            with np.errstate(
                over="ignore"
            ):  # a number too large for the type becomes infinite, and equals no valid value
                valid &= values != values.dtype.type(nodata)
        elif nodata == int(nodata):
            valid &= values != int(nodata)
    return valid


def _limits(values: NDArray[Any], valid: Valid, rule: _Rule) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the values of black and of white in each channel (C,).

    If both percentiles are equal, larger values are white and all others black.
    """
    limits = np.tile(rule.numbers, (values.shape[2], 1)).astype(np.float64)
    if rule.kind == "percentile":
        for channel, pair in enumerate(limits):
            if len(chosen := values[..., channel][valid[..., channel]]):
                pair[:] = np.percentile(chosen.astype(np.float64), rule.numbers)
    low, high = limits.T
    return low, np.maximum(high, np.nextafter(low, np.inf))


def _needs_a_rule(image: Numbers) -> NeedsRule:
    """Return the error for an image whose numbers become brightness only by a rule."""
    valid = _valid(image, NONE)
    seen, example = "of which none is valid", "percentile:0.5,99.5"
    if valid.any():
        low, high = (_shown(float(f(image.values[valid]))) for f in (np.min, np.max))
        seen = f"from {low} to {high}"
        example = f"window:{low},{high}" if low != high else example
    return NeedsRule(f"{image.values.dtype} values {seen}", example)


def spelled(text: str) -> str:
    """Return a rule in its standard spelling; raises ValueError, with what was expected, for other text."""
    return str(_parsed(text))


@functools.cache
def _parsed(text: str) -> _Rule:
    """Read a rule; raises ValueError with what was expected."""
    kind, _, rest = text.strip().partition(":")
    try:
        numbers = tuple(float(part) for part in rest.split(",")) if rest else ()
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text!r} has something else than numbers; {_FORMS}")
    match kind, numbers:
        case "none", ():
            return _Rule("none")
        case "window", (low, high):
            if low >= high:
                raise ValueError(f"{text!r} has no width: LOW must be less than HIGH; {_FORMS}")
            return _Rule("window", numbers)
        case "percentile", (low, high):
            if not 0 <= low < high <= 100:
                raise ValueError(f"{text!r}: percentiles must be from 0 to 100, the lower one first")
            return _Rule("percentile", numbers)
        case "asinh", (stretch, *others) if len(others) <= 2:
            q, black = (*others, *(_Q, _BLACK)[len(others) :])
            if stretch <= 0 or q <= 0:
                raise ValueError(f"{text!r}: STRETCH and Q must be greater than 0")
            return _Rule("asinh", (stretch, q, black))
    raise ValueError(f"{text!r} is no rule for brightness; {_FORMS}")


def _shown(number: float) -> str:
    """Return a number for a message: whole numbers in full, others with six digits."""
    return _shortest(number) if number.is_integer() and abs(number) < 1e16 else f"{number:.6g}"


def _shortest(number: float) -> str:
    """Return the shortest text of a number that is read as the same number."""
    return repr(number).removesuffix(".0")
