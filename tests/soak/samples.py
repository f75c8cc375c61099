"""What processes and folders hold at one moment."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.launch.launched import command_line


def sample(processes: list[psutil.Process], run: Path) -> dict[str, Any]:
    """Return memory, open files and number of processes by role, and the numbers of files by place."""
    found: dict[str, list[tuple[int, int, float]]] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            age = process.create_time()
            found.setdefault(role(process), []).append((process.memory_info().rss, process.num_fds(), age))
    return {
        "processes": {name: len(each) for name, each in sorted(found.items())},
        "rss_mb": {
            name: [round(rss / 2**20, 1) for rss, _, _ in each] for name, each in sorted(found.items())
        },
        "open_files": {name: [files for _, files, _ in each] for name, each in sorted(found.items())},
        "born": {name: [round(born) for _, _, born in each] for name, each in sorted(found.items())},
        "files": {
            "run folder": _count(run, without="logs"),
            "run folder, logs": _count(run / "logs"),
            "/tmp": _count(Path("/tmp")),
            "/dev/shm": _count(Path("/dev/shm")),
        },
    }


def role(process: psutil.Process) -> str:
    """Return what a process is for."""
    words = command_line(process)
    if is_rank(words):
        parent = process.parent()
        return "loader" if parent and is_rank(command_line(parent)) else "rank"
    if words[1:4] == ["-m", "launch", "torchrun"]:
        return "launcher"
    if words and words[0].endswith("ssh"):
        return "ssh"
    return "agent" if "launch" in " ".join(words[:6]) else "others"


def is_rank(words: list[str]) -> bool:
    """Return whether a command line is that of a rank, which its loaders have too."""
    return words[3:4] == ["pretrain"]


def _count(folder: Path, without: str = "") -> int:
    return sum(1 for _ in _files(folder, without))


def _files(folder: Path, without: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name == without:
                continue
            if path.is_dir() and not path.is_symlink():
                yield from _files(path, "")
            else:
                yield path
