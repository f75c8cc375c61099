"""A log has a line of progress at least every minute, also between steps that are logged."""

import time

import pytest

from pretrain.recording import progress as module


def test_a_log_is_never_silent_for_long(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LONGEST_SILENCE", 0.02)
    progress = module.Progress("mine", start=3, steps=10)
    progress.step = 5
    said, until = "", time.monotonic() + 60
    while "mine 5/10\n" not in said and time.monotonic() < until:
        time.sleep(0.01)
        said += capsys.readouterr().err
    progress.close()
    assert "mine 5/10\n" in said
