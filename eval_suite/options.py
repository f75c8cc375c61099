"""The options of one evaluation; its results are a function of these, of the weights and of the data."""

from typing import Any

from pydantic import PositiveInt

from eval_suite.geometry import Options as GeometryOptions
from eval_suite.metrics import BASELINES
from eval_suite.usefulness import Options as UsefulnessOptions
from isotorus.section import Section


class Options(Section):
    """What one evaluation measures."""

    useful: UsefulnessOptions = UsefulnessOptions()
    """What is measured against labels, and how."""
    geometry: GeometryOptions = GeometryOptions()
    """What is measured on a cloud of embeddings without labels, and how."""
    baselines: tuple[str, ...] = BASELINES
    """Names from `metrics.BASELINES`: what the pretrained encoder is compared with."""
    initialisations: PositiveInt = 3
    """Number of initialisations of the untrained encoder, each a baseline of its own."""
    features: tuple[str, ...] | None = None
    """Feature sets besides the embedding; None takes all that the encoder has."""
    pixel_size: PositiveInt = 32
    """Side of the images that the raw pixels are read from."""
    objects: PositiveInt = 256
    """Number of images whose augmented views are compared."""
    views: PositiveInt = 8
    """Number of augmented views of each of these images."""

    def stored(self) -> dict[str, Any]:
        """Return the options as results.json keeps them: the fields of `geometry` beside the others."""
        fields = self.model_dump(mode="json")
        return fields | fields.pop("geometry")
