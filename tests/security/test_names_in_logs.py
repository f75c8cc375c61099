"""Names with escape sequences and line breaks are shown escaped in logs, `info` and progress."""

import json
import logging
from pathlib import Path

import pytest

from data_pipeline.__main__ import main
from data_pipeline.packing import other_pictures
from isotorus.logs import escape_arguments
from tests.data_pipeline.pictures import save_pictures

HOSTILE = "a\x1b]0;pwned\x07\nisotorus report: {} \u202e.png"


def test_arguments_of_a_log_line_are_escaped(caplog: pytest.LogCaptureFixture):
    escape_arguments()
    logging.getLogger("any").warning(
        "%d damaged, first: %s: %s, in %s", 3, HOSTILE, ValueError(HOSTILE), Path("a\nb")
    )
    (record,) = caplog.records
    assert record.getMessage().isprintable() and record.getMessage().startswith("3 damaged, first: a\\x1b]0;")
    assert "in a\\nb" in record.getMessage()


def test_names_in_a_data_set_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_pictures(tmp_path / "photos", ["x/1.png"])
    (tmp_path / "photos/x" / HOSTILE).write_bytes(b"no image")
    (tmp_path / "photos/x/b.\x1b[2Jgif").write_bytes(b"GIF89a")
    assert main(["pack", str(tmp_path / "photos"), str(tmp_path / "made"), "--workers", "1"]) == 0
    description = json.loads((tmp_path / "made/dataset.json").read_text())
    for generation in description["generations"]:
        generation |= {"classes": [HOSTILE], "class_counts": [1], "fingerprint": HOSTILE}
    (tmp_path / "made/dataset.json").write_text(json.dumps(description))
    assert main(["info", str(tmp_path / "made")]) == 0
    assert main(["verify", str(tmp_path / "made"), "--workers", "1"]) == 1
    captured = capsys.readouterr()
    for text in (captured.out + captured.err, (tmp_path / "made/skipped.txt").read_text()):
        assert all(line.replace("\t", "").isprintable() for line in text.splitlines())
        assert not any(line.startswith("isotorus report") for line in text.splitlines())


def test_endings_of_other_pictures_are_escaped():
    assert other_pictures.summary(other_pictures.Counter({".\x1b[2J": 1})).isprintable()
