"""A checkpoint: the weights, and the description from which its encoder is built. Pickles are never read."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from data_pipeline.dataset.channel_names import placed, required
from data_pipeline.dataset.index import Dataset
from isotorus import foreign_files
from isotorus.errors import UserError, from_os_error, one_line
from pretrain.models.channel_embedding import fold
from pretrain.models.config import MLPConfig
from pretrain.models.description import (
    DESCRIPTION,
    TIMM_DESCRIPTION,
    EncoderDescription,
    ProjectorDescription,
    describe,
)
from pretrain.models.encoder import build_encoder
from pretrain.models.float32 import exact_float32
from pretrain.models.projector import FirstNumbers, build_mlp

WEIGHTS, PROJECTOR, TIMM_WEIGHTS = "encoder.safetensors", "projector.safetensors", "model.safetensors"
CONTENT_PROJECTOR = "content_projector.safetensors"
AVERAGE = "encoder_average.safetensors"
"""Averaged weights of the same encoder, where the run keeps them."""
COMPLETE = "COMPLETE"
"""File that marks a checkpoint that was saved completely."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A safetensors file, its description in the same folder, and the run that it belongs to, if any."""

    weights: Path
    description: Path
    run: Path | None
    channel_names: tuple[str, ...] | None = None
    """The channels of the images on which an encoder of named channels is evaluated; None: all channels of
    the encoder."""

    @cached_property
    def encoder(self) -> EncoderDescription:
        """The description of the encoder, read on first use; raises UserError if it is damaged."""
        trained = self._trained
        return trained if self.channel_names is None else trained.for_channels(self.channel_names)

    @cached_property
    def _trained(self) -> EncoderDescription:
        """The description of the encoder as it was trained."""
        return describe(self.description, self.root)

    def for_images_of(self, *datasets: Dataset) -> "Checkpoint":
        """Return the checkpoint as it is evaluated on images of these data sets.

        An encoder that finds channels by name becomes one for images of exactly these channels, which gives
        the same vectors. Other encoders stay as they are. Raises UserError if the sets differ in their
        channels, if the encoder has none of these channels, or if a plain encoder has named channels and
        those of a set have other names or another order.
        """
        names = self._trained.channel_names
        if not self._trained.finds_by_name:
            for dataset in datasets:
                if names and dataset.channel_names not in (None, names):
                    raise _other_channels(dataset, str(self.folder), names)
            return self
        assert names is not None
        placed(datasets[0], names)
        own = required(datasets[0])
        for dataset in datasets:
            if required(dataset) != own:
                raise _other_channels(dataset, datasets[0].path, own)
        return replace(self, channel_names=tuple(own))

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
    def root(self) -> Path:
        """The folder that no file of the checkpoint may lie outside of: that of the run, or its own."""
        return self.run or self.folder

    def require_whole(self) -> None:
        """Raise UserError if files are missing, or if it was not saved to its end."""
        if self.run and not (self.folder / COMPLETE).exists():
            raise UserError(
                f"{self.folder} was not saved to its end ({COMPLETE} is missing); name another checkpoint"
            )
        for file in (self.description, self.weights):
            if not foreign_files.inside(file, self.root).is_file():
                raise UserError(
                    f"{self.folder} has no {file.name}; a checkpoint needs {self.weights.name} and "
                    f"{self.description.name}"
                )

    def require_fit(self) -> None:
        """Raise UserError unless the weights file is whole and belongs to the described encoder."""
        self._compared  # noqa: B018, a cached property, whose first use compares

    @property
    def name(self) -> str:
        """The name of the run, or of the folder of a checkpoint without a run."""
        name = self.run.name if self.run else self.folder.name
        return f"{name}-average" if self.is_average else name

    @property
    def results_name(self) -> str:
        """The name of the folder of its results in RUN/eval: the step, and -average for averaged weights."""
        return f"{self.step}-average" if self.is_average else str(self.step)

    @property
    def is_average(self) -> bool:
        """Whether the weights are a run's averaged ones."""
        return self.weights.name == AVERAGE

    @cached_property
    def average(self) -> "Checkpoint | None":
        """The same checkpoint with its averaged weights; None if it has none, or if these are they.

        It is one object, so that an evaluation hashes the file and compares it with the encoder once.
        """
        averaged = self.folder / AVERAGE
        return replace(self, weights=averaged) if self.weights.name == WEIGHTS and averaged.exists() else None

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file in hexadecimal, followed by those of its projectors, if any."""
        files = (self.weights, self.projector_file, self.content_projector_file)
        return "-".join(_sha256(file, self.root) for file in files if file.exists())

    @property
    def projector_file(self) -> Path:
        """The file of the projector's weights, which need not exist."""
        return self.folder / self._named(PROJECTOR)

    @property
    def content_projector_file(self) -> Path:
        """The file with the weights of the projector of content beside angles, which need not exist."""
        return self.folder / self._named(CONTENT_PROJECTOR)

    def _named(self, file: str) -> str:
        """Return the name of a file that goes with the weights, which may be averaged ones."""
        return file.replace(".", "_average.") if self.is_average else file

    @property
    def angles(self) -> int:
        """The number of angles of the torus head; 0 if the checkpoint has none."""
        described = self.encoder.projector
        return (described.angles or 0) if described and self.projector_file.exists() else 0

    def pretrained(self) -> nn.Module:
        """Return the encoder with the checkpoint's weights; raises UserError if they do not fit."""
        model = self._build(None)
        self._load(self.weights, model)
        return self._for_its_images(model)

    @property
    def pose_width(self) -> int | None:
        """How many of the embedding's first numbers the angles see; None if they see all of them."""
        return self.encoder.torus.pose_width if self.encoder.torus else None

    def projector(self, *, trained: bool = True) -> nn.Sequential | None:
        """Return the MLP from embeddings to projections; None if the checkpoint has none.

        If not `trained`, it has the weights that the seed of the run gives. If the angles see only some
        numbers of the embedding, a layer that selects these precedes the MLP.
        """
        model = self._mlp(
            self.projector_file, self.encoder.projector, self.pose_width or self._width, trained=trained
        )
        return nn.Sequential(FirstNumbers(self.pose_width), *model) if model and self.pose_width else model

    def content_projector(self) -> nn.Sequential | None:
        """Return the MLP of the content beside a torus head's angles; None if the checkpoint has none.

        It takes the numbers of the embedding that are not reserved for the angles.
        """
        torus = self.encoder.torus
        width = self._width - (self.pose_width or 0)
        return self._mlp(self.content_projector_file, torus.content if torus else None, width)

    @property
    def _width(self) -> int:
        return self.encoder.embedding_width

    def _mlp(
        self, file: Path, described: ProjectorDescription | None, width: int, *, trained: bool = True
    ) -> nn.Sequential | None:
        """Build a described MLP from `width` numbers, with the weights in `file` if `trained`."""
        if described is None or not file.exists():
            return None
        mlp = MLPConfig(hidden=described.hidden, layers=described.layers)

        def build() -> nn.Sequential:
            return build_mlp(width, mlp, described.width, self.encoder.seed, described.norm)

        with torch.device("meta"):
            self._check(file, build(), "the projector")
        model = build()
        if trained:
            self._load(file, model)
        return model

    def untrained(self, seed: int | None = None) -> nn.Module:
        """Return the same encoder as `seed` initialises it, by default the seed of the run.

        Raises UserError if timm cannot build it, or if it is another one than that of the weights.
        """
        return self._for_its_images(self._build(seed))

    def _build(self, seed: int | None) -> nn.Module:
        """Build the encoder as it was trained, with the weights that `seed` gives."""
        described = self._compared
        exact_float32()  # here, because all computation of an evaluation on a GPU begins with an encoder
        return build_encoder(described.name, described.kwargs, described.seed if seed is None else seed)

    def _for_its_images(self, model: nn.Module) -> nn.Module:
        """Return the encoder for images of `channel_names`; without them, return it as it is."""
        if self.channel_names is not None:
            fold(model, self._trained.channel_names or [], self.channel_names)
        return model

    @cached_property
    def _compared(self) -> EncoderDescription:
        """The description, after its encoder was compared with the weights, without memory for either.

        Raises UserError if they do not belong together.
        """
        try:
            encoder = self._trained.on_meta()
        except UserError as error:
            raise UserError(
                f"{self.description}: {error}; install the timm version that trained it, or correct the file"
            ) from None
        self._check(self.weights, encoder, self._trained.name)
        return self._trained

    def _check(self, file: Path, model: nn.Module, name: str) -> None:
        """Compare the names and shapes in a weights file with those of a model; raises UserError."""
        refuse_pickle(file, self.root)
        try:
            with safe_open(foreign_files.inside(file, self.root), "pt") as stream:
                shapes = {key: tuple(stream.get_slice(key).get_shape()) for key in stream.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _no_weights(file, error) from None
        expected = {key: tuple(x.shape) for key, x in model.state_dict().items()}
        if misfit := _first_misfit(expected, {k: x for k, x in shapes.items() if self._is_used(k, model)}):
            raise UserError(
                f"{file} is a checkpoint of another architecture than {self.description.name} beside it "
                f"({name}): {misfit}; put the two files of one checkpoint together"
            )

    def _load(self, file: Path, model: nn.Module) -> None:
        """Load the weights in `file`, which fit, into `model`; raises UserError if they are not whole."""
        try:
            state = load_file(foreign_files.inside(file, self.root))
        except (SafetensorError, OSError) as error:
            raise _no_weights(file, error) from None
        model.load_state_dict({key: x for key, x in state.items() if self._is_used(key, model)}, strict=True)

    def _is_used(self, key: str, model: nn.Module) -> bool:
        """Say whether a tensor is part of `model`; the classifier of a timm model folder need not be."""
        timm_folder = self.description.name == TIMM_DESCRIPTION
        return not timm_folder or key in model.state_dict() or not _in_classifier(key, model)


def _other_channels(dataset: Dataset, other: str, names: Sequence[str]) -> UserError:
    """Return the error for a data set whose channels are not `names`, which are the channels of `other`."""
    return UserError(
        f"{dataset.path} has the channels {', '.join(map(one_line, dataset.channel_names or []))}, and "
        f"{other} {', '.join(map(one_line, names))}; name data sets with the same channels in the same order"
    )


def _no_weights(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file} is not a whole safetensors file ({_first_line(error)}); copy it again or name another "
        "checkpoint"
    )


