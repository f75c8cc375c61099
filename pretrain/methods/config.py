"""The section `objective` of a recipe, which has other fields for each kind."""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from data_pipeline.targets.target_values import Kind
from data_pipeline.transforms.config import Action, ViewsConfig
from isotorus.errors import UserError
from isotorus.paths import PathText
from isotorus.section import Section, Unfit
from pretrain.models.config import FeatureSet, MLPConfig, Norm, ProjectorConfig

Test = Literal[
    "epps_pulley", "anderson_darling", "cramer_von_mises", "watson", "shapiro_wilk", "jarque_bera",
    "extended_jarque_bera", "moments",
]  # fmt: skip
"""Epps-Pulley, and the names of `pretrain.objectives.univariate.TESTS`."""


class SIGRegConfig(Section):
    """Settings of SIGReg."""

    num_slices: PositiveInt = 1024
    """Random directions of SIGReg, drawn anew in every step."""
    t_max: PositiveFloat = 3.0
    """Largest frequency t at which Epps-Pulley compares characteristic functions."""
    knots: int = Field(17, ge=3)
    """Number of frequencies in [0, t_max], odd."""
    chunk: PositiveInt | None = None
    """Directions computed at once; fewer need less memory. Default: as many as fit into 256 MiB."""
    test: Test = "epps_pulley"
    """Univariate test of normality that is applied along each direction."""

    @field_validator("knots")
    @classmethod
    def _odd(cls, knots: int) -> int:
        if knots % 2 == 0:
            raise ValueError(f"knots must be odd, e.g. {knots + 1}")
        return knots


class AutoWeightConfig(Section):
    """Settings of the automatic weight of a regularizer."""

    enabled: bool = False
    """Choose λ while training: minimise the prediction error subject to regularizer ≤ multiple · null (dual
    ascent). The regularizer is SIGReg, the uniformity of angles, or N − 1 times a covariance of N images."""
    multiple: PositiveFloat = 1.5
    """Largest regularizer that is allowed, as a multiple of its mean for samples of the target distribution
    (null): Gaussian samples, uniform angles or independent dimensions; with weighting=heat, samples of the
    covariance that it aims at."""
    rate: PositiveFloat = 1e-3
    """Step size ρ of the update λ ← max(0, λ + ρ (regularizer − multiple · null))."""


class LeJEPAConfig(Section):
    """Settings of LeJEPA."""

    kind: Literal["lejepa"] = "lejepa"
    """lejepa: every view predicts the mean of the global views, and SIGReg keeps each view Gaussian."""
    weight: float = Field(0.05, ge=0, le=1)
    """λ in (1 − λ)·prediction + λ·SIGReg; with auto_weight, the first λ in prediction + λ·SIGReg."""
    center: Literal["global", "all"] = "global"
    """Views whose mean every view predicts: global (published), or all."""
    encoder_weight: NonNegativeFloat = 0.0
    """Weight of a second SIGReg, on the encoder's own output; 0 leaves it out."""
    auto_weight: AutoWeightConfig = AutoWeightConfig()
    sigreg: SIGRegConfig = SIGRegConfig()
    projector: ProjectorConfig = ProjectorConfig()


class JEPAProjectorConfig(ProjectorConfig):
    """Settings of the projector of JEPA."""

    width: PositiveInt = 256
    """Width of the projection; the toroidal regularizer needs at least grid_size²."""


class PredictorConfig(MLPConfig):
    """Settings of the predictor."""

    hidden: PositiveInt = 1024
    """Width of the hidden layers."""
    layers: PositiveInt = 2
    """Number of linear layers."""


class JEPAConfig(Section):
    """Settings of JEPA."""

    kind: Literal["jepa"]
    """jepa: a predictor predicts the output of a target network, and a regularizer prevents collapse."""
    regularizer: Literal["vicreg", "sigreg", "toroidal"] = "vicreg"
    """vicreg: variance and covariance; sigreg: SIGReg; toroidal: variance and toroidal covariance."""
    prediction: Literal["squared_error", "smooth_l1"] = "squared_error"
    """Error of a prediction that is off by d in one dimension. squared_error: d²; smooth_l1: d²/2 where
    |d| < 1, |d| − 1/2 elsewhere, as in the code of I-JEPA."""
    weight: NonNegativeFloat = 1.0
    """Weight of covariance, SIGReg or toroidal covariance; the prediction error has weight 1. With
    auto_weight, the first weight."""
    auto_weight: AutoWeightConfig = AutoWeightConfig()
    variance_weight: NonNegativeFloat = 25.0
    """Weight of the variance term of vicreg and toroidal."""
    grid_size: int = Field(8, ge=2)
    """toroidal: the dimensions of the projection are laid out on a torus of N × N sites; this is N."""
    weighting: Literal["distance", "laplacian", "heat"] = "distance"
    """toroidal: weights of the covariances: distance (published), laplacian, or heat (target e^{−time·L})."""
    time: float = Field(1.0, gt=0)
    """toroidal: diffusion time of the heat weighting."""
    momentum: float = Field(0.996, ge=0, le=1)
    """Momentum of the target network at the first step; it rises to 1 at the last step along a cosine."""
    sigreg: SIGRegConfig = SIGRegConfig()
    projector: JEPAProjectorConfig = JEPAProjectorConfig()
    predictor: PredictorConfig = PredictorConfig()

    @model_validator(mode="after")
    def _grid_fits(self) -> "JEPAConfig":
        if self.regularizer == "toroidal" and self.grid_size**2 > self.projector.width:
            raise ValueError(
                f"grid_size={self.grid_size} has {self.grid_size**2} sites for {self.projector.width} "
                f"dimensions; use at most {int(self.projector.width**0.5)}, or a larger projector.width"
            )
        return self


