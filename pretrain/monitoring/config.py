"""The sections `guard`, `held_out`, `profile` and `tracking` of a recipe."""

import os

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from isotorus import mlflow_store
from isotorus.paths import PathText
from isotorus.section import Section


class GuardConfig(Section):
    spike: PositiveFloat | None = 10.0
    """An update is refused if its loss or gradient norm is this many median absolute deviations above the
    median of the last `window` accepted updates (with 10: at least half above the median); a gradient norm
    also has to be more than twice the largest of these. null refuses only NaN and infinity."""
    window: PositiveInt = 100
    """Number of accepted updates that define a spike; with fewer, only NaN and infinity are refused."""
    patience: PositiveInt = 3
    """Number of refused updates in a row after which the run returns to its newest checkpoint and skips the
    data up to the last of them."""
    rewinds: NonNegativeInt = 2
    """How often the run may return to the same checkpoint before it ends with an error."""


class HeldOutConfig(Section):
    path: PathText | None = None
    """Packed data set that the run does not train on, such as shards/val. Every `every` steps k-NN (if it
    has labels) and RankMe are measured on some of its images and logged as held_out_knn and held_out_rankme.
    Without a path nothing is measured."""
    every: PositiveInt = 1000
    """Steps from one measurement to the next. The result is in the next row of metrics.jsonl that is written,
    and in the last row. Training waits while the images are encoded; the rest is computed while it goes
    on."""
    images: int = Field(1024, ge=2, le=10_000)
    """Number of images, drawn by `seed`, that are encoded once for a measurement. The ranks divide them and
    keep them in memory."""


class ProfileConfig(Section):
    start: PositiveInt | None = None
    """Number of steps before the trace begins, on rank 0; without it nothing is traced. <runs>/<name>/profile
    gets the trace, for chrome://tracing or ui.perfetto.dev, and a table of the slowest operators."""
    steps: PositiveInt = 5
    """How many steps are traced; they run slower than others."""


class TrackingConfig(Section):
    enabled: bool = True
    """Send metrics to MLflow; metrics.jsonl is written in any case."""
    uri: PathText | None = None
    """MLflow store or server; default $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the current folder.
    Addresses with a password are refused: use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""
    experiment: str = "isotorus"
    """Name of the MLflow experiment that the run belongs to."""
    parent: str | None = None
    """Id of the MLflow run that this run is nested under, as in a sweep."""
    system_metrics: bool = False
    """Also log the first rank's CPU, memory, disk, network and GPUs, while MLflow answers."""

    def store(self) -> str:
        """Return the store's address, made absolute if it is a local file, so that it works from anywhere."""
        return mlflow_store.absolute(self.given())

    def given(self) -> str:
        """Return the store's address as it was given."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or mlflow_store.DEFAULT
