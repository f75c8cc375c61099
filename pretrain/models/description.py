"""The description of a trained encoder: encoder.json, or the config.json of a timm model folder.

The evaluation, exports and warm starts read it. It may be a stranger's: every value is checked here, and the
model's name and arguments are checked by `pretrain.models.timm_arguments` where the encoder is built.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from data_pipeline.targets.target_values import Kind
from data_pipeline.transforms.config import Action, Border
from data_pipeline.transforms.physical import Square
from isotorus import foreign_files
from isotorus.errors import UserError, from_os_error
from pretrain.models.channel_embedding import EMBEDDING
from pretrain.models.config import Norm
from pretrain.models.encoder import create, create_on_meta, embedding_width
from pretrain.models.feature_sets import FEATURES, MAP
from pretrain.models.timm_arguments import LONGEST_NAME

DESCRIPTION, TIMM_DESCRIPTION = "encoder.json", "config.json"

Width = Annotated[int, Field(ge=1, le=2**20)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class ProjectorDescription:
    """The MLP between the embedding and the loss of training."""

    hidden: Width
    layers: Annotated[int, Field(ge=1, le=100)]
    width: Width
    angles: Width | None = None
    """Number of angles m of a torus head, whose output is m pairs of numbers; None for other heads."""
    norm: Norm = "batch"
    """What is between the layers; before there was a choice it was batch norm."""

    def __post_init__(self) -> None:
        """Raise ValueError unless a torus head has a pair of numbers for each angle."""
        if self.angles is not None and self.width != 2 * self.angles:
            raise ValueError(f"{self.angles} angles need a width of {2 * self.angles}, not {self.width}")


@dataclass(frozen=True)
class TorusDescription:
    """How the angles of a torus head follow the image."""

    actions: list[Action]
    """The circle actions that turned views in training; the first angles belong to them, in this order."""
    orders: list[Annotated[int, Field(ge=1, le=2**10)]]
    """How often each action's angle goes round while the image is turned once."""
    pose_width: Width | None
    """The angles see the first so many numbers of the embedding; None: all of them."""
    border: Border
    """What rotated views showed in their corners."""
    size: Annotated[int, Field(ge=1, le=2**14)]
    """Side in pixels of the views that the angles saw in training."""
    content: ProjectorDescription | None = None
    """The projector of the content beside the angles; None without content, and where it was not kept."""

    def __post_init__(self) -> None:
        """Raise ValueError unless each action has an order."""
        if len(self.orders) != len(self.actions):
            raise ValueError(f"{len(self.actions)} actions need as many orders, not {len(self.orders)}")


@dataclass(frozen=True)
class SupervisedDescription:
    """What the projector of an encoder that was trained with labels predicts."""

    task: Kind | Literal["segmentation"]
    names: list[Annotated[str, Field(max_length=1000)]]
    """Names of the classes or columns."""
    center: list[Finite]
    """Added to the predictions of numbers, after they were multiplied by `scale`."""
    scale: list[Finite]
    fingerprint: str | None = None
    """A hash of the targets."""

    def __post_init__(self) -> None:
        """Raise ValueError unless there is a center and a scale for each name."""
        if not len(self.names) == len(self.center) == len(self.scale):
            raise ValueError("names, center and scale must be of equal length")