class Turned(NamedTuple):
    """Which views of an image are turned, and by which actions; this is the same in every step."""

    first: int
    """Number of views before the first turned one; all views after it are turned too."""
    actions: tuple[Action, ...]

    @classmethod
    def of(cls, views: ViewsConfig) -> Self | None:
        """Return which of the configured views are turned; None if no view is."""
        if not views.actions:
            return None
        return cls(sum(r.views for r in views.resolutions() if not r.turned), tuple(views.actions))


class Grid(NamedTuple):
    """Sizes where masks are predicted from a map."""

    height: int
    """Number of rows of the map's cells."""
    width: int
    """Number of columns of the map's cells."""
    side: int
    """Side of the masks in pixels."""


ONE_CELL = Grid(1, 1, 1)
"""The smallest sizes, on which everything can be tried that does not depend on sizes."""


class TorusConfig(Section):
    """Settings of toroidal JEPA."""

    kind: Literal["torus"]
    """torus: views agree on a flat torus, and their angles are uniform by Weyl's criterion."""
    angles: PositiveInt = 2
    """Number m of angles, the dimension of the torus T^m. With views.actions at least one for each action."""
    equivariant: bool | None = None
    """Take back the known turn of each view before views are compared, so that the first angles turn with the
    actions and further ones ignore them. Default: whether there are views.actions. With actions, false makes
    all angles ignore them, as a negative control."""
    order: list[PositiveInt] = []
    """How often each action's angle goes round while the image is turned once: k where images look the same
    after a k-th of a turn, such as 4 for a square cell under rotation. Default: 1 for each action."""
    weight: float = Field(0.05, ge=0, le=1)
    """λ in (1 − λ)·prediction + λ·uniformity; with auto_weight, the first λ in prediction + λ·uniformity."""
    auto_weight: AutoWeightConfig = AutoWeightConfig()
    content: Literal["lejepa"] | None = None
    """lejepa: LeJEPA's projector and SIGReg beside the angles. It sees the views that are not turned; all of
    them if every view is."""
    content_weight: float = Field(0.5, ge=0, le=1)
    """γ in (1 − γ)·torus + γ·content, the losses of the two parts; 0.5 weighs both alike."""
    lejepa: LeJEPAConfig = LeJEPAConfig()
    pose_width: PositiveInt | None = None
    """With content: the angles see only the first pose_width numbers of the embedding, and content only the
    others. Default: both see the whole embedding."""
    cutoff: PositiveInt | None = None
    """Test all frequencies up to this one in every angle. Default: 3 for up to 3 angles, else random
    frequencies."""
    num_frequencies: PositiveInt = 1024
    """Random frequencies, drawn anew in every step, where not all are tested."""
    decay: PositiveFloat | None = None
    """s in the weights e^{−s‖k‖²} of the frequencies. Default: the lowest frequencies of all angles weigh 1
    together."""
    encoder_weight: NonNegativeFloat = 0.0
    """Weight of SIGReg on the encoder's output, in addition to the torus; 0 leaves it out. With content, use
    lejepa.encoder_weight."""
    sigreg: SIGRegConfig = SIGRegConfig()
    head: MLPConfig = MLPConfig()
    norm: Norm | None = None
    """What is between the layers of the head. batch: batch norm, whose running statistics follow the views of
    training; layer: layer norm, which does the same in training and evaluation. Default: layer with
    views.actions, else batch."""

    @model_validator(mode="after")
    def _content_is_whole(self) -> "TorusConfig":
        if self.content is None:
            given = [x for x in ("content_weight", "lejepa", "pose_width") if self._differs(x)]
            if given:
                raise Unfit(
                    f"{given[0]} is for the content beside the angles; set objective.content=lejepa too"
                )
        elif self.encoder_weight:
            raise Unfit(
                f"encoder_weight={self.encoder_weight:g}: with objective.content=lejepa use "
                "objective.lejepa.encoder_weight instead"
            )
        return self

    def _differs(self, name: str) -> bool:
        """Return whether a field has another value than its default; config.yaml gives it in any case."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def orders(self, turned: Turned | None) -> list[int]:
        """Return the order of each action."""
        return self.order or [1] * len(turned.actions if turned else ())

    def norm_of_head(self, turned: Turned | None) -> Norm:
        """Return what is between the layers of the head."""
        return self.norm or ("layer" if turned else "batch")

    def check(self, embedding_width: int, turned: Turned | None) -> None:
        """Raise `UserError` unless the angles fit the embedding and the actions on views."""
        actions = turned.actions if turned else ()
        if self.pose_width is not None and self.pose_width >= embedding_width:
            raise UserError(
                f"objective.pose_width={self.pose_width} leaves none of the {embedding_width} numbers of the "
                f"embedding for content; use at most {embedding_width - 1}, or leave it out"
            )
        if self.order and len(self.order) != len(actions):
            raise UserError(
                f"objective.order={self.order}: views.actions names {len(actions)} actions "
                f"({_listed(actions)}); give one order for each of them"
            )
        if turned is None:
            if self.equivariant:
                raise UserError(
                    "objective.equivariant=true: no view is turned; set views.actions, e.g. [rotation]"
                )
            return
        if self.equivariant is not False and self.angles < len(actions):
            raise UserError(
                f"objective.angles={self.angles}, but each of the {len(actions)} actions "
                f"({_listed(actions)}) needs an angle; use objective.angles={len(actions)}"
            )
        if turned.first and self.content is None and not self.encoder_weight:
            raise UserError(
                f"objective.kind=torus learns from turned views alone, and {turned.first} others would be "
                "encoded for nothing; set views.turned=all, or objective.content=lejepa to learn from them"
            )


def _listed(actions: tuple[str, ...]) -> str:
    return ", ".join(actions) or "none"


HEAD_FILE = "head.safetensors"
"""File in a run's folder that has the weights with which its linear layer starts."""


