"""From what a user names (a run, a checkpoint folder, a weights file) to an encoder. No pickle is read."""

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

from data_pipeline.errors import UserError, from_os_error
from pretrain.models.encoder import build_encoder

WEIGHTS, DESCRIPTION, COMPLETE = "encoder.safetensors", "encoder.json", "COMPLETE"
PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


@dataclass(frozen=True)
class EncoderDescription:
    """encoder.json: what rebuilds the encoder and prepares its images; further keys are passed over."""

    format: Literal[1]
    name: str
    """timm model name."""
    kwargs: dict[str, Any]
    """Arguments of `timm.create_model`."""
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


@dataclass(frozen=True)
class Checkpoint:
    """A folder with encoder.safetensors and encoder.json, and the run folder that it lies in, if any."""

    folder: Path
    run: Path | None
    encoder: EncoderDescription

    @property
    def name(self) -> str:
        return self.run.name if self.run else self.folder.name

    @cached_property
    def weights_sha256(self) -> str:
        """Of the file encoder.safetensors, as sha256sum prints it."""
        try:
            with (self.folder / WEIGHTS).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise from_os_error(error, "reading the weights") from error

    def pretrained(self) -> nn.Module:
        """The encoder with the checkpoint's weights; UserError if they do not fit encoder.json."""
        model = self.untrained()
        file = self.folder / WEIGHTS
        _refuse_pickle(file)
        try:
            state = load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} is not a whole safetensors file ({_first_line(error)}); copy it again or name "
                "another checkpoint"
            ) from None
        misfit = _first_misfit(model.state_dict(), state)
        if misfit:
            raise UserError(
                f"{file} is a checkpoint of another architecture than {DESCRIPTION} beside it "
                f"({self.encoder.name}): {misfit}; put the two files of one checkpoint together"
            )
        model.load_state_dict(state, strict=True)
        return model

    def untrained(self) -> nn.Module:
        """The same encoder at its initialisation."""
        described = self.encoder
        try:
            return build_encoder(described.name, described.kwargs, described.seed)
        except (TypeError, RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"{self.folder / DESCRIPTION}: timm cannot build {described.name!r} with its arguments "
                f"({_first_line(error)}); install the timm version that trained it, or mend the file"
            ) from None


def resolve(given: str) -> Checkpoint:
    """The checkpoint that a run folder, a checkpoint folder or an encoder.safetensors names.

    A run means its newest complete checkpoint. Raises UserError for everything else.
    """
    path = Path(given)
    if not path.exists():
        raise UserError(f"{given}: no such run or checkpoint; name a folder under runs/, or {WEIGHTS}")
    if path.is_file():
        _refuse_pickle(path)
        if path.name != WEIGHTS:
            raise UserError(f"{given} is not a checkpoint; name a run, a checkpoint folder or its {WEIGHTS}")
        folder = path.resolve().parent
    elif (path / WEIGHTS).exists() or (path / DESCRIPTION).exists():
        folder = path.resolve()
    else:
        folder = _latest(path)
    in_run = folder.parent.name == "checkpoints"
    if in_run and not (folder / COMPLETE).exists():
        raise UserError(f"{folder} was not saved to its end ({COMPLETE} is missing); name another checkpoint")
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; a checkpoint needs {WEIGHTS} and {DESCRIPTION}")
    return Checkpoint(folder, folder.parent.parent if in_run else None, _describe(folder / DESCRIPTION))


def _latest(run: Path) -> Path:
    checkpoints = run / "checkpoints"
    if not checkpoints.is_dir():
        pickles = sorted(file.name for file in run.iterdir() if file.suffix in PICKLE_SUFFIXES)
        if pickles:
            _refuse_pickle(run / pickles[0])
        raise UserError(f"{run} is neither a run nor a checkpoint (no checkpoints/, no {WEIGHTS} in it)")
    latest = checkpoints / "latest"
    if latest.exists():
        return latest.resolve()
    # `latest` is a link, which not every copy of a run keeps.
    complete = sorted(marker.parent for marker in checkpoints.glob(f"step_*/{COMPLETE}"))
    if not complete:
        raise UserError(f"{run} has no complete checkpoint yet; train it on to its first one")
    return complete[-1].resolve()


def _describe(file: Path) -> EncoderDescription:
    try:
        described = TypeAdapter(EncoderDescription).validate_python(json.loads(file.read_text()))
    except OSError as error:
        raise from_os_error(error, "reading the checkpoint") from error
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


def _refuse_pickle(file: Path) -> None:
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
