"""Shards that are deleted, cut or changed, and a store that is slow or fails, during runs of two ranks.

How a reader alone reacts to such a store is tested in tests/data_pipeline/storage/test_s3_faults.py.
"""

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_pipeline.s3_server import S3Server, access
from tests.distributed.runs import Run, losses, rows, train
from tests.faults.proxy import Proxy

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]

STEPS = 60
# The learning rate is constant, as the runs differ in their ends.
RUN = ("optimizer.final_lr_ratio=1", "checkpoint.every=5", "data.workers=1")


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Return the losses of an undisturbed run."""
    from tests.recipe import write_recipe

    folder = tmp_path_factory.mktemp("undisturbed")
    done = train(2, write_recipe(shards, folder), *RUN, f"steps={STEPS}")
    assert done.returncode == 0, done.stderr
    return losses(folder / "runs/tiny")


def is_undisturbed(folder: Path, undisturbed: dict[int, float]) -> bool:
    found = losses(folder)
    return list(found) == list(range(1, len(found) + 1)) and all(
        found[s] == undisturbed[s] for s in found if s <= STEPS
    )


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint."""
    return int((folder / "checkpoints/latest").resolve().name.removeprefix("step_"))


def one_line(stderr: str) -> str:
    (line,) = [x for x in stderr.splitlines() if re.search(r"[eE]rror\b|Traceback", x)]
    assert line.startswith("error: ")
    return line


class LocalRun:
    """A run on a copy of the shards, one of which a test damages."""

    def __init__(self, shards: Path, recipe: Path, tmp_path: Path) -> None:
        self.data, self.recipe, self.folder = tmp_path / "cells", recipe, tmp_path / "runs/tiny"
        shutil.copytree(shards, self.data)
        self.shard = sorted(self.data.glob("*.tar"))[1]
        self.sound = self.shard.read_bytes()
        self.options = (*RUN, f"data.path={self.data}")

    def start(self, steps: int) -> Run:
        """Start the run, and wait until it has read all shards."""
        run = Run(2, self.recipe, self.folder, *self.options, "steps=100000")
        run.wait_for_step(steps)
        return run

    def goes_on(self, run: Run) -> None:
        """Wait for ten more steps."""
        until = max(losses(self.folder)) + 10
        run.wait_for_step(until)

    def refused(self) -> str:
        done = train(2, self.recipe, *self.options, f"steps={STEPS}")
        assert done.returncode == 2
        return one_line(done.stderr)

    def finish(self, undisturbed: dict[int, float]) -> None:
        """Restore the shard and run to the end."""
        self.shard.write_bytes(self.sound)
        saved, reached = newest(self.folder), max(losses(self.folder))
        assert reached - saved <= 10
        done = train(2, self.recipe, *self.options, f"steps={max(STEPS, reached + 1)}")
        assert done.returncode == 0 and f"from step_{saved:08d}" in done.stderr, done.stderr
        assert is_undisturbed(self.folder, undisturbed)


@pytest.fixture
def local(shards: Path, recipe: Path, tmp_path: Path) -> LocalRun:
    return LocalRun(shards, recipe, tmp_path)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_shard_that_is_deleted_or_replaced(local: LocalRun, undisturbed: dict[int, float], replaced: bool):
    """The open file is read to the end; the next start names it."""
    run = local.start(12)
    if replaced:
        other = local.data / "other"
        other.write_bytes(local.sound[:-1024])
        other.rename(local.shard)
    else:
        local.shard.unlink()
    local.goes_on(run)
    run.kill()
    line = local.refused()
    assert str(local.shard) in line
    assert ("its index was made for" if replaced else "No such file") in line
    local.finish(undisturbed)


def test_a_shard_that_is_truncated(local: LocalRun, undisturbed: dict[int, float]):
    run = local.start(7)
    with local.shard.open("r+b") as file:
        file.truncate(2048)
    assert run.end() == 2, run.stderr
    line = one_line(run.stderr)
    assert re.search(rf"shard {local.shard} was cut or replaced .*; run: python -m .* verify", line)
    local.finish(undisturbed)


def test_a_shard_that_is_overwritten(local: LocalRun, undisturbed: dict[int, float]):
    """Its images are replaced by others, named and counted, until there are too many."""
    run = local.start(7)
    with local.shard.open("r+b") as file:
        file.write(b"\0" * len(local.sound))
    assert run.end() == 2, run.stderr
    assert "more than data.max_corrupt=0.001 allows" in one_line(run.stderr)
    assert str(local.data) in (local.folder / "corrupt.jsonl").read_text()


@pytest.fixture
def store(shards: Path, tmp_path: Path) -> Iterator[S3Server]:
    """Return a store with the shards in s3://bucket/cells."""
    shutil.copytree(shards, tmp_path / "s3/bucket/cells")
    server = S3Server(tmp_path / "s3")
    server.start()
    yield server
    server.kill()