CHOICE = 0x1ABE1
"""Stream of the random numbers that choose images for `TargetsConfig.labels`."""


class TargetsConfig(Section):
    """What is predicted, read as `isotorus eval --targets` reads it."""

    file: PathText | None = None
    """CSV or Parquet file with the targets of train and val. Default: the packed labels."""
    columns: list[str] = []
    """Columns of the file to predict."""
    key_column: str = "key"
    """Column of the file with the samples' keys."""
    missing: list[str] | None = None
    """Values that mean "no target", besides empty cells."""
    labels: PositiveInt | None = None
    """Number of labelled images of train that are used, with the same share of each class; masks are chosen
    whatever their classes are. Default: all."""
    seed: int = 0
    """Seed of the choice of these images."""


class SupervisedConfig(Section):
    """Settings of training with labels; `isotorus finetune` writes them."""

    kind: Literal["supervised"]
    """supervised: a linear layer on the embedding predicts labels or numbers, and encoder and layer are
    trained to predict them."""
    task: Kind | Literal["segmentation"] = "multiclass"
    """multiclass: one class for each image; multilabel: labels that may occur together; regression: numbers;
    segmentation: one class for each pixel, from the masks that the images were packed with. Then the linear
    layer reads the encoder's map: a ViT's patch tokens, or the maps of a ConvNet's last three stages."""
    outputs: PositiveInt
    """Number of classes, labels or columns of numbers; it must agree with the data."""
    val: PathText
    """Packed data set on which each checkpoint is scored; the best checkpoint is kept."""
    targets: TargetsConfig = TargetsConfig()
    balanced: bool = True
    """multiclass: weight images so that all classes have the same weight, as in balanced accuracy.
    segmentation: weight pixels in the same way, but `isotorus finetune` sets it to false unless it is given.
    Other tasks ignore it."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes (Szegedy et al. 2015, arXiv:1512.00567)."""
    mixup: NonNegativeFloat = 0.0
    """α of mixup (arXiv:1710.09412): pairs of images are averaged with a weight from Beta(α, α); 0: never.
    With both mixup and cutmix, each pair gets one of the two, with equal probabilities."""
    cutmix: NonNegativeFloat = 0.0
    """α of CutMix (arXiv:1905.04899): images of a pair swap a rectangle; 0: never."""
    features: FeatureSet = "embedding"
    """What of the encoder the linear layer reads. embedding: its output; stages: mean and deviation of the
    maps of a ConvNet's or Swin's last three stages; last2, last4: the vectors of a ViT's last blocks, each
    made like the embedding; patch_mean: the mean of its patch tokens. `isotorus finetune` takes the set on
    which a linear probe is best."""
    head_start: Literal["random", "probe"] = "random"
    """What the linear layer starts from. random: small random numbers; probe: the weights in head.safetensors
    in the run's folder, where `isotorus finetune` writes those of a linear probe."""
    head_steps: NonNegativeInt = 0
    """Number of steps at the start in which only the linear layer learns and the encoder stays as it is."""
    patience: PositiveInt | None = None
    """End after this many checkpoints in a row that were not better on val than the best before them.
    Default: never."""

    @property
    def segments(self) -> bool:
        """Whether masks are predicted."""
        return self.task == "segmentation"

    @property
    def reads(self) -> str:
        """The feature set that the linear layer reads, as `pretrain.models.feature_sets` names it."""
        return "map" if self.segments else self.features


def reads_masks(objective: object) -> bool:
    """Return whether an objective takes the masks of its images."""
    return isinstance(objective, SupervisedConfig) and objective.segments


ObjectiveConfig = Annotated[
    LeJEPAConfig | JEPAConfig | TorusConfig | SupervisedConfig, Field(discriminator="kind")
]
