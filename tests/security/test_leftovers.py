"""What a killed or refused evaluation leaves is removed, and what another one writes just now is not."""

import multiprocessing
import os
from pathlib import Path

import pytest

from eval_suite import results
from isotorus.errors import UserError
from isotorus.files import atomic, remove_leftovers, temporary_folder


def _hold(file: Path, written: object, end: object) -> None:
    with atomic(file) as stream:
        stream.write(b"half")
        written.set()  # type: ignore[attr-defined]
        end.wait(30)  # type: ignore[attr-defined]


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path):
    for name in (".a.npz.123", ".results.json.4", "a.npz", ".notes.2024", ".a.npz.partial", ".a.npz"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".b.npz.7").symlink_to("a.npz")
    context = multiprocessing.get_context("fork")
    written, end = context.Event(), context.Event()
    writer = context.Process(target=_hold, args=(tmp_path / "c.npz", written, end))
    writer.start()
    assert written.wait(30)
    remove_leftovers(tmp_path, ("*.npz", "*.json"))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(
        [".a.npz", ".a.npz.partial", ".b.npz.7", f".c.npz.{writer.pid}", ".notes.2024", "a.npz"]
    )
    end.set()
    writer.join(30)
    assert writer.exitcode == 0 and (tmp_path / "c.npz").read_text() == "half"


def _hold_folder(parent: Path, made: object, end: object) -> None:
    with temporary_folder(parent, "tokens-") as folder:
        (folder / "x.npy").write_bytes(b"tokens")
        made.set()  # type: ignore[attr-defined]
        end.wait(30)  # type: ignore[attr-defined]


def test_folders_of_killed_processes_are_removed(tmp_path: Path):
    """The folder of a living process stays, and so does what this function did not make."""
    context = multiprocessing.get_context("fork")
    (tmp_path / "tokens-mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/in-use.lock").touch()
    (tmp_path / "tokens-link").symlink_to("elsewhere")
    writers, ends = [], []
    for _ in range(2):
        made, end = context.Event(), context.Event()
        writers.append(context.Process(target=_hold_folder, args=(tmp_path, made, end)))
        writers[-1].start()
        ends.append(end)
        assert made.wait(30)
    writers[0].kill()
    writers[0].join(30)
    before = set(tmp_path.iterdir())
    with temporary_folder(tmp_path, "tokens-") as folder:
        assert not list(folder.iterdir())
        (left,) = before - set(tmp_path.iterdir())
        assert not left.exists() and len(list(tmp_path.glob("tokens-*/files/x.npy"))) == 1
    ends[1].set()
    writers[1].join(30)
    assert writers[1].exitcode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"tokens-mine", "elsewhere", "tokens-link"}
    assert (tmp_path / "elsewhere/in-use.lock").exists()


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / f".a.{os.getpid()}").symlink_to("mine")
    with atomic(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "a").read_text() == "new"


def test_a_refused_command_leaves_no_empty_folder(tmp_path: Path):
    with pytest.raises(UserError), results.folder(tmp_path / "deep/out"):
        raise UserError("refused")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError), results.folder(tmp_path / "out"):
        (tmp_path / "out/measured.json").touch()
        raise UserError("refused")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["measured.json"]


def test_two_evaluations_may_use_one_folder(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        pool.map(results.make_folder, [tmp_path / "out"] * 400)
    assert not list((tmp_path / "out").iterdir())
