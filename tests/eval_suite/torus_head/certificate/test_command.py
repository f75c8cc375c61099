"""`eval certificate`: its files, its page, its section of the report, and what it refuses in one line."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.report import certified
from tests.eval_suite.eval_samples import Outcome, pack, run_command, run_other, save_checkpoint
from tests.eval_suite.torus_head.certificate.known_heads import pack_spots, save_head


class Made(NamedTuple):
    run: Path
    outcome: Outcome
    numbers: dict[str, Any]
    page: str
    spots: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The certificate of a known torus in a run that was evaluated before, beside a run without angles."""
    folder = tmp_path_factory.mktemp("certificate")
    spots = pack_spots(folder / "spots", 60, grey=1)
    run = folder / "<b>known"
    save_head(run / "checkpoints/step_00000007", "identity")
    (run / "checkpoints/step_00000007/COMPLETE").touch()
    options = ["--metrics", "rank", "--baselines", "pixels"]
    assert run_command(run, "--train", spots, "--val", spots, *options).code == 0
    plain = save_checkpoint(folder / "plain<i>")
    outcome = run_other(
        *("certificate", run, "--data", spots, "--against", plain, "--images", 61, "--orbits", 1)
    )
    assert outcome.code == 0, outcome.err
    home = run / "eval/7"
    numbers = json.loads((home / "certificate.json").read_text())
    return Made(run, outcome, numbers, (home / "certificate.html").read_text(), spots)


def test_the_certificate_has_the_lines_and_those_of_the_others_beside_them(made):
    found = made.numbers
    assert found["certified"] is True and found["inputs"]["actions"] == ["rotation", "hue"]
    assert found["windings"]["images"] == 61 and found["windings"]["right_share"] > 0.95
    assert found["windings"]["det_share"] >= found["windings"]["right_share"]
    assert 0 < found["windings"]["margin"] < 3.2
    assert found["angles"]["verdict"] == "flat torus T²" and found["angles"]["error_rate"]["draws"] > 0
    # The two pairs of numbers of this embedding turn on circles of nearly the same radius.
    assert found["orbits"]["tori"] == found["orbits"]["images"] == 1
    assert set(found["equivariance_error"]) == {"rotation", "hue"}
    assert all(error["median"] < error["p90"] < 5 for error in found["equivariance_error"].values())
    assert found["uniformity_over_null"] < 5
    assert set(found["beside"]) == {"untrained", "pixels", "plain<i>"}
    untrained = found["beside"]["untrained"]
    assert not untrained["certified"] and untrained["windings"]["right_share"] < 0.5
    assert untrained["orbits"]["tori"] == found["beside"]["pixels"]["orbits"]["tori"] == 0
    assert set(found["beside"]["plain<i>"]) == {"orbits"}
    assert "Training made the angles follow the image" in found["added"]
    assert any("grey images have no hue" in note for note in found["notes"])


def test_the_page_is_one_file_and_escapes_names(made):
    page = made.page
    assert "A torus that is there: its two angles turn with rotation and hue" in page
    assert "&lt;b&gt;known" in page and "<b>known" not in page and "plain<i>" not in page
    assert "default-src 'none'" in page
    assert not re.search("https?:", page.replace("http://www.w3.org", ""))
    assert page.count("<image href") == 2 * 12  # an image on the circle of each action
    assert page.count('class="way"') == 2 and "Not drawn" not in page
    assert made.numbers["headline"] in made.outcome.out and "certificate.html" in made.outcome.out


def test_the_report_begins_with_it_and_keeps_it_when_it_is_made_again(made):
    page = made.run / "eval/7/report.html"
    text = page.read_text()
    section = text.index(made.numbers["headline"])
    assert text[text.index("<body>") : section].count("<section>") == 1  # its own
    assert "first section of" in made.outcome.out
    options = ["--train", made.spots, "--val", made.spots, "--metrics", "rank", "--baselines", "pixels"]
    written = page.stat().st_mtime_ns
    assert run_command(made.run, *options).code == 0
    assert page.stat().st_mtime_ns == written  # it is sealed again, so nothing was computed again
    assert run_command(made.run, *options, "--force").code == 0
    assert page.stat().st_mtime_ns > written and made.numbers["headline"] in page.read_text()


