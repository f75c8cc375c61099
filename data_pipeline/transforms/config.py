"""The sections `views` and `augment` of a recipe."""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from data_pipeline.dataset.units import Unit
from isotorus.section import Section

Action = Literal["rotation", "hue", "shift_x", "shift_y"]
"""rotation: counterclockwise about the centre. hue: the chroma plane turns. shift_x, shift_y: a cyclic shift
to the right or downwards, by the whole side at 2π."""
ACTIONS: tuple[Action, ...] = ("rotation", "hue", "shift_x", "shift_y")
"""All actions, in the order in which their angles are drawn."""
Border = Literal["disc", "reflect"]
"""What a rotation shows in the corners. disc: grey, outside the disc that all rotations share; reflect: the
image, mirrored at its edges."""


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    """Raise ValueError unless 0 < low <= high."""
    if not 0 < interval[0] <= interval[1]:
        raise ValueError(f"expected 0 < low <= high, got {interval[0]}, {interval[1]}")
    return interval


def _at_most_whole(interval: tuple[float, float]) -> tuple[float, float]:
    """Raise ValueError if a crop may be larger than the image."""
    if interval[1] > 1:
        raise ValueError(f"a crop holds at most the whole image (1.0), got {interval[1]}")
    return interval


class Resolution(NamedTuple):
    """How the views of one size are cropped."""

    views: int
    size: int
    scale: tuple[float, float]
    turned: bool
    """Whether the actions act on these views."""
    kind: Literal["global", "local", "turned"]
    sides: tuple[float, float] | None = None
    """Smallest and largest physical side of a crop; None where crops are shares of the image's area."""


Interval = Annotated[tuple[float, float], AfterValidator(_ascending)]
"""A pair 0 < low <= high."""
Scale = Annotated[Interval, AfterValidator(_at_most_whole)]
"""A pair 0 < low <= high <= 1: shares of an image's area."""
Probability = Annotated[float, Field(ge=0, le=1)]


class ViewsConfig(Section):
    """The section `views` of a recipe: multi-crop (Caron et al. 2020, arXiv:2006.09882) with LeJEPA's
    sizes.
    """

    global_views: int = Field(2, ge=1)
    """Number of large crops of an image; their mean is the prediction target."""
    global_size: int = Field(224, ge=1)
    """Side of a global view in pixels."""
    global_scale: Scale = (0.3, 1.0)
    """Smallest and largest share of the image's area that a global view shows."""
    local_views: int = Field(6, ge=0)
    """Number of small crops of an image."""
    local_size: int = Field(98, ge=1)
    """Side of a local view in pixels."""
    local_scale: Scale = (0.05, 0.3)
    """Smallest and largest share of the image's area that a local view shows."""
    ratio: Interval = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of a crop by area, width divided by height."""
    whole_size: int | None = Field(None, ge=1)
    """Side in pixels of whole images when the encoder is evaluated or exported; by default global_size. Crops
    show things larger than a whole image of the same size does (Touvron et al. 2019, arXiv:1906.06423), so a
    ConvNet may be better at a larger size."""

    scale_by: Literal["area", "spacing"] = "area"
    """Unit in which the size of a crop is given. area: shares of the image's area, by global_scale and
    local_scale. spacing: millimetres or another physical unit, by physical_size, for images whose spacing is
    known; these crops are squares on the object, also where rows and columns have different distances."""
    unit: Unit | None = None
    """Unit of the physical sizes, with scale_by=spacing; um is the micrometre. Images may state their spacing
    in another unit of length, or of angle."""
    physical_size: Interval | None = None
    """Smallest and largest side of a global or turned view, in `unit`; its logarithm is drawn uniformly. An
    image that is smaller than the largest gets crops up to its own size."""
    local_physical_size: Interval | None = None
    """The same for local views; by default physical_size times local_size over global_size, so that a pixel
    has the same physical size in local and global views."""
    whole_physical_size: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Side in `unit` of the centred square that the encoder sees when it is evaluated or
    exported; by default the geometric mean of physical_size, times whole_size over global_size."""
    unscaled: Literal["refuse", "area"] = "refuse"
    """What happens with images whose spacing is not known, or that are smaller than the smallest crop.
    refuse: the run does not start; area: they are cropped by area, and counted in the log."""

    actions: list[Action] = []
    """Circle actions that turn views by known angles, for objective.kind=torus. rotation: about the centre;
    hue: of the colour plane, for 3 channels; shift_x, shift_y: cyclic shifts, for periodic images."""
    turned: Literal["all"] | Annotated[int, Field(ge=1)] = 2
    """Number of turned views of an image, beside the global and local views, which are not turned; or all:
    every global and local view is turned, and there are no others. Without actions no view is turned."""
    turned_size: int | None = Field(None, ge=1)
    """Side of a turned view in pixels; by default global_size."""
    turned_scale: Scale = (0.3, 1.0)
    """Smallest and largest share of the image's area that a turned view shows."""
    border: Border = "disc"
    """What rotated views show in their corners. disc: grey, as outside the disc of every view whatever its
    angle; reflect: the image around the crop, and beyond the image's edges its mirror image."""

    @model_validator(mode="after")
    def _actions_that_act(self) -> Self:
        """Refuse an action that is named twice, and turned views without actions."""
        if twice := [action for action in ACTIONS if self.actions.count(action) > 1]:
            raise ValueError(f"actions names {twice[0]} twice; name each action once")
        if not self.actions and self.turned != type(self).model_fields["turned"].default:
            raise ValueError(
                f"turned={self.turned} needs actions that turn; set views.actions, such as [rotation, hue]"
            )
        return self

    @model_validator(mode="after")
    def _sizes_that_count(self) -> Self:
        """Refuse physical sizes without `scale_by=spacing`, and that without what it needs."""
        names = ("unit", "physical_size", "local_physical_size", "whole_physical_size")
        if self.scale_by == "area":
            given = [name for name in names if getattr(self, name) is not None]
            given += ["unscaled"] if self.unscaled != "refuse" else []
            if given:
                raise ValueError(f"{given[0]} counts with scale_by=spacing only; set it, or leave this out")
            return self
        if missing := [name for name in names[:2] if getattr(self, name) is None]:
            raise ValueError(
                f"scale_by=spacing needs {missing[0]}; set it, such as unit=mm physical_size=[20,60]"
            )
        if shifts := [action for action in self.actions if action.startswith("shift")]:
            raise ValueError(
                f"actions has {shifts[0]}, which needs whole images, beside scale_by=spacing; use one of them"
            )
        return self

    @property
    def whole_side(self) -> int:
        """Side in pixels of whole images when the encoder is evaluated or exported."""
        return self.whole_size or self.global_size

    def resolutions(self) -> list[Resolution]:
        """Return the global views, then the local views and the turned views, where there are any."""
        every = self.turned == "all"
        beside = self.turned if self.actions and isinstance(self.turned, int) else 0
        size = self.turned_size or self.global_size
        sides, local_sides = self.physical_size, self.local_physical_size
        if sides and local_sides is None:
            share = self.local_size / self.global_size
            local_sides = sides[0] * share, sides[1] * share
        resolutions = [
            Resolution(self.global_views, self.global_size, self.global_scale, every, "global", sides),
            Resolution(self.local_views, self.local_size, self.local_scale, every, "local", local_sides),
            Resolution(beside, size, self.turned_scale, True, "turned", sides),
        ]
        return [resolution for resolution in resolutions if resolution.views]


