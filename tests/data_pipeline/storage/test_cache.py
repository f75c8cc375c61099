"""The node's cache: entries are whole, the least recently used are removed first, processes share it."""

import multiprocessing
import os
import signal
import subprocess
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from pydantic import ValidationError

from data_pipeline.storage.cache import Cache, CacheConfig
from isotorus.errors import UserError

FORK = multiprocessing.get_context("fork")
MB = 10**6


def put(cache: Cache, key: str, data: bytes) -> None:
    with cache.lock(key), cache.write(key, len(data)) as file:
        file.write(data)


def files(folder: Path) -> list[Path]:
    return list((folder / "entries").glob("*/*"))


def age(folder: Path) -> None:
    """Make all entries look as if they were last used long ago, in the order of the files' times."""
    for file in files(folder):
        status = file.stat()
        os.utime(file, ns=(0, status.st_mtime_ns - 10**13))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(CacheConfig(folder=tmp_path / "cache", size="64MB"))


def test_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert CacheConfig().folder == Path("/fast/isotorus")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert CacheConfig().folder == Path.home() / ".cache/isotorus"
    assert CacheConfig(size="2TB").size == 2 * 10**12
    assert CacheConfig.model_validate_json(CacheConfig(size="1.5GB").model_dump_json()).size == 1.5 * 10**9
    for size in ("much", "10MB", -1):
        with pytest.raises(ValidationError):
            CacheConfig(size=size)


def test_an_entry_is_there_whole_or_not_at_all(cache: Cache) -> None:
    assert cache.read("a", 10, 0, 10) is None
    with pytest.raises(ZeroDivisionError), cache.write("a", 10) as file:
        file.write(b"01234")
        _ = 1 / 0
    assert not files(cache.folder)
    put(cache, "a", b"0123456789")
    assert cache.read("a", 10, 2, 5) == b"234"
    assert cache.read("a", 11, 2, 5) is None
    put(cache, "a", b"another")
    assert cache.load("a") == b"another"
    cache.drop("a")
    assert cache.load("a") is None and cache.pin("a", 7) is None


def test_the_least_recently_used_entries_make_room(cache: Cache) -> None:
    for number in range(7):
        put(cache, f"{number}", bytes([number]) * 9 * MB)
    assert len(files(cache.folder)) == 7
    age(cache.folder)
    assert cache.read("0", 9 * MB, 0, 1) == b"\0"
    put(cache, "new", bytes(9 * MB))
    there = [number for number in range(7) if cache.read(f"{number}", 9 * MB, 0, 1) == bytes([number])]
    assert there == [0, 3, 4, 5, 6]  # one more than needed, so that not every write has to remove one


def test_a_pinned_entry_stays(cache: Cache) -> None:
    put(cache, "pinned", bytes(9 * MB))
    path = cache.pin("pinned", 9 * MB)
    age(cache.folder)
    for number in range(20):
        put(cache, f"{number}", bytes(9 * MB))
    assert path is not None and path.stat().st_size == 9 * MB
    assert sum(file.stat().st_size for file in files(cache.folder)) <= 64 * MB


def test_what_cannot_fit_is_said(cache: Cache) -> None:
    with pytest.raises(UserError, match=r"65000000 bytes do not fit .* of 64000000 bytes.*larger"):
        put(cache, "a", bytes(65 * MB))
    for number in range(3):
        put(cache, f"{number}", bytes(20 * MB))
        cache.pin(f"{number}", 20 * MB)
    with pytest.raises(UserError, match=r"is full of what running processes use.*larger than 64000000 bytes"):
        put(cache, "a", bytes(5 * MB))


def write_slowly(folder: Path, ready: Event) -> None:
    cache = Cache(CacheConfig(folder=folder))
    with cache.lock("a"), cache.write("a", 9 * MB) as file:
        file.write(b"half")
        ready.set()
        signal.pause()


def test_a_killed_process_leaves_neither_lock_nor_half_an_entry(cache: Cache) -> None:
    ready = FORK.Event()
    process = FORK.Process(target=write_slowly, args=(cache.folder, ready))
    process.start()
    assert ready.wait(30)
    with cache.lock("a", wait=False) as held:
        assert not held
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert cache.read("a", 9 * MB, 0, 1) is None
    (part,) = files(cache.folder)
    os.utime(part, (0, 0))
    for number in range(20):
        put(cache, f"{number}", bytes(9 * MB))
    assert not part.exists()
    put(cache, "a", b"1" * 9 * MB)
    assert cache.read("a", 9 * MB, 0, 1) == b"1"


def test_a_process_forked_under_a_lock_does_not_keep_it(cache: Cache) -> None:
    """The fork has the same open file, and must not keep the lock when its holder is killed."""
    ready = FORK.Event()

    def hold_and_fork() -> None:
        with cache.lock("a"):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            ready.set()
            signal.pause()

    process = FORK.Process(target=hold_and_fork)
    process.start()
    assert ready.wait(30) and process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    end = time.monotonic() + 10
    held = False
    while not held and time.monotonic() < end:
        with cache.lock("a", wait=False) as held:
            time.sleep(0.01)
    assert held


def test_a_damaged_or_missing_ledger_is_made_again(cache: Cache) -> None:
    for number in range(7):
        put(cache, f"{number}", bytes(9 * MB))
    for damage in (b"", b"\xff" * 40, b"-5"):
        (cache.folder / "ledger").write_bytes(damage)
        put(cache, "new", bytes(9 * MB))
        assert sum(file.stat().st_size for file in files(cache.folder)) <= 64 * MB


def test_what_is_being_written_counts_in_full(cache: Cache) -> None:
    for number in range(6):
        put(cache, f"{number}", bytes(9 * MB))
    with cache.write("slow", 9 * MB) as file:
        (cache.folder / "ledger").unlink()  # so that the files themselves are counted
        put(cache, "quick", bytes(9 * MB))
        file.write(bytes(9 * MB))
    assert sum(entry.stat().st_size for entry in files(cache.folder)) <= 64 * MB


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc/cache")):
        with pytest.raises(UserError, match=rf"^using the cache {folder}: [^\n]*$"):
            put(Cache(CacheConfig(folder=folder)), "a", b"")


def test_a_full_disk_is_one_line_and_keeps_what_is_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        cache = Cache(CacheConfig(folder=disk))
        put(cache, "small", b"1" * 500_000)
        with pytest.raises(
            UserError, match=rf"^using the cache {disk}: No space left.*free some space[^\n]*$"
        ):
            put(cache, "large", b"1" * 2_000_000)
        assert cache.read("small", 500_000, 0, 1) == b"1"
        put(cache, "other", b"2" * 300_000)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
