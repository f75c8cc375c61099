"""`eval_suite winding` measures a head with known winding numbers, and refuses heads without angles."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval_suite.torus_head import image_paths, winding_command
from eval_suite.torus_head.winding import summary
from tests.eval_suite.eval_samples import Outcome, run_other, save_checkpoint
from tests.eval_suite.torus_samples import pack_spots, save_known_torus, spot


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_spots(tmp_path_factory.mktemp("spots") / "packed", 12)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, spots: Path) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("winding")
    known, plain = save_known_torus(folder / "<b>known"), save_checkpoint(folder / "plain")
    frames = folder / "frames"
    frames.mkdir()
    for i in range(19):  # three quarters of a turn, clockwise
        Image.fromarray(spot(-1.5 * math.pi * i / 18, 0.3)).save(frames / f"{i:02}.png")
    out = folder / "out"
    outcome = run_other(
        "winding",
        known,
        plain,
        "--data",
        spots,
        "--out",
        out,
        "--frames",
        frames,
        "--images",
        10,
        "--steps",
        16,
    )
    assert outcome.code == 0, outcome.err
    return outcome, out


def test_each_angle_winds_once_along_its_own_path_and_no_other(found):
    results = json.loads((found[1] / "winding.json").read_text())
    (known,) = results["checkpoints"]
    assert known["name"] == "<b>known" and known["step"] == 7
    for place, (name, path) in enumerate(known["paths"].items()):
        assert path["vector"] == [int(i == place) for i in range(4)], name
        assert path["share"] == 1 == path["times"] == path["same_at_half"]
        assert path["images"] == 10 and path["samples"] == 16
        assert path["of_each_angle"][place] == {"number": 1, "share": 1.0}
        assert [row[place] for row in path["numbers"]] == [1.0] * 10
    rotation = known["paths"]["rotation"]
    # No step is shorter than the turn's own sixteenth.
    assert 2 < rotation["margin"]["median"] < math.pi - 2 * math.pi / 16 + 0.02
    assert rotation["ambiguous"] == 0
    assert known["frames"]["numbers"][0][0] == pytest.approx(-0.75, abs=0.01)
    assert not known["frames"]["closed"]


def test_the_page_shows_it_and_says_what_is_left_out(found):
    outcome, out = found
    page = (out / "winding.html").read_text()
    assert "the head winds once, by (+1, 0, 0, 0), for 100 % of the images" in page
    assert "plain, step 7 has no angles" in page and "plain, step 7 has no angles" in outcome.out
    assert "&lt;b&gt;known" in page and "<b>known" not in page
    assert page.count("<svg") >= 8 and page.count("data:image/jpeg") == 4 * 12
    assert not re.search("https?:", page.replace("http://www.w3.org", ""))
    assert "(+1, 0, 0, 0)" in outcome.out


def test_paths_are_closed_and_are_what_they_say():
    assert tuple(image_paths.PATHS) == winding_command.PATHS
    image = torch.from_numpy(spot(0.3, 0.6)).permute(2, 0, 1)[None] / 255
    for name, path in image_paths.PATHS.items():
        torch.testing.assert_close(path(image, 1.0), path(image, 0.0), atol=2e-3, rtol=0)
        assert path(image, 0.37).shape == image.shape and name
    quarter = image_paths.rotation(image, 0.25)
    torch.testing.assert_close(
        quarter, torch.rot90(image_paths.rotation(image, 0.0), 1, (2, 3)), atol=1e-3, rtol=0
    )
    assert torch.equal(image_paths.shift_x(image, 0.25), image.roll(8, 3))
    turned = image_paths.hue(image, 0.4)
    expected = torch.from_numpy(spot(0.3, 0.0)).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(turned, expected, atol=0.02, rtol=0)
    # The corners do not turn with the image.
    white = image_paths.rotation(torch.ones(1, 3, 32, 32), 0.1)
    torch.testing.assert_close(white, torch.ones(1, 3, 32, 32))


def test_a_summary_counts_agreement_ambiguity_and_multiples():
    t = torch.arange(24) / 24
    turns = torch.tensor([[2, 0, -4], [2, 0, -4], [1, 0, 0]])
    path = 2 * math.pi * t[:, None] * turns[:, None] + 0.3
    found = summary(path, closed=True)
    assert found["vector"] == [2, 0, -4] and found["times"] == 2
    assert found["share"] == pytest.approx(2 / 3) and found["ambiguous"] == 0 and found["same_at_half"] == 1
    assert list(found["curves"]) == [2, 0]
    few = summary(path[:, ::3], closed=True)  # steps of half a turn in the third angle
    assert few["ambiguous"] == pytest.approx(2 / 3) and few["margin"]["least"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "say"),
    [
        (["--paths", "spin"], "unknown path 'spin'"),
        (["--paths", ","], "names none"),
        (["--steps", "7"], "even number"),
        (["--images", "0"], "1 or more"),
        (["--frames", "EMPTY"], "two frames or more"),
        (["--frames", "ABSENT"], "No such file"),
        (["--frames", "TEXT"], "is no frame"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, spots, arguments, say):
    known = save_known_torus(tmp_path / "known")
    (tmp_path / "EMPTY").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "EMPTY" / "1.png")
    (tmp_path / "TEXT").mkdir()
    for name in "ab":
        (tmp_path / "TEXT" / name).write_text("words")
    arguments = [tmp_path / a if str(a).isupper() else a for a in arguments]
    outcome = run_other(
        "winding", known, "--data", spots, "--out", tmp_path / "out", "--steps", 4, "--images", 1, *arguments
    )
    assert outcome.code == 2 and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert say in outcome.err


def test_frames_that_are_numbers_become_brightness_as_in_training(tmp_path):
    known = save_known_torus(tmp_path / "known")
    description = json.loads((known / "encoder.json").read_text())
    frames = tmp_path / "frames"
    frames.mkdir()
    for i in range(19):  # three quarters of a turn, clockwise, in int16
        frame = 4 * spot(-1.5 * math.pi * i / 18, 0.3).astype(np.int16) - 900
        frame[0, 0] = -9999
        np.save(frames / f"{i:02}.npy", frame)

    def winding(*rules: str) -> Outcome:
        (known / "encoder.json").write_text(json.dumps(description | {"intensity": rules}))
        return run_other("winding", known, "--out", tmp_path / "out", "--frames", frames)

    outcome = winding("window:-900,120 --nodata=-9999")
    assert outcome.code == 0, outcome.err
    (found,) = json.loads((tmp_path / "out/winding.json").read_text())["checkpoints"]
    assert found["frames"]["numbers"][0][0] == pytest.approx(-0.75, abs=0.01)
    refused = {
        ("none",): "00.npy holds int16 values from -9999 to 60, and the encoder was trained on images of 8",
        ("none", "window:0,1"): "of --intensity none and window:0,1: no one rule",
        ("window:\n0",): "of --intensity window:\\n0: no one rule",
    }
    for rules, say in refused.items():
        outcome = winding(*rules)
        assert outcome.code == 2 and say in outcome.err and outcome.err.count("\n") == 1
        assert "with --intensity" not in outcome.err, "this command has no such option"


def test_heads_without_angles_and_nothing_to_look_at_are_refused(tmp_path, spots):
    plain = save_checkpoint(tmp_path / "plain")
    outcome = run_other("winding", plain, "--data", spots, "--out", tmp_path / "out")
    assert outcome.code == 2 and "has no angles" in outcome.err and "torus_m2" in outcome.err
    outcome = run_other("winding", plain, "--out", tmp_path / "out")
    assert outcome.code == 2 and "--data" in outcome.err
