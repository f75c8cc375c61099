"""What a user may get wrong: one line on stderr, exit code 2, and finished work kept."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import pool
from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from isotorus.errors import UserError, exit_code
from tests.data_pipeline.pictures import save_pictures

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Return a function that runs a command, which must be refused, and returns its one line."""

    def run(*arguments: object) -> str:
        assert exit_code(lambda: main([str(argument) for argument in arguments])) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_pictures(tmp_path / "images", ["a/1.png", "a/2.png", "b/3.png"])
    return tmp_path / "images"


def test_the_process_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_text("not found")
    command = [sys.executable, "-m", "data_pipeline", "pack", tmp_path / "images", tmp_path / "set"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_missing_or_empty_source(refused: Refused, tmp_path: Path) -> None:
    assert "no folder" in refused("pack", tmp_path / "nowhere", tmp_path / "set")
    (tmp_path / "empty/deep").mkdir(parents=True)
    (tmp_path / "empty/readme.txt").touch()
    assert "holds no images" in refused("pack", tmp_path / "empty", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_no_usable_image_at_all(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "images" / name).write_text("not found")
    line = refused("pack", tmp_path / "images", tmp_path / "set")
    assert "no usable image" in line and "2 files" in line and "a.png: not an image" in line
    assert not (tmp_path / "set/dataset.json").exists()


def test_what_the_refusal_of_all_images_advises_is_then_done_with_any_further_options(
    refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "ct").mkdir()
    for name in ("p1-a", "p1-b", "p2-a"):
        np.save(tmp_path / "ct" / f"{name}.npy", np.arange(-500, 524, dtype=np.int16).reshape(32, 32))
    command = ["pack", tmp_path / "ct", tmp_path / "set"]
    line = refused(*command)
    assert "--intensity window:-500,523" in line and (tmp_path / "set/skipped.txt").exists()
    rule, groups = ("--intensity", "window:-500,523"), ("--group-pattern", "(p[0-9])")
    assert main([str(argument) for argument in (*command, *rule, *groups)]) == 0
    assert len(Dataset(tmp_path / "set")) == 3
    assert not (tmp_path / "set/skipped.txt").exists(), "all images are packed now"


def test_strict_publishes_nothing_and_without_it_nothing_is_done_twice(
    refused: Refused, images: Path, tmp_path: Path
) -> None:
    (images / "a/cut.png").write_bytes((images / "a/1.png").read_bytes()[:-300])
    (images / "b/text.png").write_text("not found")
    line = refused("pack", images, tmp_path / "set", "--strict")
    assert "2 files cannot be packed" in line and "a/cut.png" in line
    assert not list((tmp_path / "set").glob("*.tar")) and not (tmp_path / "set/dataset.json").exists()
    shard = next((tmp_path / "set/.packing").glob("*.tar")).stat().st_ino
    assert main(["pack", str(images), str(tmp_path / "set")]) == 0
    assert (tmp_path / "set/shard-000000.tar").stat().st_ino == shard


def test_two_images_with_one_key(refused: Refused, images: Path, tmp_path: Path) -> None:
    save_pictures(images, ["a/1.jpg"])
    line = refused("pack", images, tmp_path / "set")
    assert "a/1.jpg and a/1.png" in line and "same key" in line


def test_images_outside_of_any_class_folder(refused: Refused, images: Path, tmp_path: Path) -> None:
    save_pictures(images, ["loose.png"])
    assert "loose.png" in refused("pack", images, tmp_path / "set", "--labels", "folder")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("image,label\na/1.png,x\ngone.png,y\nlost.png,y\n", "2 of the 3 files"),
        ("image,label\na/1.png,x\ngone.png,y\nlost.png,y\n", "first: gone.png"),
        ("imgae,label\na/1.png,x\n", "did you mean 'imgae'"),
        ("image,class\na/1.png,x\n", "no column 'label'"),
        ("image,label\na/1.png,x,extra\n", "row 2"),
        ("image,label\na/1.png\n", "row 2"),
        ("image,label\n", "lists no images"),
        ("", "is empty"),
        ("image,label\na/1.png,x\na/1.png,y\n", "line 2 and line 3 both name 'a/1.png'"),
        ("image,label\n../images/a/1.png,x\n", "inside it"),
        ("image,label\n/etc/hostname,x\n", "inside it"),
        ("image,label\n\xff\xfe,x\n", "UTF-8"),
    ],
)
def test_a_csv_that_does_not_fit(
    refused: Refused, images: Path, tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    assert expected in refused("pack", images, tmp_path / "set", "--labels", tmp_path / "labels.csv")


def test_a_csv_that_is_not_there(refused: Refused, images: Path, tmp_path: Path) -> None:
    line = refused("pack", images, tmp_path / "set", "--labels", tmp_path / "lables.csv")
    assert "lables.csv" in line and "No such file" in line


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--val-fraction", "0.7", "--test-fraction", "0.3"], "less than 1"),
        (["--val-fraction", "-0.1"], "less than 1"),
        (["--val-fraction", "1e-9"], "val set would be empty"),
        (["--shard-size", "much"], "256MB"),
        (["--workers", "0"], "whole number"),
        (["--lables", "folder"], "--lables"),
        (["--group-column", "patient"], "--labels"),
        (["--channels", "0"], "whole number"),
    ],
)
def test_impossible_options(
    refused: Refused, images: Path, tmp_path: Path, options: list[str], expected: str
) -> None:
    assert expected in refused("pack", images, tmp_path / "set", *options)


