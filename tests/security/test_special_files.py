"""Named pipes, sockets, devices and links in a folder of images are left out and counted, never opened."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.__main__ import main
from data_pipeline.storage.folders import walk
from isotorus.errors import UserError, exit_code
from tests.data_pipeline.pictures import save_pictures

pytestmark = pytest.mark.timeout(60)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # the address of a socket has at most 107 bytes
        made.bind(path.name)
        os.chdir(here)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "named pipe": (os.mkfifo, "1 named pipe"),
    "socket": (a_socket, "1 socket"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "1 device"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "1 link that leads nowhere"),
    "circle of links": (lambda path: path.symlink_to(path.name), "1 link that leads nowhere"),
    "folder": (lambda path: path.mkdir(), ""),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_pictures(tmp_path / "photos", ["good.png"])
    return tmp_path / "photos"


def pack(source: Path, *options: str) -> int:
    dest = source.with_name("packed")
    return exit_code(lambda: main(["pack", str(source), str(dest), "--workers", "1", *options]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.png", "readme"])
def test_what_is_no_file_is_left_out_and_counted(kind: str, name: str, source: Path, capsys):
    make, said = KINDS[kind]
    make(source / name)
    assert pack(source) == 0
    out, err = capsys.readouterr()
    assert err == "" and said in out.splitlines()[-1]
    skipped = source.with_name("packed") / "skipped.txt"
    assert skipped.exists() == bool(said and name == "a.png")
    assert not skipped.exists() or skipped.read_text().startswith("a.png\tno regular file but a ")
    assert pack(source) == 0 and capsys.readouterr().out.startswith("already packed: 1 images")


def test_a_table_may_name_what_is_no_file(source: Path, tmp_path: Path, capsys):
    os.mkfifo(source / "pipe.png")
    (tmp_path / "table.csv").write_text("image,label\ngood.png,a\npipe.png,b\n")
    assert pack(source, "--labels", str(tmp_path / "table.csv")) == 0
    assert "1 named pipe" in capsys.readouterr().out.splitlines()[-1]


def test_a_table_that_is_a_pipe_is_refused(source: Path, tmp_path: Path, capsys):
    os.mkfifo(tmp_path / "table.csv")
    assert pack(source, "--labels", str(tmp_path / "table.csv")) == 2
    assert "no regular file" in capsys.readouterr().err


def test_each_real_folder_is_read_once(tmp_path: Path, capsys):
    source = tmp_path / "photos"
    save_pictures(source, ["b/1.png", "c/2.png", ".thumbnails/3.png"])
    save_pictures(tmp_path / "elsewhere", ["4.png"])
    (source / "a").symlink_to("b")  # comes before the folder itself
    (source / "c/up").symlink_to("..")
    (source / "c/out").symlink_to(tmp_path / "elsewhere")
    (source / "c/again").symlink_to(tmp_path / "elsewhere")
    (source / "round").symlink_to("round")
    (source / "above").symlink_to("/")
    visited = [visit.path.resolve() for visit in walk(source) if visit.files]
    assert len(visited) == len({*visited}) and tmp_path not in visited
    assert pack(source) == 0
    out = capsys.readouterr().out
    assert out.startswith("packed: 3 images")
    for said in (
        "1 hidden folder",
        "3 links to folders that are read elsewhere",
        "1 link to a folder around it",
    ):
        assert said in out.splitlines()[-1]


def test_a_file_that_became_a_pipe_is_one_line(source: Path):
    from data_pipeline.packing import listing, samples
    from data_pipeline.packing.listing import Item

    size = (source / "good.png").stat().st_size
    (source / "good.png").unlink()
    os.mkfifo(source / "good.png")
    with pytest.raises(UserError, match="no regular file but a named pipe"):
        samples._read(source, Item("good.png", size))
    assert listing._stat(source, "good.png") == (0, 0, "named pipe")


def test_an_index_counts_them_and_cleans_up_after_a_killed_one(source: Path, tmp_path: Path, capsys):
    assert pack(source) == 0
    tars = source.with_name("packed")
    os.mkfifo(tars / "pipe.tar")
    (tars / ".hidden").mkdir()
    command = ["index", str(tars), str(tmp_path / "made"), "--workers", "1"]
    assert main(command) == 0
    assert "1 named pipe" in capsys.readouterr().out.splitlines()[-1]
    (tmp_path / "made/.packing").mkdir()  # as a command that is killed while it clears it leaves it
    (tmp_path / "made/.packing/index-0.npy").write_bytes(b"half")
    assert main(command) == 0 and "already indexed" in capsys.readouterr().out
    assert not (tmp_path / "made/.packing").exists()


@pytest.mark.parametrize("name", ["dataset.json", "index.npy", "shards.npy", "shard-000000.tar"])
def test_a_pipe_in_a_data_set_of_others_is_not_waited_for(name: str, source: Path, capsys):
    assert pack(source) == 0
    made = source.with_name("packed")
    (made / name).unlink()
    os.mkfifo(made / name)
    capsys.readouterr()
    for command in (["info", str(made)], ["verify", str(made), "--workers", "1"]):
        code = exit_code(lambda: main(command))  # noqa: B023
        out, err = capsys.readouterr()
        assert code in (1, 2) and "Traceback" not in out + err, err
