"""A long evaluation says what it does, on standard error only."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval_suite import progress


def test_lines_name_the_checkpoint_the_work_and_the_images(
    tmp_path: Path, run: Path, data, command: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "EVERY", 0.002)
    quick = ["--metrics", "probe,rank", "--baselines", "pixels", "--out", tmp_path, "--batch-size", "1"]
    outcome = command(run, *data, *quick, "--json")
    assert outcome.code == 0 and json.loads(outcome.out)
    lines = [line for line in outcome.err.splitlines() if ", step 7: " in line]
    for said in ("embedding train, ", " of 44 images", "linear probe of pretrained", "drawing the report"):
        assert any(said in line for line in lines), (said, lines)


def test_nothing_is_said_after_the_work(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with progress.shown():
        progress.evaluating("a, step 1 (1 of 2)")
        progress.doing("k-NN of pixels")
        assert progress.line().startswith("a, step 1 (1 of 2): k-NN of pixels (")
        progress.evaluating("")
        assert progress.line() == ""
    with progress.shown(enabled=False):
        progress.doing("work of another process")
    progress.evaluating("")
    assert "another process" not in capsys.readouterr().err