class RemoteRun:
    """A run on s3://bucket/cells, whose cache can be emptied."""

    def __init__(self, recipe: Path, tmp_path: Path, endpoint: str) -> None:
        self.recipe, self.folder, self.cache = recipe, tmp_path / "runs/tiny", tmp_path / "cache"
        self.environment = access(endpoint)
        self.options = (*RUN, "data.path=s3://bucket/cells", f"data.cache.folder={self.cache}")

    def start(self, *overrides: str) -> None:
        options = (*self.options, "steps=100000", *overrides)
        self.run = Run(2, self.recipe, self.folder, *options, environment=self.environment)

    def forget(self) -> None:
        """Empty the cache, so that everything is read from the store again."""
        with contextlib.suppress(OSError):  # a file may come while its folder is emptied
            shutil.rmtree(self.cache / "entries")

    @property
    def step(self) -> int:
        return max(losses(self.folder), default=0)

    def wait(self, more: int) -> None:
        until = self.step + more
        self.run.wait_for(lambda: self.step >= until)

    def waited(self, since: int) -> float:
        """Return the largest share of a step in which a rank waited for data."""
        return max(row["data_wait"] for row in rows(self.folder) if row["step"] > since)


def test_a_store_that_fails_then_is_slow_then_unreachable_for_a_minute(
    store: S3Server, recipe: Path, tmp_path: Path, undisturbed: dict[int, float]
):
    with Proxy(store.endpoint) as proxy:
        remote = RemoteRun(recipe, tmp_path, proxy.address)
        remote.start("stopping.hang=241")
        remote.wait(10)

        # It fails: all answers are 503.
        proxy.status = 503
        remote.forget()
        asked, before = len(proxy.asked), remote.step
        remote.run.wait_for(lambda: len(proxy.asked) > asked + 5)
        proxy.status = None
        remote.wait(5)
        assert remote.waited(before) > 0.5

        # It is slow: every request takes 3 seconds.
        proxy.delay = 3.0
        remote.forget()
        before = remote.step
        remote.run.wait_for(lambda: proxy.waiting)
        remote.wait(5)
        assert remote.waited(before) > 0.5
        proxy.delay = 0.0

        # It cannot be reached for a minute.
        store.kill()
        remote.forget()
        before = remote.step
        remote.run.wait_for(lambda: "trying again for 180 s" in remote.run.stderr)
        time.sleep(60)
        assert remote.run.process.poll() is None, remote.run.stderr
        store.start()
        back = time.monotonic()
        remote.wait(1)
        print(f"next step {time.monotonic() - back:.1f} s after the store was back")
        assert remote.waited(before) > 0.5
        remote.run.kill()
    assert is_undisturbed(remote.folder, undisturbed)


def test_a_store_that_never_comes_back_and_shards_that_change_there(
    store: S3Server, recipe: Path, tmp_path: Path, undisturbed: dict[int, float]
):
    remote = RemoteRun(recipe, tmp_path, store.endpoint)
    path = next(p for p in sorted((tmp_path / "s3/bucket/cells").glob("*.tar")))
    key, sound = f"bucket/cells/{path.name}", path.read_bytes()
    other = sound[:700] + bytes(len(sound) - 700)

    def change(data: bytes | None) -> None:
        if data is None:
            store.client.delete_object(Bucket="bucket", Key=f"cells/{path.name}")
        else:
            store.put(key, data)

    for changed, expected in (
        (None, "is not there"),
        (other, "replaced by other bytes|changed since"),
        (sound[:-512], "replaced"),
    ):
        remote.start()
        remote.wait(4)
        change(changed)
        remote.forget()
        assert remote.run.end() == 2, remote.run.stderr
        line = one_line(remote.run.stderr)
        assert f"s3://{key}" in line and re.search(expected, line)
        assert remote.step - newest(remote.folder) <= 10
        change(sound)

    remote.start("data.cache.patience=3")
    remote.wait(4)
    store.kill()
    remote.forget()
    assert remote.run.end() == 2, remote.run.stderr
    assert re.search(
        r"could not be read in 3 s .*; check the network and the store", one_line(remote.run.stderr)
    )
    store.start()
    remote.start()
    remote.wait(10)
    remote.run.kill()
    assert is_undisturbed(remote.folder, undisturbed)


def test_a_watchdog_that_would_not_wait_for_the_store_is_refused(
    store: S3Server, recipe: Path, tmp_path: Path
):
    remote = RemoteRun(recipe, tmp_path, store.endpoint)
    done = train(1, recipe, *remote.options, "stopping.hang=100", environment=remote.environment)
    assert done.returncode == 2
    assert re.search(
        r"stopping.hang=100 s .* data.cache.patience=180 s .* use stopping.hang=240", one_line(done.stderr)
    )
