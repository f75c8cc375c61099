"""The table of everything an evaluation measures: names, labels, formats and places in results.json.

The command line, the measuring code, the sentences, the terminal, the result tables and the pages read it. To
add a score, add a row here and put its value at the row's path in `usefulness/` or `geometry/`. This module
imports nothing heavy, because the command line reads it before torch.
"""

from typing import NamedTuple


class Method(NamedTuple):
    """A way to judge features against targets; results.json has it at representations/<name>/<method>."""

    label: str
    short: str = ""
    """Label in narrow tables."""
    predicts: bool = False
    """Whether it predicts every sample, so that all scores and their bootstrap intervals are computed."""
    summarised: bool = False
    """Whether the sentences and the terminal show it."""
    of_tokens: bool = False
    """Whether it reads the patch tokens of images in place of vectors; it is measured only if it is named."""
    trains: bool = False
    """Whether it trains the encoder; it is measured only if it is named."""

    @property
    def of_vectors(self) -> bool:
        """Whether it is measured on the vectors of images as they are."""
        return not (self.of_tokens or self.trains)


class Metric(NamedTuple):
    """One measured number."""

    path: str
    """Its keys in results.json, joined by "/", below the parent that the table names."""
    label: str
    explanation: str
    short: str = ""
    """Label in narrow tables, where it is not `label`."""
    tasks: tuple[str, ...] = ()
    """Kinds of targets for which it is a headline score: settings are chosen by it, and tables show it."""
    decides: bool = False
    """Whether the sentence about the effect of pretraining relies on it in its tasks."""
    percent: bool = False
    higher_is_better: bool = True
    chance: float | None = 0.0
    """Its value when guessing; None: 1 divided by the number of classes."""
    over_steps: bool = False
    """Whether the comparison page draws it over the training steps."""


METHODS = {
    "probe": Method("linear probe", "probe", predicts=True, summarised=True),
    "attentive_probe": Method("attentive probe", "attentive", predicts=True, summarised=True, of_tokens=True),
    "minibatch_probe": Method("minibatch probe", predicts=True),
    "knn": Method("k-NN", "k-NN", predicts=True, summarised=True),
    "label_curve": Method("linear probe with fewer labels"),
    "few_shot": Method("few-shot classification"),
    "retrieval": Method("image retrieval"),
    "segmentation_probe": Method("segmentation probe", of_tokens=True),
    "finetune": Method("fine-tuning", "fine-tuned", predicts=True, summarised=True, trains=True),
    "finetune_tenth": Method(
        "fine-tuning on a tenth of the labels",
        "fine-tuned, 1/10",
        predicts=True,
        summarised=True,
        trains=True,
    ),
}
IMPLIED = {"finetune": "finetune_tenth"}
"""For a metric that --metrics names, another one that is then measured too."""

_CLASSES, _LABELS, _NUMBERS, _MASKS = "multiclass", "multilabel", "regression", "segmentation"
_RECALL = "mean over classes of the share of the class that is predicted right"
_BALANCED = ("balanced accuracy", _RECALL, "balanced", (_CLASSES,))
_AUROC = "probability that a sample of a class scores above another sample, mean over classes"
_OVERLAP = "intersection over union, mean over the classes of the masks"
_AREA = "area under the precision-recall curve, mean over labels"
_SCORES = (
    Metric("balanced_accuracy", *_BALANCED, percent=True, chance=None, over_steps=True),
    Metric("auroc", "AUROC", _AUROC, "", (_CLASSES, _LABELS), decides=True, percent=True, chance=0.5),
    Metric("average_precision", "average precision", _AREA, "mAP", (_LABELS,), percent=True),
    Metric("r2", "R²", "1 − squared error / variance of the target", "", (_NUMBERS,), decides=True),
    Metric("spearman", "Spearman", "rank correlation of target and prediction", "", (_NUMBERS,)),
    Metric("mae", "MAE", "mean absolute error", higher_is_better=False),
    Metric("accuracy", "accuracy", "share of the samples that are predicted right", percent=True),
    Metric("precision", "precision", "share of the predictions of a class that are right", percent=True),
    Metric("recall", "recall", "share of the samples of a class that are predicted right", percent=True),
    Metric("map", "mean average precision", "of the train images sorted by similarity", percent=True),
    Metric("miou", "mIoU", _OVERLAP, "", (_MASKS,), percent=True),
    Metric("iou", "IoU", "pixels of a class that are predicted right / true or predicted", percent=True),
    Metric("recall_at_1", "same class first", "queries whose nearest image is of their class", percent=True),
)
SCORES = {score.path: score for score in _SCORES}
"""Scores against targets, below representations/<name>/<method>."""