def _in_classifier(key: str, model: nn.Module) -> bool:
    """Say whether a tensor belongs to the classifier of a timm model, by its name."""
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    names = (classifier,) if isinstance(classifier, str) else classifier
    return any(key.startswith(f"{name}.") for name in names)


def refuse_pickle(file: Path, folder: Path | None = None) -> None:
    """Raise UserError for a file of torch.save, a zip or a pickle, which can run code when it is loaded."""
    try:
        with foreign_files.open_binary(file, folder) as stream:
            start = stream.read(9)
    except OSError as error:
        raise from_os_error(error, "reading the checkpoint") from error
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{":
        raise UserError(
            f"{file} is a pickle, which can run code when loaded, and was not opened; save the weights as "
            f"safetensors (safetensors.torch.save_file) in {WEIGHTS} beside {DESCRIPTION}"
        )


def _sha256(path: Path, folder: Path) -> str:
    try:
        with foreign_files.open_binary(path, folder) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise from_os_error(error, "reading the weights") from error


def _first_misfit(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """Describe the first tensor that is missing, extra or of another shape; an empty string if all fit."""
    for name, shape in expected.items():
        if name not in found:
            return f"tensor {name} {_shown(shape)} is not in the file"
        if found[name] != shape:
            return f"tensor {name} is {_shown(found[name])} in the file, {_shown(shape)} in the model"
    extra = sorted(found.keys() - expected.keys())
    return f"tensor {extra[0][:100]} {_shown(found[extra[0]])} is not in the model" if extra else ""


def _shown(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "scalar"


def state_sha256(model: nn.Module) -> str:
    """Return a SHA-256 of a model's weights in hexadecimal, from their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
