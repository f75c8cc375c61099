"""Units of the distances between the pixels of an image."""

from typing import Literal, get_args

Unit = Literal["m", "cm", "mm", "um", "nm", "deg", "arcmin", "arcsec"]
"""A unit of length or of angle; um is the micrometre."""
LENGTH, ANGLE = 1, 2
UNITS: dict[str, tuple[int, float]] = {
    "m": (LENGTH, 1e3),
    "cm": (LENGTH, 10),
    "mm": (LENGTH, 1),
    "um": (LENGTH, 1e-3),
    "nm": (LENGTH, 1e-6),
    "deg": (ANGLE, 3600),
    "arcmin": (ANGLE, 60),
    "arcsec": (ANGLE, 1),
}
"""The kind of each unit, and its size in millimetres or arc seconds."""
assert set(UNITS) == set(get_args(Unit))
OTHER_NAMES = {"µm": "um", "μm": "um", "micron": "um", "microns": "um", "metre": "m", "meter": "m"}
