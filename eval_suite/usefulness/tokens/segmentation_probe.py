"""The dense linear probe: a linear layer on every patch token predicts the classes of the pixels of a mask.

The layer is fitted by logistic regression to its optimum, as the linear probe is. A token stands for the
pixels of its cell of the image; each class in the cell counts with its share of the pixels. The loss is then
the mean cross-entropy over all pixels, if each pixel takes the logits of the token of its cell. To predict,
the logits are upsampled to the mask, bilinearly. At most `MOST` cells of train are fitted, drawn by the seed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.dataset.masks import IGNORED
from data_pipeline.targets.mask_scores import Counts, count, iou, mean_iou, of_constant
from eval_suite.attempts import Unmeasurable
from eval_suite.usefulness import logistic
from eval_suite.usefulness.estimate import Estimate, Estimates
from eval_suite.usefulness.resampling import Groups, over_all
from eval_suite.usefulness.tokens.attentive_probe import Images, moments
from isotorus import randomness

L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""L2 strengths relative to the mean loss."""
MOST = 50_000
"""Largest number of cells of train that are fitted."""
AT_ONCE = 16
"""Images that are predicted at the same time."""


class Masked(NamedTuple):
    """The tokens of some images, and their masks."""

    images: Images
    """`y` holds the masks (n, size, size): the index of each pixel's class, or `IGNORED` for no class."""
    grid: tuple[int, int]
    """Height and width of the grid of tokens."""
    groups: Groups = None
    """Group of each image (n,), such as a patient; None if no groups are known."""


class Fit(NamedTuple):
    """The probe at every L2 strength."""

    l2: list[float]
    layers: list[tuple[Tensor, Tensor]]
    """Weight (d, columns) and bias (columns,) for standardised tokens; two classes have one column."""
    on_val: list[float]
    """mIoU on val."""
    present: NDArray[np.int64]
    """The classes that train has: that of each column."""
    scale: tuple[Tensor, Tensor]
    """Mean and standard deviation (d,) of the tokens of train."""
    converged: bool

    @property
    def best(self) -> int:
        """The place of the strength that is best on val, the largest among equals."""
        return max(range(len(self.l2)), key=lambda i: (self.on_val[i], i))

    def linear(self, classes: int) -> tuple[Tensor, Tensor]:
        """Return weight (classes, d) and bias (classes,) of the best layer, for tokens as they are.

        The logit of a class that train lacks is that of the least likely class at the mean of the tokens.
        """
        columns, bias = (x.double().cpu() for x in self.layers[self.best])
        if columns.shape[1] == 1:  # the log-odds of the second of two classes
            # A logit of 0 for the first class could equal that of a class that train lacks.
            columns, bias = torch.cat([-columns, columns], 1) / 2, torch.cat([-bias, bias]) / 2
        mean, deviation = (x.double() for x in self.scale)
        weight = torch.zeros(classes, len(mean), dtype=torch.float64)
        shift = bias.min().expand(classes).clone()
        weight[self.present] = columns.T / deviation
        shift[self.present] = bias - weight[self.present] @ mean
        return weight, shift


def fit(
    train: Masked, val: Masked, classes: int, l2: Sequence[float], seed: int, device: str | torch.device
) -> Fit:
    """Fit at every strength, and score on val; raises Unmeasurable if train has fewer than two classes."""
    present = np.flatnonzero(pixels_of(train)[:IGNORED])
    if len(present) < 2:
        raise Unmeasurable(
            "the masks of train hold fewer than two classes within the centred squares of the images, which "
            f"alone are read (where {IGNORED} is an object and not 'not labelled': pack with --mask-classes "
            f"0=background,{IGNORED}=object)"
        )
    scale = moments(train.images)
    x, y, weight = (part.to(device) for part in _cells(train, scale, present, seed))
    grid = sorted(l2)
    solution = logistic.solve(x, y, grid, weight, len(present), tolerance=1e-6)  # that of float32
    layers = list(zip(solution.weight, solution.bias, strict=True))
    on_val = [float(mean_iou(of)[0]) for of in _counted(val, layers, present, classes, scale)]
    return Fit(grid, layers, on_val, present, scale, bool(solution.converged.all()))


def pixels_of(split: Masked) -> NDArray[np.int64]:
    """Return the number of pixels of each value of the masks (256,)."""
    return np.sum([np.bincount(mask.ravel(), minlength=IGNORED + 1) for mask in split.images.y], axis=0)


