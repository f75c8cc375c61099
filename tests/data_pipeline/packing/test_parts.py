"""`pack --part`: several processes write the shards of one data set, and it is that of one process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.__main__ import main
from data_pipeline.dataset_writer.staging import STAGING
from isotorus.errors import UserError

NAMES = ("--labels", "folder", "--val-fraction", "0.3", "--shard-size", "20KB", "--workers", "1")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pack(source: Path, dest: Path, *more: str) -> None:
    assert main(["pack", str(source), str(dest), *NAMES, *more]) == 0


def test_parts_make_the_set_of_one_process(labelled_folder: Path, tmp_path: Path):
    pack(labelled_folder, tmp_path / "one")
    command = [sys.executable, "-m", "data_pipeline", "pack", str(labelled_folder), str(tmp_path / "many")]
    parts = [subprocess.Popen([*command, *NAMES, "--part", f"{i}/3"]) for i in range(3)]
    os.kill(parts[2].pid, signal.SIGKILL)
    assert [part.wait() for part in parts] == [0, 0, -signal.SIGKILL]
    assert not list((tmp_path / "many").rglob("dataset.json"))
    pack(labelled_folder, tmp_path / "many", "--part", "2/3")
    finished = contents(tmp_path / "many" / STAGING)
    assert len([name for name in finished if name.endswith(".tar")]) > 3
    for name in finished:
        if name.endswith(".tar"):  # to see that publishing writes none of them again
            os.utime(tmp_path / "many" / STAGING / name, ns=(0, 0))
    pack(labelled_folder, tmp_path / "many")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert {path.stat().st_mtime for path in (tmp_path / "many").rglob("*.tar")} == {0}


def test_publishing_writes_what_no_part_has(labelled_folder: Path, tmp_path: Path):
    pack(labelled_folder, tmp_path / "one")
    pack(labelled_folder, tmp_path / "many", "--part", "1/2")
    pack(labelled_folder, tmp_path / "many")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--part", "1/2", "--channels", "3"], "was begun with other images, labels or options"),
        (["--part", "1/2", "--test-fraction", "0.2"], "was begun with other images, labels or options"),
        (["--part", "2/2"], "expected I/N with I from 0 to N - 1"),
        (["--part", "1/2", "--append"], "--part is for a new data set"),
    ],
)
def test_parts_of_unequal_options_are_refused(
    labelled_folder: Path, tmp_path: Path, more: list[str], message: str
):
    pack(labelled_folder, tmp_path / "many", "--part", "0/2")
    before = contents(tmp_path / "many")
    with pytest.raises(UserError, match=message):
        main(["pack", str(labelled_folder), str(tmp_path / "many"), *NAMES, *more])
    assert contents(tmp_path / "many") == before
