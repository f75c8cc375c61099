"""Choices at the end of a grid and fits that did not converge are said, with an option that helps."""

import json
from typing import Any

import pytest

from eval_suite.report.cautions import cautions


def _results(key: str, chosen: float, scores: dict[float, float], *, method: str = "probe") -> dict[str, Any]:
    """Return results of a method that chose one value of a grid with these AUROCs on val."""
    tried = [{key: value, "auroc": score} for value, score in scores.items()]
    found = {key: chosen, "val": tried, "converged": True}
    return {"representations": {"pretrained": {method: found}}}


@pytest.mark.parametrize(
    ("key", "method", "chosen", "scores", "words"),
    [
        ("l2", "probe", 0.01, {0.01: 0.9, 0.1: 0.8, 1.0: 0.7}, ("weakest", "--l2 0.0001,0.001,0.01.")),
        ("l2", "probe", 1.0, {0.01: 0.7, 0.1: 0.8, 1.0: 0.9}, ("strongest", "--l2 1,10,100.")),
        ("k", "knn", 20, {5: 0.7, 10: 0.8, 20: 0.9}, ("largest", "--k 20,40,80.")),
        ("k", "knn", 10, {10: 0.9, 20: 0.8}, ("smallest", "--k 2,5,10.")),
        ("learning_rate", "minibatch_probe", 0.1, {0.01: 0.8, 0.1: 0.9}, ("largest", "no option")),
    ],
)
def test_a_choice_at_the_end_of_its_grid_is_said(key, method, chosen, scores, words):
    (said,) = cautions(_results(key, chosen, scores, method=method))
    assert all(word in said for word in words)
    assert "the pretrained encoder" in said


def test_choices_inside_a_grid_or_on_a_flat_end_are_not_said():
    assert not cautions(_results("l2", 0.1, {0.01: 0.8, 0.1: 0.9, 1.0: 0.7}))
    assert not cautions(_results("l2", 1.0, {0.01: 0.8, 0.1: 0.9, 1.0: 0.9}))
    assert not cautions(_results("l2", 1.0, {1.0: 0.9}))


def test_representations_at_one_end_share_a_sentence():
    found = _results("l2", 1.0, {0.01: 0.7, 0.1: 0.8, 1.0: 0.9})
    found["representations"]["pixels"] = found["representations"]["pretrained"]
    (said,) = cautions(found)
    assert "the pretrained encoder and raw pixels took" in said


def test_a_fit_that_did_not_converge_is_said():
    found = _results("l2", 0.1, {0.001: 0.7, 0.01: 0.8, 0.1: 0.9, 1.0: 0.8})
    found["representations"]["pretrained"]["probe"]["converged"] = False
    assert cautions(found) == [
        "A fit of the linear probe of the pretrained encoder did not converge, so the score is that of its "
        "last step; leave out the weakest strengths: --l2 0.1,1."
    ]


def test_terminal_and_page_say_it_and_the_options_change_the_grids(command, run, data, tmp_path):
    given = (*data, "--metrics", "probe,knn", "--baselines", "", "--out", tmp_path / "out")
    outcome = command(run, *given, "--l2", "1e-3,1", "--k", "1,20")
    assert outcome.code == 0, outcome.err
    assert "note: The k-NN of " in outcome.out and ", add --k " in outcome.out
    assert "The k-NN of " in (tmp_path / "out" / "report.html").read_text()
    measured = json.loads((tmp_path / "out" / "results.json").read_text())["representations"]["pretrained"]
    assert {row["l2"] for row in measured["probe"]["val"]} == {1e-3, 1.0}


@pytest.mark.parametrize("text", ["0", "a", "1e-3,", "-1"])
def test_strengths_that_cannot_be_are_refused(command, run, data, text):
    outcome = command(run, *data, f"--l2={text}")
    assert (outcome.code, outcome.err) == (
        2,
        f"error: --l2 {text}: expected numbers above 0, e.g. --l2 1e-6,1e-5,1e-4\n",
    )
