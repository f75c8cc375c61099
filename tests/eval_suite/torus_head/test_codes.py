"""`eval_suite codes`: bins of angles group classes that the angles separate, the published code does not."""

import json
import re
from pathlib import Path

import pytest
import torch

from data_pipeline.dataset.index import Dataset
from eval_suite.features.representation import pretrained
from eval_suite.inputs import find
from pretrain.geometry import codes
from tests.eval_suite.eval_samples import run_other, save_checkpoint
from tests.eval_suite.torus_samples import pack_spots, save_known_torus


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, str, Path]:
    folder = tmp_path_factory.mktemp("codes")
    spots = pack_spots(folder / "spots", 120)
    known, plain = save_known_torus(folder / "known"), save_checkpoint(folder / "plain")
    out = folder / "out"
    outcome = run_other("codes", known, plain, "--data", spots, "--out", out, "--bins", "2,4")
    assert outcome.code == 0, outcome.err
    return json.loads((out / "codes.json").read_text()), (out / "codes.html").read_text(), outcome.out, folder


def test_codes_are_those_of_the_embeddings(measured):
    found, _, _, folder = measured
    known, plain = found["checkpoints"]
    assert [row["name"] for row in known["codes"]] == [
        "published winding code",
        "FSQ 8×5×5×5",
        "2 bins of 4 angles",
        "4 bins of 4 angles",
    ]
    assert [row["cells"] for row in known["codes"]] == [100, 1000, 16, 256]
    assert [row["name"] for row in plain["codes"]] == ["published winding code", "FSQ 8×5×5×5"]
    (checkpoint,) = find.find([str(folder / "known")])
    data = Dataset(str(folder / "spots"))
    head = pretrained(checkpoint)
    from eval_suite.torus_head.winding import angles, load

    digits = codes.angular_bins(angles(head, load(data, head, 1000, 0), 64), 4)
    assert known["codes"][3]["occupancy"]["used"] == len(torch.unique(digits, dim=0))
    shared = codes.collisions(digits, 256, torch.tensor(data.labels.tolist()))
    assert known["codes"][3]["collisions"] == pytest.approx(shared._asdict())


def test_the_table_shows_which_claim_holds(measured):
    found, page, terminal, _ = measured
    published, scalars, two, four = found["checkpoints"][0]["codes"]
    assert published["occupancy"]["used"] < 100 < found["checkpoints"][0]["images"]
    assert published["collisions"]["within"] < 2 * published["collisions"]["between"]
    # The classes are quarters of the first angle.
    assert four["collisions"]["within"] > 4 * four["collisions"]["between"]
    assert two["stable"][0] > 0.9 > 0.5 > published["stable"][0]
    assert scalars["stable"][0] > scalars["stable"][1]
    assert "rounded down (⌊·⌋) as its published text says" in page and "truncates toward zero" in page
    assert "does not see classes" in page and "times as often" in page
    assert "published winding code" in terminal and "2 bins of 4 angles" in terminal
    assert not re.search("https?:", page.replace("http://www.w3.org", ""))


@pytest.mark.parametrize(
    ("arguments", "say"),
    [
        (["--bins", "1"], "2 or more"),
        (["--levels", "8,x"], "whole numbers"),
        (["--levels", ",".join(["3"] * 30)], "at most 16 components"),
        (["--workers", "-1"], "0 or more"),
    ],
)
def test_what_makes_no_code_is_refused(measured, arguments, say):
    folder = measured[3]
    outcome = run_other(
        "codes", folder / "known", "--data", folder / "spots", "--out", folder / "no", *arguments
    )
    assert outcome.code == 2 and say in outcome.err and outcome.err.strip().count("\n") == 0
