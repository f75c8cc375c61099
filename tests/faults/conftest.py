"""An undisturbed run to compare with, small disks and quotas, and the cleaning up after a test."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.distributed.runs import losses, train
from tests.recipe import write_recipe

STEPS = ("steps=12", "engine.deterministic=true")


@pytest.fixture(scope="session")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Return the losses of 12 uninterrupted steps on 2 ranks."""
    folder = tmp_path_factory.mktemp("whole")
    done = train(2, write_recipe(shards, folder), *STEPS)
    assert done.returncode == 0, done.stderr
    return losses(folder / "runs/tiny")


def command_or_skip(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{' '.join(map(str, command[:2]))} is not permitted here: {done.stderr.strip()}")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts a file system in a folder of this test, with `mount`'s arguments."""
    folders: list[Path] = []

    def mount(folder: Path, *arguments: str | Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            command_or_skip("mount", *arguments, folder)
        except FileNotFoundError as error:
            pytest.skip(f"there is no {error.filename}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def quota(tmp_path: Path, mounted: Callable[..., Path]) -> Callable[[int], Path]:
    """Return a folder with a quota in bytes, on a separate disk with enough room."""

    def limited(limit: int) -> Path:
        image = tmp_path / "disk"
        with image.open("wb") as file:
            file.truncate(128 * 2**20)
        try:
            command_or_skip("mkfs.btrfs", "-q", image)
            disk = mounted(tmp_path / "quota", "-t", "btrfs", "-o", "loop", image)
            command_or_skip("btrfs", "quota", "enable", disk)
            command_or_skip("btrfs", "subvolume", "create", disk / "ours")
            command_or_skip("btrfs", "qgroup", "limit", str(limit), disk / "ours")
        except FileNotFoundError as error:
            pytest.skip(f"there is no {error.filename} (Debian: btrfs-progs)")
        return disk / "ours"

    return limited


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Kill the processes that a failed test has left running."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child not in before]
    for child in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=20)
