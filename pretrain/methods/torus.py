"""Toroidal JEPA: views agree on a flat torus T^m, and their angles are uniformly distributed on it.

The method is LeJEPA with another target distribution. The head emits m pairs of numbers, each pair an angle,
and a test of uniformity by Weyl's criterion takes the place of Epps-Pulley.
"""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from isotorus.device import to_device
from isotorus.section import Section
from pretrain.methods.base import HeadOutput, SIGRegConfig
from pretrain.models.projector import MLPConfig, build_mlp
from pretrain.objectives.toroidal import angles_from_pairs, toroidal_lejepa
from pretrain.objectives.torus_frequencies import all_frequencies, balanced_s, sample_frequencies


class TorusConfig(Section):
    """Settings of toroidal JEPA."""

    kind: Literal["torus"]
    """torus: views agree on a flat torus, and their angles are uniform by Weyl's criterion."""
    angles: PositiveInt = 2
    """Number m of angles, the dimension of the torus T^m."""
    weight: float = Field(0.05, ge=0, le=1)
    """λ in (1 − λ)·prediction + λ·uniformity."""
    cutoff: PositiveInt | None = None
    """Test all frequencies up to this one in every angle. Default: 3 for up to 3 angles, else random
    frequencies."""
    num_frequencies: PositiveInt = 1024
    """Random frequencies, drawn anew in every step, where not all are tested."""
    decay: PositiveFloat | None = None
    """s in the weights e^{−s‖k‖²} of the frequencies. Default: the lowest frequencies of all angles weigh 1
    together."""
    encoder_weight: NonNegativeFloat = 0.0
    """Weight of SIGReg on the encoder's output, in addition to the torus; 0 leaves it out."""
    sigreg: SIGRegConfig = SIGRegConfig()
    head: MLPConfig = MLPConfig()


class TorusHead(nn.Module):
    """Angle head and loss; uniformity is tested by Giné's Sobolev test (1975) on T^m."""

    def __init__(self, embedding_width: int, config: TorusConfig, n_global: int, seed: int) -> None:
        super().__init__()
        self.projector = build_mlp(embedding_width, config.head, 2 * config.angles, seed)
        self.sigreg = config.sigreg.build(seed)
        self.config, self.n_global, self.seed = config, n_global, seed
        self.decay = config.decay or balanced_s(config.angles)
        cutoff = config.cutoff or (3 if config.angles <= 3 else None)
        self.tested = all_frequencies(config.angles, cutoff, self.decay) if cutoff else None

    def forward(self, embeddings: Tensor, step: int) -> HeadOutput:
        """Return the loss for embeddings (V, N, D); the projections are the pairs (V, N, 2m) of angles."""
        pairs = self.projector(embeddings).float()
        angles = angles_from_pairs(pairs.unflatten(-1, (self.config.angles, 2)))
        frequencies, weights = (to_device(x, angles.device) for x in self.frequencies(step))
        parts = toroidal_lejepa(angles, self.n_global, self.config.weight, frequencies, weights)
        if self.config.encoder_weight:
            parts["sigreg_encoder"] = self.sigreg(embeddings, step)
            parts["loss"] = parts["loss"] + self.config.encoder_weight * parts["sigreg_encoder"]
        return HeadOutput(parts, pairs.detach())

    def frequencies(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the frequencies (F, m) of a step and their weights (F,), equal on all ranks."""
        if self.tested:
            return self.tested
        return sample_frequencies(
            self.config.angles, self.config.num_frequencies, self.decay, self.seed, step
        )
