"""k-NN and RankMe on held-out images: known values, the rows that have them, and what is refused."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from eval_suite.geometry.rank import rankme
from pretrain.config import load_config
from pretrain.monitoring.held_out import NEIGHBOURS, TEMPERATURE, Embedded, HeldOut, conclude, knn
from pretrain.preflight.check import check


def test_rankme_and_knn_of_known_embeddings():
    # Four orthogonal directions of equal length: rank 4, and each class on one of them.
    x = torch.eye(4).repeat_interleave(30, dim=0)
    labels = torch.arange(4).repeat_interleave(30)
    assert conclude(Embedded(x, labels)) == {"held_out_rankme": pytest.approx(4), "held_out_knn": 1.0}
    without = conclude(Embedded(x, torch.full((120,), -1)))
    assert without == {"held_out_rankme": pytest.approx(4)}
    assert conclude(Embedded(x * math.nan, labels)) == {}


def test_they_are_those_of_other_implementations():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (150,), generator=generator)
    x = torch.randn(150, 6, generator=generator) + 0.8 * torch.nn.functional.one_hot(labels, 6)
    assert conclude(Embedded(x, labels))["held_out_rankme"] == pytest.approx(rankme(x.numpy()), rel=1e-5)

    unit = torch.nn.functional.normalize(x, dim=1).numpy()
    said = []
    for i in range(len(unit)):
        others = [j for j in range(len(unit)) if j != i]
        # Cosine distance is 1 - cosine, so the vote e^(cosine / T) falls as e^(-distance / T).
        votes = KNeighborsClassifier(
            NEIGHBOURS, metric="cosine", algorithm="brute", weights=lambda d: math.e ** (-d / TEMPERATURE)
        )
        said.append(votes.fit(unit[others], labels[others]).predict(unit[i : i + 1])[0])
    assert knn(x, labels) == pytest.approx(balanced_accuracy_score(labels, said))


def test_which_rows_have_them_depends_on_the_step_alone(recipe: Path, shards: Path):
    config = load_config(str(recipe), ["steps=100", "log_every=10", "held_out.every=25"])
    monitor = HeldOut(config, check(config, 1), list(range(4)), None)  # type: ignore[arg-type]
    assert [step for step in range(10, 110, 10) if monitor.due(step)] == [30, 50, 80, 100]


def test_the_set_that_is_trained_on_is_refused(recipe: Path, shards: Path):
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", "--config", recipe, f"held_out.path={shards}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "not held out" in done.stderr and len(done.stderr.splitlines()) == 1