def test_a_strangers_certificate_is_not_believed(made, tmp_path):
    folder = made.run / "checkpoints/step_00000007"
    checkpoint = Checkpoint(folder / "encoder.safetensors", folder / "encoder.json", made.run)
    assert certified.read(made.run / "eval/7", checkpoint)["certified"]
    copy = tmp_path / "7"
    shutil.copytree(made.run / "eval/7", copy)
    changed = json.loads((copy / "certificate.json").read_text())
    changed["headline"] = "anything"
    (copy / "certificate.json").write_text(json.dumps(changed))
    assert certified.read(copy, checkpoint) is None


def test_winding_turns_images_as_the_certificate_does(made, tmp_path):
    out = tmp_path / "winding"
    outcome = run_other(
        *("winding", made.run, "--data", made.spots, "--out", out, "--images", 12, "--paths", "rotation,hue")
    )
    assert outcome.code == 0, outcome.err
    (found,) = json.loads((out / "winding.json").read_text())["checkpoints"]
    assert [found["paths"][name]["vector"] for name in ("rotation", "hue")] == [[1, 0], [0, 1]]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sets that cannot be certified on, and checkpoints that cannot be certified."""
    folder = tmp_path_factory.mktemp("refused")
    without = save_head(folder / "without", "identity", actions=())
    one_channel = save_head(folder / "one-channel", "identity", actions=("rotation",))
    described = json.loads((one_channel / "encoder.json").read_text())
    described |= {"channels": 1, "mean": [0.5], "std": [0.2]}
    (one_channel / "encoder.json").write_text(json.dumps(described))
    return {
        "SPOTS": pack_spots(folder / "spots", 20),
        "GREY": pack_spots(folder / "grey", 0, grey=20),
        "WITHOUT": without,
        "ONE_CHANNEL": one_channel,
        "KNOWN": save_head(folder / "known", "identity"),
        "PLAIN": save_checkpoint(folder / "plain"),
        "EMPTY": folder,
        "NOISE": pack(folder / "noise", ["", ""], seed=0),
    }


@pytest.mark.parametrize(
    ("arguments", "say"),
    [
        (["WITHOUT", "--data", "SPOTS"], "name actions to hold it against: --actions rotation hue"),
        (["KNOWN", "--data", "SPOTS", "--actions", "rotation,hue", "shift_x"], "known has 2 angles"),
        (["KNOWN", "--data", "SPOTS", "--actions", "rotations"], "did you mean rotation?"),
        (["KNOWN", "--data", "SPOTS", "--actions", "hue", "hue"], "names hue twice"),
        (
            ["KNOWN", "--data", "SPOTS", "--actions", "hue", "--order", "1", "2"],
            "one number for each action (hue)",
        ),
        (["KNOWN", "--data", "SPOTS", "--order", "0"], "1 or more"),
        (["ONE_CHANNEL", "--data", "SPOTS", "--actions", "hue"], "1 channels, which have no hue"),
        (["PLAIN", "--data", "SPOTS"], "has no angles"),
        (["KNOWN", "--data", "SPOTS"], "fewer than the 200 asked for"),
        (["KNOWN", "--data", "NOISE", "--images", "20"], "has 2 images, fewer than the 20"),
        (["KNOWN", "--data", "GREY", "--images", "20"], "grey images have no hue to turn"),
        (["KNOWN", "--data", "SPOTS", "--images", "5"], "20 or more"),
        (["ABSENT", "--data", "SPOTS"], "no such run or checkpoint"),
        (["SPOTS", "--data", "SPOTS"], "neither a run nor a checkpoint"),
        (["KNOWN", "--data", "SPOTS", "--images", "20", "--against", "ABSENT"], "--against ABSENT"),
        (["KNOWN", "--data", "ABSENT"], "ABSENT"),
    ],
)
def test_what_cannot_be_certified_is_one_line(tmp_path, few, arguments, say):
    known = [few.get(argument, argument) for argument in arguments]
    outcome = run_other("certificate", *known, "--out", tmp_path / "out")
    assert outcome.code == 2 and outcome.err.startswith("error: "), outcome.err
    assert outcome.err.count("\n") == 1 and say in outcome.err
    assert not (tmp_path / "out").exists()
