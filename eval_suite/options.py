"""What an evaluation computes; its results are a function of these, the weights and the data."""

from pydantic import PositiveInt

from eval_suite import usefulness
from eval_suite.names import BASELINES, GEOMETRY
from isotorus.section import Section


class Options(Section):
    metrics: tuple[str, ...] = GEOMETRY
    """Of `names.GEOMETRY`; homology brings a verdict."""
    useful: usefulness.Options = usefulness.Options()
    """Against labels."""
    baselines: tuple[str, ...] = BASELINES
    """Of `names.BASELINES`: what the pretrained encoder is compared with."""
    features: tuple[str, ...] | None = None
    """Feature sets beside the embedding; None takes all that the encoder has."""
    pixel_size: PositiveInt = 32
    """Side of the images that the raw pixels are read from."""
    samples: PositiveInt = 10_000
    """Most samples of train that the geometry is measured on."""
    neighbours: PositiveInt = 15
    """k of the k-NN graph."""
    landmarks: PositiveInt = 500
    """Points that persistent homology is computed on."""
    draws: PositiveInt = 20
    """Of homology's null."""
    objects: PositiveInt = 256
    """Images whose augmented views are compared."""
    views: PositiveInt = 8
    """Augmented views of each."""
    seed: int = 0
    """Of all random choices."""
