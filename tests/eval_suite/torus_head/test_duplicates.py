"""`eval_suite duplicates` lists images whose angles in a torus head are nearly the same."""

import contextlib
import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eval_suite.torus_head import chance_pairs, duplicates, duplicates_command
from eval_suite.usefulness import angle_retrieval
from isotorus.errors import exit_code
from pretrain.geometry.memory import WindingMemory
from pretrain.models.config import MLPConfig
from pretrain.models.projector import build_mlp
from tests.eval_suite.eval_samples import CLASSES, Outcome, pack, save_checkpoint

PROJECTOR = {"hidden": 16, "layers": 2, "width": 6, "angles": 3}


def run(*arguments: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exit_code(lambda: duplicates_command.main([str(x) for x in arguments]))
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def torus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkpoint whose head has three angles."""
    folder = save_checkpoint(tmp_path_factory.mktemp("torus") / "export", projector=PROJECTOR)
    head = build_mlp(24, MLPConfig(hidden=16, layers=2), 6, 0)
    save_file(head.state_dict(), folder / "projector.safetensors")
    return folder


def test_copies_are_found_within_and_across_data_sets(tmp_path: Path, torus: Path):
    """Both sets are packed with the same seed, so every image of the second set is in the first."""
    train = pack(tmp_path / "train", [*CLASSES] * 12, seed=0)
    other = pack(tmp_path / "other", [*CLASSES] * 4, seed=0)
    kept = tmp_path / "memory.safetensors"
    options = ["--within", 0.02, "--out", tmp_path / "out", "--save", kept]
    done = run(torus, "--data", train, other, *options)
    assert done.code == 0, done.err
    said = "8 pairs of 16 of 32 images lie within 0.02°, 8 of them across data sets; 0 would by chance"
    assert said in done.out and "warning" not in done.out
    page = (tmp_path / "out/duplicates.html").read_text()
    assert said in page and page.count("<img") == 16 and "All pairs" in page
    rows = list(csv.DictReader((tmp_path / "out" / "duplicates.csv").open()))
    assert {(row["key_1"], row["key_2"]) for row in rows} == {(str(i), str(i)) for i in range(8)}
    assert {(row["data_1"], row["data_2"]) for row in rows} == {(str(train), str(other))}
    assert len(WindingMemory.load(kept, angles=3)) == 32


def test_pairs_are_each_listed_once_and_the_nearest_first():
    angles = torch.tensor([[0.0], [1.0], [0.01], [1.03], [2.0]]).double().numpy()
    memory = angle_retrieval.remember(angles)
    pairs = duplicates.pairs(angles, memory.query(angles, 3), 5)
    assert [pair[:2] for pair in pairs] == [(0, 2), (1, 3)]
    assert [pair.degrees for pair in pairs] == pytest.approx(np.rad2deg([0.01, 0.03]))


def test_too_few_angles_are_warned_of(tmp_path: Path, torus: Path):
    data = pack(tmp_path / "data", [*CLASSES] * 12, seed=0)
    done = run(torus, "--data", data, "--within", 30, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    said = "these pairs say little: 3 angles are too few to tell 24 images apart at 30°"
    assert said in done.out and said[1:] in (tmp_path / "out/duplicates.html").read_text()


@pytest.mark.parametrize("angles", [1, 2, 3, 5])
def test_the_expected_pairs_are_those_of_uniform_angles(angles: int):
    random = np.random.default_rng(0)
    x = random.uniform(0, 2 * np.pi, (2000, angles))
    away = np.angle(np.exp(1j * (x[:, None] - x)))[np.triu_indices(2000, 1)]
    within = 40 if angles == 5 else 15
    counted = int((np.rad2deg(np.sqrt(np.square(away).mean(-1))) <= within).sum())
    # Pairs are nearly independent, so their number is nearly Poisson.
    expected = chance_pairs.expected(2000, angles, within)
    assert abs(counted - expected) < 5 * np.sqrt(expected)
    enough = chance_pairs.angles_for(2000, within)
    assert chance_pairs.expected(2000, enough, within) < 1 < chance_pairs.expected(2000, enough - 1, within)


def test_the_warning_blames_the_number_of_angles_only_where_uniform_angles_would_be_too_few():
    few = chance_pairs.warning(400, 390, 2000, 2, 2.0)
    assert few is not None and "2 angles are too few" in few
    uneven = chance_pairs.warning(400, 390, 2000, 64, 2.0)
    assert uneven is not None and "too few" not in uneven and "far from uniform" in uneven
    assert chance_pairs.warning(800, 390, 2000, 2, 2.0) is None


def test_what_is_refused(tmp_path: Path, torus: Path, checkpoint: Path, splits: dict[str, Path]):
    for name, arguments, message in (
        (checkpoint, [], "has no angles: its head is no torus"),
        (torus, ["--within", 0], "--within 0.0: expected degrees above 0"),
        (torus, ["--bins", 0], "argument --bins: 0: expected a whole number, 1 or more"),
        (torus, ["--bins", 300], "at most 256 bins"),
    ):
        done = run(name, "--data", splits["val"], *arguments, "--out", tmp_path / "out")
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1
