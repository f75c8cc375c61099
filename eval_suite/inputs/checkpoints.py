"""A checkpoint: the weights, and the description from which its encoder is built. Pickles are never read."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from isotorus.errors import UserError, from_os_error
from pretrain.models.encoder import build_encoder, create, embedding_width
from pretrain.models.projector import MLPConfig, build_mlp

WEIGHTS, DESCRIPTION, PROJECTOR = "encoder.safetensors", "encoder.json", "projector.safetensors"
TIMM_WEIGHTS, TIMM_DESCRIPTION = "model.safetensors", "config.json"


@dataclass(frozen=True)
class ProjectorDescription:
    """The MLP between the embedding and the loss of training."""

    hidden: PositiveInt
    layers: PositiveInt
    width: PositiveInt
    angles: PositiveInt | None = None
    """Number of angles m of a torus head, whose output is m pairs of numbers; None for other heads."""


@dataclass(frozen=True)
class EncoderDescription:
    """The content of encoder.json: how to build the encoder and prepare its images."""

    format: Literal[1]
    name: str
    """Name of the timm model."""
    kwargs: dict[str, Any]
    """Arguments of `pretrain.models.encoder.create`; most are passed on to timm."""
    embedding_width: PositiveInt
    image_size: PositiveInt
    """Side of the square input, in pixels."""
    channels: PositiveInt
    mean: list[float]
    """Mean of each channel, with pixels in [0, 1]."""
    std: list[float]
    """Standard deviation of each channel."""
    seed: int
    """Seed of the initialisation."""
    step: NonNegativeInt
    config: dict[str, Any] = field(default_factory=dict)
    """Configuration of the training run."""
    projector: ProjectorDescription | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A safetensors file, its description in the same folder, and the run that it belongs to, if any."""

    weights: Path
    description: Path
    run: Path | None

    @cached_property
    def encoder(self) -> EncoderDescription:
        """The description of the encoder, read on first use; raises UserError if it is damaged."""
        return describe(self.description)

    @property
    def step(self) -> int:
        """The training step: from the folder's name within a run, otherwise from the description."""
        digits = re.search(r"\d+$", self.folder.name) if self.run else None
        return int(digits.group()) if digits else self.encoder.step

    @property
    def folder(self) -> Path:
        """The folder of the weights file."""
        return self.weights.parent

    @property
    def name(self) -> str:
        """The name of the run, or of the folder of a checkpoint without a run."""
        return self.run.name if self.run else self.folder.name

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file in hexadecimal, followed by that of the projector if there is one."""
        return "-".join(_sha256(file) for file in (self.weights, self.projector_file) if file.exists())

    @property
    def projector_file(self) -> Path:
        """The file of the projector's weights, which need not exist."""
        return self.folder / PROJECTOR

    @property
    def angles(self) -> int:
        """The number of angles of the torus head; 0 if the checkpoint has none."""
        described = self.encoder.projector
        return (described.angles or 0) if described and self.projector_file.exists() else 0

    def pretrained(self) -> nn.Module:
        """Return the encoder with the checkpoint's weights; raises UserError if they do not fit."""
        model = self.untrained()
        self._load(self.weights, model, self.encoder.name)
        return model

    def projector(self) -> nn.Sequential | None:
        """Return the trained MLP from embeddings to projections; None if the checkpoint has none."""
        described = self.encoder.projector
        if described is None or not self.projector_file.exists():
            return None
        mlp = MLPConfig(hidden=described.hidden, layers=described.layers)
        model = build_mlp(self.encoder.embedding_width, mlp, described.width, self.encoder.seed)
        self._load(self.projector_file, model, "the projector")
        return model

    def _load(self, file: Path, model: nn.Module, name: str) -> None:
        """Load the weights in `file` into `model`; raises UserError if they do not fit."""
        refuse_pickle(file)
        try:
            state = load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} is not a whole safetensors file ({_first_line(error)}); copy it again or name "
                "another checkpoint"
            ) from None
        if self.description.name == TIMM_DESCRIPTION:
            # The classifier of a timm model comes after the embedding and is not needed.
            own = model.state_dict()
            state = {key: x for key, x in state.items() if key in own or not _in_classifier(key, model)}
        misfit = _first_misfit(model.state_dict(), state)
        if misfit:
            raise UserError(
                f"{file} is a checkpoint of another architecture than {self.description.name} beside it "
                f"({name}): {misfit}; put the two files of one checkpoint together"
            )
        model.load_state_dict(state, strict=True)

    def untrained(self, seed: int | None = None) -> nn.Module:
        """Return the same encoder as `seed` initialises it, by default the seed of the run.

        Raises UserError if timm cannot build it.
        """
        described = self.encoder
        try:
            return build_encoder(described.name, described.kwargs, described.seed if seed is None else seed)
        except UserError as error:
            raise UserError(
                f"{self.description}: {error}; install the timm version that trained it, or correct the file"
            ) from None