def test_a_destination_that_holds_something_else(refused: Refused, images: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/thesis.tex").write_text("years of work")
    assert "is not empty" in refused("pack", images, tmp_path / "set")
    assert (tmp_path / "set/thesis.tex").read_text() == "years of work"
    assert "in the way" in refused("pack", images, tmp_path / "set/thesis.tex")
    assert "in the way" in refused("pack", images, tmp_path / "set/thesis.tex/set")


def test_a_destination_in_a_store(refused: Refused, images: Path) -> None:
    assert "copy it to the store" in refused("pack", images, "s3://bucket/set")


def test_a_class_name_that_is_no_text(refused: Refused, images: Path, tmp_path: Path) -> None:
    (images / "a").rename(images / os.fsdecode(b"caf\xe9"))
    assert "rename that class" in refused("pack", images, tmp_path / "set", "--labels", "folder")


def test_a_destination_of_another_plan(refused: Refused, images: Path, tmp_path: Path) -> None:
    assert main(["pack", str(images), str(tmp_path / "set")]) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "set").iterdir()}
    assert "already holds" in refused("pack", images, tmp_path / "set", "--labels", "folder")
    assert "is not empty" in refused("pack", images, tmp_path / "set", "--val-fraction", "0.5")
    assert {file: file.read_bytes() for file in (tmp_path / "set").iterdir()} == before


def test_a_half_written_destination_of_another_plan(refused: Refused, images: Path, tmp_path: Path) -> None:
    (images / "text.png").write_text("not found")
    refused("pack", images, tmp_path / "set", "--strict")
    (images / "text.png").unlink()
    line = refused("pack", images, tmp_path / "set")
    assert "unfinished packing of other images" in line


def test_an_unwritable_destination(refused: Refused, images: Path) -> None:
    line = refused("pack", images, "/proc/set")
    assert "packing into /proc/set" in line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(options, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_keeps_what_is_finished(refused: Refused, tmp_path: Path, small_disk: Path) -> None:
    save_pictures(tmp_path / "images", [f"{i:03d}.bmp" for i in range(80)])  # 6 kB each
    pack = ["pack", tmp_path / "images", small_disk / "set", "--shard-size", "100KB", "--workers", "1"]
    filler = small_disk / "filler"
    filler.write_bytes(bytes(700_000))
    assert "No space left" in refused(*pack)
    records = (small_disk / "set/.packing").glob("shard-*.json")  # written last
    finished = {record.with_suffix(".tar").stat().st_ino for record in records}
    assert finished
    filler.unlink()
    assert main([str(argument) for argument in pack]) == 0
    assert finished <= {file.stat().st_ino for file in (small_disk / "set").glob("*.tar")}
    assert len(Dataset(small_disk / "set")) == 80


def _end_abruptly(task: int) -> None:
    os._exit(9)


def test_a_worker_killed_by_the_system_ends_in_one_line() -> None:
    with pytest.raises(UserError, match="a process was killed while packing"):
        pool.run(_end_abruptly, [1, 2], 2, "packing", 2)


def test_reading_what_is_no_data_set(refused: Refused, images: Path, tmp_path: Path) -> None:
    for command in ("info", "verify"):
        assert "no such folder" in refused(command, tmp_path / "nowhere")
        assert "not a packed data set" in refused(command, images)
    assert main(["pack", str(images), str(tmp_path / "set")]) == 0
    (tmp_path / "set/dataset.json").write_text('{"format": 2}')
    assert "damaged" in refused("info", tmp_path / "set")
    (tmp_path / "set/dataset.json").write_bytes(b"\xff\x00")
    assert "damaged" in refused("info", tmp_path / "set")


def test_a_data_set_with_a_split_names_its_sets(images: Path, tmp_path: Path) -> None:
    save_pictures(images, [f"{i}.png" for i in range(20)])
    assert (
        main(["pack", str(images), str(tmp_path / "sets"), "--val-fraction", ".5", "--allow-duplicates"]) == 0
    )
    with pytest.raises(Exception, match=f"holds the sets train, val: .* {tmp_path}{os.sep}sets{os.sep}train"):
        Dataset(tmp_path / "sets")