class AugmentConfig(Section):
    """The section `augment` of a recipe; defaults are those of LeJEPA. Colour changes need images of 3
    channels. Turns and rotations, gamma, noise, and dropped and shuffled channels suit scientific images,
    and are off by default.
    """

    horizontal_flip: Probability = 0.5
    """Probability of mirroring a view left to right."""
    vertical_flip: Probability = 0.0
    """Probability of mirroring a view top to bottom; 0.5 suits images without a natural "up", e.g. from
    microscopes."""
    quarter_turns: Probability = 0.0
    """Probability of turning a view by one, two or three quarters of a full turn, with equal
    probabilities, for images without an up. With 0.75, all four positions are equally likely. Must be 0 with
    the action rotation."""
    rotation_probability: Probability = 0.0
    """Probability of rotating a view about its centre, for images without a natural "up". The image around
    the crop fills its corners. Must be 0 with the action rotation."""
    rotation: float = Field(180.0, gt=0, le=180)
    """Largest angle of this rotation in degrees; drawn uniformly from ± this."""
    jitter_probability: Probability = 0.8
    """Probability of changing brightness, contrast, saturation and hue, in this order."""
    brightness: float = Field(0.4, ge=0)
    """Pixels are multiplied by a factor drawn uniformly from 1 ± this."""
    contrast: float = Field(0.4, ge=0)
    """The distance of pixels to the image's mean grey is multiplied by a factor drawn uniformly from 1 ±
    this."""
    saturation: float = Field(0.2, ge=0)
    """The distance of colours to the pixel's own grey is multiplied by a factor drawn uniformly from 1 ±
    this."""
    hue: float = Field(0.1, ge=0, le=0.5)
    """Shift of the hue, drawn uniformly from ± this, in turns of the colour circle; 0.5 is the complement."""
    grey_probability: Probability = 0.2
    """Probability of converting a view to grey."""
    blur_probability: Probability = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: Interval = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the view."""
    solarize_probability: Probability = 0.2
    """Probability of inverting the bright pixels of a view."""
    solarize_threshold: float = Field(0.5, ge=0, le=1)
    """Pixels of at least this value are inverted, on the scale where white is 1."""
    gamma_probability: Probability = 0.0
    """Probability of raising the values of a view to a power, as other exposures and detectors do."""
    gamma: Interval = (0.7, 1.4)
    """Smallest and largest power; its logarithm is drawn uniformly."""
    noise_probability: Probability = 0.0
    """Probability of adding noise to a view, after everything but solarization."""
    noise: float = Field(0.05, ge=0)
    """Largest standard deviation of Gaussian noise, on the scale where white is 1; drawn uniformly from 0
    to this."""
    shot_noise: float = Field(0.0, ge=0)
    """Largest scale a of Poisson noise, as counted photons have: a pixel of value x gets the variance a · x.
    With n photons at white it is 1/n. Drawn uniformly from 0 to this, and approximated
    by a Gaussian."""
    channel_drop_probability: Probability = 0.0
    """Probability of replacing one channel of a view, drawn uniformly, by that channel's mean over the data
    set; for images of several channels."""
    channel_shuffle_probability: Probability = 0.0
    """Probability of putting the channels of a view into a random order, after all other operations and after
    each channel was normalised by its own mean and standard deviation; for channels whose roles may
    change."""
    turned: bool = False
    """Whether these operators, except for flips and rotations, also act on turned views that are beside
    others. A pose is learned faster without them (docs/torus.md). With views.turned=all they act on every
    view, except for rotations."""