def segmentation_probe(
    train: Masked,
    val: Masked,
    test: Masked,
    *,
    names: Sequence[str] = (),
    l2: Sequence[float] = L2_GRID,
    resamples: int = 1000,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[dict[str, Any], Estimates]:
    """Fit at every strength, choose one by the mIoU on val, report the IoU of each class on test.

    `names` are those of the classes in the order of their numbers. mIoU is the mean over the classes that
    occur in the masks of test; its 95 % interval is that of `resamples` draws of images, or of whole groups.
    Returns the results and the estimate of mIoU. Raises Unmeasurable if train has fewer than two classes.
    """
    classes = 1 + max(
        int(max(mask[mask < IGNORED].max(initial=0) for mask in split.images.y))
        for split in (train, val, test)
    )
    fitted = fit(train, val, classes, l2, seed, device)
    best = fitted.best
    (counts,) = _counted(test, fitted.layers[best : best + 1], fitted.present, classes, fitted.scale)
    most = int(pixels_of(train)[:IGNORED].argmax())
    found, estimates = of_counts(counts, names, test.groups, resamples, seed)
    tried = zip(fitted.l2, fitted.on_val, strict=True)
    return {
        **found,
        "l2": fitted.l2[best],
        "val": [{"l2": strength, "miou": of} for strength, of in tried],
        "converged": fitted.converged,
        "majority": {"name": dict(enumerate(names)).get(most, str(most)), "miou": of_constant(counts, most)},
        "images": [len(split.images.y) for split in (train, val, test)],
    }, estimates


def of_counts(
    counts: Counts, names: Sequence[str], groups: Groups, resamples: int, seed: int
) -> tuple[dict[str, Any], Estimates]:
    """Return `miou` with its interval and a row for each class, for the counts of images; and the estimate.

    `names` and `groups` are as for `segmentation_probe`.
    """
    estimate = Estimate(
        float(mean_iou(counts)[0]),
        mean_iou(counts, over_all(len(counts.true), resamples, seed, groups)),
    )
    name, shares = dict(enumerate(names)), counts.true.sum(axis=0) / counts.true.sum()
    per_class = [
        {"name": name.get(i, str(i)), "iou": float(of), "share": float(shares[i])}
        for i, of in enumerate(iou(counts)[0])
        if not np.isnan(of)
    ]
    found = {"miou": estimate.value, "miou_interval": estimate.interval(), "per_class": per_class}
    return found, {"miou": estimate}


def cells_of(size: int, grid: tuple[int, int]) -> NDArray[np.int64]:
    """Return for each pixel of a mask (size, size) the number of the cell of the grid that it lies in."""
    rows, columns = ((2 * np.arange(size) + 1) * side // (2 * size) for side in grid)
    return rows[:, None] * grid[1] + columns


def _cells(
    train: Masked, scale: tuple[Tensor, Tensor], present: NDArray[np.int64], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens (m, d), the place of a class in `present` (m,), and the share of the cell's pixels (m,).

    A cell with pixels of several classes has a row for each. The mean share is 1.
    """
    images, (height, width) = train.images, train.grid
    n, tokens = len(images.y), height * width
    cell = cells_of(images.y.shape[1], train.grid).ravel()
    place = np.full(IGNORED + 1, len(present))
    place[present] = np.arange(len(present))
    chosen = randomness.rows(n * tokens, MOST, seed)
    parts: list[tuple[Tensor, NDArray[np.int64], NDArray[np.float64]]] = []
    for row in np.unique(chosen // tokens):
        pairs = cell * (len(present) + 1) + place[images.y[row]].ravel()
        pixels = np.bincount(pairs, minlength=tokens * (len(present) + 1)).reshape(tokens, -1)[:, :-1]
        wanted = chosen[chosen // tokens == row] % tokens
        at, of = np.nonzero(pixels[wanted])
        x = (images.tokens(np.array([row]))[0] - scale[0]) / scale[1]
        parts.append((x[wanted[at]], of, pixels[wanted][at, of].astype(np.float64)))
    tokens_of, of_cell, count_of = zip(*parts, strict=True)
    share = np.concatenate(count_of)
    return (
        torch.cat(tokens_of),
        torch.from_numpy(np.concatenate(of_cell)),
        torch.from_numpy(share / share.mean()).float(),
    )


@torch.no_grad()
def _counted(
    split: Masked,
    layers: Sequence[tuple[Tensor, Tensor]],
    present: NDArray[np.int64],
    classes: int,
    scale: tuple[Tensor, Tensor],
) -> list[Counts]:
    """Return the counts of the masks that each layer predicts for all images of a split."""
    found: list[list[Counts]] = [[] for _ in layers]
    images = split.images
    for start in range(0, len(images.y), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(images.y)))
        x = (images.tokens(rows) - scale[0]) / scale[1]
        truth = images.y[rows]
        for kept, (weight, bias) in zip(found, layers, strict=True):
            logits = x.to(weight) @ weight + bias
            logits = F.pad(logits, (1, 0)) if logits.shape[2] == 1 else logits  # two classes have one column
            maps = logits.transpose(1, 2).unflatten(2, split.grid)
            upsampled = F.interpolate(maps, size=truth.shape[1:], mode="bilinear")
            kept.append(count(truth, present[upsampled.argmax(1).cpu().numpy()], classes))
    return [Counts(*map(np.concatenate, zip(*of, strict=True))) for of in found]
