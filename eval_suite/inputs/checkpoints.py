"""A checkpoint: weights and what rebuilds the encoder that they are of. No pickle is read."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from isotorus.errors import UserError, from_os_error
from pretrain.models.encoder import build_encoder
from pretrain.models.projector import MLPConfig, build_mlp

WEIGHTS, DESCRIPTION, PROJECTOR = "encoder.safetensors", "encoder.json", "projector.safetensors"
TIMM_WEIGHTS, TIMM_DESCRIPTION = "model.safetensors", "config.json"


@dataclass(frozen=True)
class ProjectorDescription:
    """The MLP that training put between the embedding and its loss."""

    hidden: PositiveInt
    layers: PositiveInt
    width: PositiveInt
    angles: PositiveInt | None = None
    """m, where its output is m pairs of numbers, each the direction of an angle."""


@dataclass(frozen=True)
class EncoderDescription:
    """encoder.json: what rebuilds the encoder and prepares its images; further keys are passed over."""

    format: Literal[1]
    name: str
    """timm model name."""
    kwargs: dict[str, Any]
    """Arguments of `pretrain.models.encoder.create`, most of them timm's."""
    embedding_width: PositiveInt
    image_size: PositiveInt
    """Side of the square input in pixels."""
    channels: PositiveInt
    mean: list[float]
    """Of each channel, on [0, 1]."""
    std: list[float]
    seed: int
    """Of the initialisation."""
    step: NonNegativeInt
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration of the run."""
    projector: ProjectorDescription | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A safetensors file, the description beside it, and the run folder that they lie in, if any."""

    weights: Path
    description: Path
    run: Path | None

    @cached_property
    def encoder(self) -> EncoderDescription:
        """Read when it is asked for, so that a damaged one costs its own evaluation; UserError if it is."""
        return describe(self.description)

    @property
    def step(self) -> int:
        """By the folder's name within a run, which tells it even where the description is damaged."""
        digits = re.search(r"\d+$", self.folder.name) if self.run else None
        return int(digits.group()) if digits else self.encoder.step

    @property
    def folder(self) -> Path:
        return self.weights.parent

    @property
    def name(self) -> str:
        return self.run.name if self.run else self.folder.name

    @cached_property
    def weights_sha256(self) -> str:
        """Of the weights file, as sha256sum prints it; that of the projector too, where there is one."""
        return "-".join(_sha256(file) for file in (self.weights, self.projector_file) if file.exists())

    @property
    def projector_file(self) -> Path:
        return self.folder / PROJECTOR

    @property
    def angles(self) -> int:
        """m of a torus head that the checkpoint carries; 0 where it has none."""
        described = self.encoder.projector
        return (described.angles or 0) if described and self.projector_file.exists() else 0

    def pretrained(self) -> nn.Module:
        """The encoder with the checkpoint's weights; UserError if they do not fit encoder.json."""
        model = self.untrained()
        self._load(self.weights, model, self.encoder.name)
        return model

    def projector(self) -> nn.Sequential | None:
        """The trained MLP from embeddings to projections, where the checkpoint carries one."""
        described = self.encoder.projector
        if described is None or not self.projector_file.exists():
            return None
        mlp = MLPConfig(hidden=described.hidden, layers=described.layers)
        model = build_mlp(self.encoder.embedding_width, mlp, described.width, self.encoder.seed)
        self._load(self.projector_file, model, "the projector")
        return model

    def _load(self, file: Path, model: nn.Module, name: str) -> None:
        refuse_pickle(file)
        try:
            state = load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} is not a whole safetensors file ({_first_line(error)}); copy it again or name "
                "another checkpoint"
            ) from None
        if self.description.name == TIMM_DESCRIPTION:
            # A classifier, which the embedding comes before.
            own = model.state_dict()
            state = {key: x for key, x in state.items() if key in own or not _of_head(key, model)}
        misfit = _first_misfit(model.state_dict(), state)
        if misfit:
            raise UserError(
                f"{file} is a checkpoint of another architecture than {self.description.name} beside it "
                f"({name}): {misfit}; put the two files of one checkpoint together"
            )
        model.load_state_dict(state, strict=True)

    def untrained(self) -> nn.Module:
        """The same encoder at its initialisation."""
        described = self.encoder
        try:
            return build_encoder(described.name, described.kwargs, described.seed)
        except (TypeError, RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"{self.description}: timm cannot build {described.name!r} with its arguments "
                f"({_first_line(error)}); install the timm version that trained it, or mend the file"
            ) from None


def describe(file: Path) -> EncoderDescription:
    """Read encoder.json, or the config.json of a timm model folder."""
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
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({_first_line(error)}); save the checkpoint again") from None
    if not len(described.mean) == len(described.std) == described.channels:
        raise UserError(
            f"{file}: {described.channels} channels need as many numbers in mean and std, found "
            f"{len(described.mean)} and {len(described.std)}; mend the file"
        )
    return described


def _from_timm(values: dict[str, Any]) -> dict[str, Any]:
    """encoder.json's content from that of a timm model folder's config.json."""
    pretrained = values["pretrained_cfg"]
    channels, size, _ = pretrained["input_size"]
    kwargs = {**(values.get("model_args") or {}), "num_classes": 0, "in_chans": channels}
    if values.get("global_pool"):
        kwargs["global_pool"] = values["global_pool"]
    with torch.device("meta"):
        width = timm.create_model(values["architecture"], **kwargs).num_features
    return {
        "format": 1,
        "name": values["architecture"],
        "kwargs": kwargs,
        "embedding_width": values.get("isotorus", {}).get("embedding_width", width),
        "image_size": size,
        "channels": channels,
        "mean": list(pretrained["mean"]),
        "std": list(pretrained["std"]),
        "seed": 0,
        "step": values.get("isotorus", {}).get("step", 0),
    }


def _of_head(key: str, model: nn.Module) -> bool:
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    names = (classifier,) if isinstance(classifier, str) else classifier
    return any(key.startswith(f"{name}.") for name in names)


def refuse_pickle(file: Path) -> None:
    """torch.save writes a zip or a bare pickle; either could run code when it is loaded."""
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


def _first_misfit(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """The first tensor, in the model's order, that is missing, extra or of another shape; '' if all fit."""
    for name, tensor in expected.items():
        if name not in found:
            return f"tensor {name} {_shape(tensor)} is not in the file"
        if found[name].shape != tensor.shape:
            return f"tensor {name} is {_shape(found[name])} in the file, {_shape(tensor)} in the model"
    extra = sorted(found.keys() - expected.keys())
    return f"tensor {extra[0]} {_shape(found[extra[0]])} is not in the model" if extra else ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def state_sha256(model: nn.Module) -> str:
    """Identifies a model's weights, whatever made them."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
