"""A checkpoint of a run as exports read it: its encoder, its weights, and what the run says about them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isotorus.errors import UserError
from pretrain.checkpoint import damage
from pretrain.checkpoint.warm_start import WarmStart, find_weights, load_exactly
from pretrain.models.channel_embedding import fold
from pretrain.models.config import MLPConfig
from pretrain.models.description import DESCRIPTION, EncoderDescription, describe
from pretrain.models.encoder import build_encoder, create, create_on_meta, embedding_width
from pretrain.models.feature_sets import FEATURES
from pretrain.models.projector import build_mlp


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a run. It may be a stranger's: it gives weights, an architecture and numbers."""

    folder: Path
    """The folder of the checkpoint."""
    weights: WarmStart
    described: EncoderDescription
    """The encoder that is exported."""
    by_name: EncoderDescription | None = None
    """The encoder as it was trained, if it finds channels by name. The exported one takes some of them."""

    @property
    def run(self) -> Path | None:
        """The folder of the run that the checkpoint lies in; None if it lies elsewhere."""
        if (self.folder / "checkpoints").is_dir():  # the best checkpoint of a fine-tuning lies in its folder
            return self.folder
        checkpoints = self.folder.parent
        return checkpoints.parent if checkpoints.name == "checkpoints" else None

    @property
    def name(self) -> str:
        """The name of the run, or of the checkpoint's folder."""
        return (self.run or self.folder).resolve().name

    @property
    def kwargs(self) -> dict[str, Any]:
        """Arguments of the encoder without drop-path, which only acts in training."""
        return {key: value for key, value in self.described.kwargs.items() if key != "drop_path_rate"}

    @cached_property
    def on_meta(self) -> Any:
        """The encoder without memory."""
        with torch.device("meta"):
            return create(self.described.name, self.kwargs)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The encoder's tensors; UserError if the file is damaged or of another encoder."""
        if self.by_name is not None:
            return self._of_some_channels(self.by_name).state_dict()
        return load_exactly(self.weights.file, self.on_meta, self.described.name)

    def encoder(self) -> nn.Module:
        """Return the encoder with its weights, in evaluation mode."""
        if self.by_name is not None:
            return self._of_some_channels(self.by_name).eval().requires_grad_(False)
        encoder = build_encoder(self.described.name, self.kwargs, self.described.seed)
        encoder.load_state_dict(self.state)
        return encoder.eval().requires_grad_(False)

    def head(self) -> nn.Module:
        """Return what follows the encoder: the linear layer of a run with labels, else nothing."""
        if self.described.supervised is None:
            return nn.Identity()
        weight, bias = self.layer()
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        return linear.requires_grad_(False)

    def layer(self) -> tuple[Tensor, Tensor]:
        """Return weight (outputs, D) and bias (outputs,) of the linear layer of a run with labels.

        It gives logits, or numbers in the units of the targets. Raises UserError if its file is missing.
        """
        described = self.described.supervised
        assert described is not None
        file = Path(self.weights.file)
        projector = file.with_name(file.name.replace("encoder", "projector"))
        if not projector.is_file():
            raise UserError(f"{projector} is missing; copy the checkpoint's files together")
        with torch.device("meta"):
            mlp = MLPConfig(layers=1)
            layer = build_mlp(self.described.embedding_width, mlp, len(described.names), seed=0)
        state = load_exactly(str(projector), layer, "the linear layer")
        center, scale = torch.tensor(described.center), torch.tensor(described.scale)
        return state["0.weight"] * scale[:, None], state["0.bias"] * scale + center

    @property
    def gives(self) -> str:
        """What the export gives for an image: a vector, logits, or numbers."""
        supervised = self.described.supervised
        if supervised is None:
            return "vector"
        return "numbers" if supervised.task == "regression" else "logits"

    def without_head(self) -> "Trained":
        """Return the encoder alone, which gives the vector of timm's model."""
        kwargs = {key: x for key, x in self.described.kwargs.items() if key != FEATURES}
        width = self.described.embedding_width
        if kwargs != self.described.kwargs:
            encoder = create_on_meta(self.described.name, kwargs)
            sizes = [self.described.image_size]
            width = embedding_width(encoder, self.described.name, self.described.channels, sizes)
        described = replace(self.described, kwargs=kwargs, embedding_width=width, supervised=None)
        by_name = self.by_name and replace(
            self.by_name, kwargs={key: x for key, x in self.by_name.kwargs.items() if key != FEATURES}
        )
        return replace(self, described=described, by_name=by_name)

    def require_plain(self) -> None:
        """Raise UserError if no model of timm has exactly the encoder's tensors."""
        if extra := sorted(self.state.keys() - self.on_meta.state_dict().keys()):
            raise UserError(
                f"{self.folder} finds channels by name, which gives its first convolution a bias "
                f"({extra[0]}), and timm's {self.described.name} has none; use --format onnx, torch or mlflow"
            )

    def _of_some_channels(self, by_name: EncoderDescription) -> nn.Module:
        """Build the encoder as it was trained, and make it a plain one for the channels of the export."""
        kwargs = {key: value for key, value in by_name.kwargs.items() if key != "drop_path_rate"}
        encoder = build_encoder(by_name.name, kwargs, by_name.seed)
        encoder.load_state_dict(load_exactly(self.weights.file, encoder, by_name.name))
        fold(encoder, by_name.channel_names or [], self.described.channel_names or [])
        return encoder

    def origin(self, vector: str) -> dict[str, Any]:
        """Return where the weights come from, for the files of an export; `vector` says what they give."""
        return {
            "vector": vector,
            "embedding_width": self.described.embedding_width,
            "encoder_sha256": self.weights.sha256,
            "step": self.described.step,
            "data_fingerprint": self.described.data_fingerprint,
            "intensity": self.described.intensity,
            **({"channel_names": self.described.channel_names} if self.described.channel_names else {}),
            **({"square": self.described.square._asdict()} if self.described.square else {}),
        }


def read(given: Path, channels: Sequence[str] | None = None) -> Trained:
    """Read the newest checkpoint of a run, a checkpoint, or the one that a weights file lies in.

    An encoder that finds channels by name is exported for images of `channels`, by default for all that it
    knows.
    Raises UserError if there is none, or if its files are not those that were written.
    """
    weights = find_weights(given, str(given))
    folder = Path(weights.file).parent
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} has no encoder.json, so it is no checkpoint of a run; name one that is")
    for name in (DESCRIPTION, Path(weights.file).name):
        # A flipped bit of the weights would load, and give other vectors.
        if found := damage.of_file(folder, name):
            raise UserError(
                f"{folder} is damaged: {found}; copy it again, or export another checkpoint of the run"
            )
    described = describe(folder / DESCRIPTION)
    described = described.giving_map() if described.predicts_masks else described
    known = described.channel_names or []
    if not described.finds_by_name:
        if channels is not None:
            raise UserError(
                f"--channels: {folder} takes images of {described.channels} channels, which it does not find "
                "by name; leave --channels out"
            )
        return Trained(folder, weights, described)
    if unknown := [name for name in channels or () if name not in known]:
        raise UserError(f"--channels: {folder} has no channel {unknown[0]}; it has {', '.join(known)}")
    return Trained(folder, weights, described.for_channels(channels or known), described)