@dataclass(frozen=True)
class EncoderDescription:
    """The content of encoder.json: how to build the encoder and prepare its images."""

    format: Literal[1]
    name: Annotated[str, Field(max_length=LONGEST_NAME)]
    """Name of the timm model."""
    kwargs: dict[str, Any]
    """Arguments of `pretrain.models.encoder.create`; most are passed on to timm."""
    embedding_width: Width
    image_size: Annotated[int, Field(ge=1, le=2**14)]
    """Side of the square input, in pixels."""
    channels: Annotated[int, Field(ge=1, le=2**16)]
    mean: list[Finite]
    """Mean of each channel, with pixels in [0, 1]."""
    std: list[Annotated[Finite, Field(gt=0)]]
    """Standard deviation of each channel."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)]
    """Seed of the initialisation."""
    step: Annotated[int, Field(ge=0, lt=2**63)]
    config: dict[str, Any] = field(default_factory=dict)
    """Configuration of the training run."""
    projector: ProjectorDescription | None = None
    torus: TorusDescription | None = None
    """What a torus head learned from; None for other heads, and for checkpoints of earlier formats."""
    data_fingerprint: str | None = None
    """What the encoder was trained on; descriptions of other programs do not say it."""
    images: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """The number of images of that data; checkpoints of earlier formats do not say it."""
    depth: Literal[8, 16] | None = None
    """Bits of a channel in that data; checkpoints of earlier formats do not say it."""
    supervised: SupervisedDescription | None = None
    """What the projector predicts, if the encoder was trained with labels."""
    intensity: list[Annotated[str, Field(max_length=200)]] = field(default_factory=lambda: ["none"])
    """How numbers became brightness in the data sets that it was trained on, as after --intensity of pack."""

    channel_names: list[Annotated[str, Field(max_length=1000)]] | None = None
    """Names of the channels, if the encoder finds channels by name, or was exported from such an encoder."""
    square: Square | None = None
    """The part of an image that the encoder sees, of a physical size; None for the largest centred square."""

    def __post_init__(self) -> None:
        """Raise ValueError if the angles would see more numbers than the embedding has beside content."""
        if self.torus and self.torus.pose_width and self.torus.pose_width >= self.embedding_width:
            raise ValueError(
                f"a pose of {self.torus.pose_width} numbers leaves none of {self.embedding_width} for content"
            )

    def inputs(self) -> dict[str, Any]:
        """Return what the features of an image depend on, beside the weights."""
        about_training = ("config", "step", "data_fingerprint", "images", "depth", "intensity", "supervised")
        values = {key: value for key, value in dataclasses.asdict(self).items() if key not in about_training}
        for key in ("square", "channel_names"):  # older descriptions lack these
            if values[key] is None:
                del values[key]
        return values

    @property
    def finds_by_name(self) -> bool:
        """Whether the encoder finds channels by name, and takes images that lack some of them."""
        return bool(self.kwargs.get(EMBEDDING))

    def for_channels(self, wanted: Sequence[str]) -> "EncoderDescription":
        """Return the description of the encoder after `channel_embedding.fold` to the channels `wanted`."""
        assert self.channel_names is not None
        of = {name: i for i, name in enumerate(self.channel_names)}
        kwargs = {key: x for key, x in self.kwargs.items() if key != EMBEDDING} | {"in_chans": len(wanted)}
        return dataclasses.replace(
            self,
            kwargs=kwargs,
            channels=len(wanted),
            channel_names=list(wanted),
            mean=[self.mean[of[name]] if name in of else 0.0 for name in wanted],
            std=[self.std[of[name]] if name in of else 1.0 for name in wanted],
        )

    @property
    def predicts_masks(self) -> bool:
        """Whether the linear layer reads the encoder's map. `kwargs` and `embedding_width` are still those of
        an encoder that gives a vector."""
        return self.supervised is not None and self.supervised.task == "segmentation"

    def giving_map(self) -> "EncoderDescription":
        """Return the description of the encoder as it was trained on masks: it gives its map."""
        kwargs = self.kwargs | {FEATURES: MAP}
        sizes = [self.image_size]
        width = embedding_width(create_on_meta(self.name, kwargs), self.name, self.channels, sizes)
        return dataclasses.replace(self, kwargs=kwargs, embedding_width=width)

    @property
    def seen(self) -> str:
        """The part of an image that the encoder sees, in words."""
        if self.square is None:
            return "largest centred square"
        return f"centred square of {self.square.side:g} {self.square.unit}"

    def on_meta(self) -> nn.Module:
        """Build the encoder without memory; raises UserError unless it takes and gives what is described."""
        with torch.device("meta"):
            encoder: nn.Module = create(self.name, self.kwargs)
        width = embedding_width(encoder, self.name, self.channels, [self.image_size])
        if width != self.embedding_width:
            raise UserError(
                f"the encoder gives vectors of {width}, its description says {self.embedding_width}"
            )
        return encoder


def describe(file: Path, folder: Path | None = None) -> EncoderDescription:
    """Read encoder.json, or the config.json of a timm model folder; raises UserError if it is damaged.

    No link may lead out of `folder`, by default the one that `file` lies in.
    """
    try:
        values = foreign_files.read_json(file, folder)
    except OSError as error:
        raise from_os_error(error, "reading the checkpoint") from error
    try:
        return _of_timm(values) if file.name == TIMM_DESCRIPTION else _validated(values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file} is not the config.json of a timm model ({type(error).__name__}: {said}); export one "
            "with isotorus export, or timm.models.save_for_hf"
        ) from None


def beside(weights: Path) -> EncoderDescription | None:
    """Return the description in the folder of a weights file; None if there is none that can be read."""
    for name in (DESCRIPTION, TIMM_DESCRIPTION):
        if (file := weights.with_name(name)).is_file():
            with contextlib.suppress(UserError):
                return describe(file)
    return None


def _validated(values: Any) -> EncoderDescription:
    """Return the checked values of a description; raises UserError for the first that is wrong."""
    try:
        described = TypeAdapter(EncoderDescription).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise UserError(
            f"does not describe an encoder ({where}: {first['msg'][:200]}); save the checkpoint again"
        ) from None
    if not len(described.mean) == len(described.std) == described.channels:
        raise UserError(
            f"{described.channels} channels need as many numbers in mean and std, found "
            f"{len(described.mean)} and {len(described.std)}; correct the file"
        )
    names = described.channel_names
    if names is not None and len(set(names)) != described.channels:
        raise UserError(
            f"{described.channels} channels need as many names, found {len(set(names))}; correct the file"
        )
    if described.finds_by_name and names is None:
        raise UserError("the encoder finds channels by name, and channel_names is missing; correct the file")
    return described


def _of_timm(values: Any) -> EncoderDescription:
    """Convert the config.json of a timm model folder.

    Raises UserError, and KeyError, TypeError, AttributeError or ValueError if it is something else.
    """
    pretrained, ours = values["pretrained_cfg"], values.get("isotorus", {})
    channels, size, _ = pretrained["input_size"]
    kwargs = {**(values.get("model_args") or {}), "num_classes": 0, "in_chans": channels}
    if values.get("global_pool"):
        kwargs["global_pool"] = values["global_pool"]
    described = _validated(
        {
            "format": 1,
            "name": values["architecture"],
            "kwargs": kwargs,
            "embedding_width": ours.get("embedding_width", 1),
            "image_size": size,
            "channels": channels,
            "mean": list(pretrained["mean"]),
            "std": list(pretrained["std"]),
            "seed": 0,
            "step": ours.get("step", 0),
            "intensity": ours.get("intensity", ["none"]),
            "channel_names": ours.get("channel_names"),
            "square": ours.get("square"),
        }
    )
    if "embedding_width" in ours:
        return described
    with torch.device("meta"):
        encoder = create(described.name, described.kwargs)
    width = embedding_width(encoder, described.name, channels, [size])
    return dataclasses.replace(described, embedding_width=width)