def describe(file: Path) -> EncoderDescription:
    """Read encoder.json, or the config.json of a timm model folder; raises UserError if it is damaged."""
    try:
        values = json.loads(file.read_text())
        if file.name == TIMM_DESCRIPTION:
            values = _from_timm(values)
        described = TypeAdapter(EncoderDescription).validate_python(values)
    except OSError as error:
        raise from_os_error(error, "reading the checkpoint") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not the config.json of a timm model ({type(error).__name__}: {_first_line(error)}); "
            "export one with python -m pretrain export, or timm.models.save_for_hf"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"{file} does not describe an encoder ({what}); save the checkpoint again") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({_first_line(error)}); save the checkpoint again") from None
    if not len(described.mean) == len(described.std) == described.channels:
        raise UserError(
            f"{file}: {described.channels} channels need as many numbers in mean and std, found "
            f"{len(described.mean)} and {len(described.std)}; correct the file"
        )
    return described


def _from_timm(values: dict[str, Any]) -> dict[str, Any]:
    """Convert the config.json of a timm model folder to the content of an encoder.json."""
    pretrained = values["pretrained_cfg"]
    name, (channels, size, _) = values["architecture"], pretrained["input_size"]
    kwargs = {**(values.get("model_args") or {}), "num_classes": 0, "in_chans": channels}
    if values.get("global_pool"):
        kwargs["global_pool"] = values["global_pool"]
    with torch.device("meta"):
        width = embedding_width(create(name, kwargs), name, channels, [size])
    return {
        "format": 1,
        "name": name,
        "kwargs": kwargs,
        "embedding_width": values.get("isotorus", {}).get("embedding_width", width),
        "image_size": size,
        "channels": channels,
        "mean": list(pretrained["mean"]),
        "std": list(pretrained["std"]),
        "seed": 0,
        "step": values.get("isotorus", {}).get("step", 0),
    }


def _in_classifier(key: str, model: nn.Module) -> bool:
    """Say whether a tensor belongs to the classifier of a timm model, by its name."""
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    names = (classifier,) if isinstance(classifier, str) else classifier
    return any(key.startswith(f"{name}.") for name in names)


def refuse_pickle(file: Path) -> None:
    """Raise UserError for a file of torch.save, a zip or a pickle, which can run code when it is loaded."""
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise from_os_error(error, "reading the checkpoint") from error
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{":
        raise UserError(
            f"{file} is a pickle, which can run code when loaded, and was not opened; save the weights as "
            f"safetensors (safetensors.torch.save_file) in {WEIGHTS} beside {DESCRIPTION}"
        )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise from_os_error(error, "reading the weights") from error


def _first_misfit(expected: dict[str, Tensor], loaded: dict[str, Tensor]) -> str:
    """Describe the first tensor that is missing, extra or of another shape; an empty string if all fit."""
    for name, tensor in expected.items():
        if name not in loaded:
            return f"tensor {name} {_shape(tensor)} is not in the file"
        if loaded[name].shape != tensor.shape:
            return f"tensor {name} is {_shape(loaded[name])} in the file, {_shape(tensor)} in the model"
    extra = sorted(loaded.keys() - expected.keys())
    return f"tensor {extra[0]} {_shape(loaded[extra[0]])} is not in the model" if extra else ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def state_sha256(model: nn.Module) -> str:
    """Return a SHA-256 of a model's weights in hexadecimal, from their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
