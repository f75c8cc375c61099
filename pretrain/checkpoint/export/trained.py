"""A checkpoint of a run as exports read it: its encoder, its weights, and what the run says about them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isotorus.errors import UserError
from pretrain.checkpoint.store import damage
from pretrain.checkpoint.warm_start import WarmStart, find_weights, load_exactly
from pretrain.models.description import DESCRIPTION, EncoderDescription, describe
from pretrain.models.encoder import build_encoder, create


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a run. It may be a stranger's: it gives weights, an architecture and numbers."""

    folder: Path
    """The folder of the checkpoint."""
    weights: WarmStart
    described: EncoderDescription

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
        return load_exactly(self.weights.file, self.on_meta, self.described.name)

    def encoder(self) -> nn.Module:
        """Return the encoder with its weights, in evaluation mode."""
        encoder = build_encoder(self.described.name, self.kwargs, self.described.seed)
        encoder.load_state_dict(self.state)
        return encoder.eval().requires_grad_(False)

    def origin(self, vector: str) -> dict[str, Any]:
        """Return where the weights come from, for the files of an export; `vector` says what they give."""
        return {
            "vector": vector,
            "embedding_width": self.described.embedding_width,
            "encoder_sha256": self.weights.sha256,
            "step": self.described.step,
            "data_fingerprint": self.described.data_fingerprint,
            "intensity": self.described.intensity,
            **({"square": self.described.square._asdict()} if self.described.square else {}),
        }


def read(given: Path) -> Trained:
    """Read the newest checkpoint of a run, a checkpoint, or the one that a weights file lies in.

    Raises UserError if there is none, or if its files are not those that were written.
    """
    weights = find_weights(given, str(given))
    folder = Path(weights.file).parent
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} has no encoder.json, so it is no checkpoint of a run; name one that is")
    for name in (DESCRIPTION, Path(weights.file).name):
        # A flipped bit of the weights would load, and give other vectors.
        if found := damage(folder, name):
            raise UserError(
                f"{folder} is damaged: {found}; copy it again, or export another checkpoint of the run"
            )
    return Trained(folder, weights, describe(folder / DESCRIPTION))