_RANK = "exponential of the entropy of the covariance's eigenvalues"
_EFFECTIVE_RANK = Metric("rank/effective_rank", "effective rank", _RANK, "eff. rank", over_steps=True)
_LIDAR = "rank of what tells images apart, relative to what changes from view to view"
_ALIGNMENT = "mean squared distance of two views of an image on the unit sphere"
REPRESENTATION = (
    _EFFECTIVE_RANK,
    Metric("rank/participation_ratio", "participation ratio", "(Σλ)² / Σλ² of the covariance's eigenvalues"),
    Metric("rank/rankme", "RankMe", "exponential of the entropy of the singular values"),
    Metric("rank/rankme_centred", "RankMe, centred", "RankMe after subtracting the mean"),
    Metric("rank/alpha_req", "α-ReQ", "exponent of the power law of the eigenvalues; near 1 is good"),
    Metric("views/lidar", "LiDAR, of augmented views", _LIDAR),
    Metric("views/alignment", "alignment of augmented views (same: 0)", _ALIGNMENT, higher_is_better=False),
)
"""Numbers of a representation without targets, below representations/<name>."""

_BAND = "mean of the first four eigenvalues, divided by that of"
_TORUS, _GAUSSIAN = f"{_BAND} a flat torus", f"{_BAND} a Gaussian of the same effective rank"
_COLLISIONS = "pairs of two classes that are nearer than the median pair of one class"
CLOUD = (
    Metric(
        "dimension/two_nn", "intrinsic dimension, TwoNN", "from two neighbours' distances", over_steps=True
    ),
    Metric("dimension/mle", "intrinsic dimension, MLE", "maximum likelihood from neighbours' distances"),
    _EFFECTIVE_RANK,
    Metric("graph/components", "components of the k-NN graph", "parts that no edge connects"),
    Metric("graph/gap", "spectral gap λ₁", "smallest eigenvalue above 0 of the k-NN graph's Laplacian"),
    Metric("graph/torus_ratio", "spectral gap over a flat torus's", _TORUS, over_steps=True),
    Metric("graph/gaussian_ratio", "spectral gap over a Gaussian's", _GAUSSIAN),
    Metric("graph/second_band", "λ₅₋₈ / λ₁₋₄ (flat torus: 2)", "means of the eigenvalues of the k-NN graph"),
    Metric("normality/sigreg", "SIGReg over its null, as it is", "distance to N(0, I); 1 for N(0, I) itself"),
    Metric(
        "normality/shape", "SIGReg over its null, standardised", "each direction scaled; 1 for a Gaussian"
    ),
    Metric("uniformity_over_null", "U over its null, of angles", "1 for uniform angles, more for others"),
    Metric("shape/uniformity", "uniformity on the sphere", "0 at collapse, lower when spread out"),
    Metric("shape/hyperbolicity/relative", "Gromov δ (tree: 0)", "2δ divided by the diameter"),
    Metric("shape/hubness/skewness", "hubness (skewness)", "of how often a sample is a neighbour of others"),
    Metric("collisions", "collisions between classes (chance: 0.5)", _COLLISIONS),
)
"""Numbers of a cloud of features, below geometry/<cloud>."""

USEFULNESS = tuple(METHODS)
"""Metrics against targets, as --metrics names them."""
GEOMETRY = ("rank", "shape", "views", "graph", "homology")
"""Metrics without targets, as --metrics names them."""
METRICS = (*USEFULNESS, *GEOMETRY)
BY_DEFAULT = tuple(name for name in METRICS if name not in METHODS or METHODS[name].of_vectors)
"""Metrics that are measured unless --metrics names others."""
BASELINES = ("untrained", "pixels", "handmade")
"""What the pretrained encoder is compared with."""
AVERAGED = "averaged"
"""Name of the row of a run's own averaged weights, where a checkpoint has them; it is no baseline."""
FEATURE_SETS = (
    *("embedding", "patch_mean", "last2", "last4", "stages"),
    *("pose", "content", "projector", "angles"),
)
MAP = "map"
"""The feature set that has a vector for each cell of an image, see `pretrain.models.feature_sets.map_of`."""
MAPS_SUFFIX = ".zarr"
"""Ending of the name of a store of maps."""
LEAST_FOLDS = 3
"""Fewest folds: one is held out for the score, one chooses the settings, and the others are fitted."""
USUAL_FOLDS = 5
"""Number of folds unless another one is asked for."""
FEW_LABELS = 5000
"""Number of labelled samples in train and val below which scores come from folds by default."""


def headlines(task: str | None) -> tuple[str, ...]:
    """Return the scores that a kind of targets is judged by, the most important first; () without targets."""
    return tuple(path for path, score in SCORES.items() if task in score.tasks)
