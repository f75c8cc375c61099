"""A run's mirror in a real S3 store: a checkpoint that counts there is whole, and runs continue from it."""

import json
import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.storage import remote
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.mirror.place import Altered, Place
from pretrain.checkpoint.mirror.uploads import Uploads
from tests.data_pipeline.s3_server import S3Server, access, become_a_user
from tests.distributed.runs import Run, losses, rows, train
from tests.faults.proxy import Proxy

MIRROR = "checkpoint.mirror=s3://bucket/runs"
OPTIONS = (MIRROR, "engine.deterministic=true", "steps=60", "checkpoint.every=10")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[S3Server]:
    (tmp_path / "s3/bucket").mkdir(parents=True)
    server = S3Server(tmp_path / "s3")
    server.start()
    yield server
    server.kill()


def mirrored(store: S3Server) -> dict[str, int]:
    """Return the names and sizes of a run's objects."""
    found = store.client.list_objects_v2(Bucket="bucket", Prefix="runs/tiny/").get("Contents", [])
    return {each["Key"].removeprefix("runs/tiny/"): each["Size"] for each in found}


def complete(store: S3Server) -> list[int]:
    names = [name for name in mirrored(store) if name.endswith("/COMPLETE")]
    return sorted(int(name.split("/")[1].removeprefix("step_")) for name in names)


def done(folder: Path) -> int:
    return max((row["step"] for row in rows(folder)), default=0)


@pytest.mark.nightly
def test_a_run_whose_disk_is_gone_is_the_same_run_bit_for_bit(store: S3Server, recipe: Path, tmp_path: Path):
    folder, options = tmp_path / "runs/tiny", (*OPTIONS, "checkpoint.keep_last=2")
    environment = access(store.endpoint)
    run = Run(1, recipe, folder, *options, "steps=3000", environment=environment)
    run.wait_for(lambda: complete(store) and done(folder) > complete(store)[-1] + 10)
    run.kill()
    first, newest = losses(folder), complete(store)[-1]
    shutil.rmtree(folder)

    again = Run(1, recipe, folder, *options, "steps=3000", environment=environment)
    again.wait_for(lambda: done(folder) >= max(first))
    again.process.terminate()
    assert again.end() == 0, again.stderr
    assert f"downloading step {newest} of s3://bucket/runs/tiny" in again.stderr
    second = losses(folder)
    assert list(second) == list(range(1, len(second) + 1))
    assert {step: second[step] for step in first} == first

    # The end waits for the mirror, which keeps as many checkpoints as the disk.
    here = sorted(int(path.name.removeprefix("step_")) for path in folder.glob("checkpoints/step_*"))
    assert complete(store) == here and len(here) == 2
    local = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    assert mirrored(store) == {name: size for name, size in local.items() if name != "lock"}


def test_objects_that_a_store_loses_or_changes_are_found(
    store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = os.urandom(5000)
    file = tmp_path / "file"
    file.write_bytes(content)
    with Proxy(store.endpoint) as proxy:
        become_a_user(proxy.address, monkeypatch)
        place = Place("s3://bucket/lies", 5)

        def after_a_write(body: bytes | None) -> None:
            def lie(method: str, path: str) -> None:
                if method == "PUT" and body is not None:
                    store.put("bucket/lies/a", body)
                elif method == "PUT":
                    store.client.delete_object(Bucket="bucket", Key="lies/a")

            proxy.then = lie

        for body, expected in (
            (None, "s3://bucket/lies/a is not there, though it was written"),
            (content[:-1], "has 4999 bytes, though 5000 were written"),
            (content[:-1] + bytes([content[-1] ^ 1]), "has other bytes than were written"),
        ):
            after_a_write(body)
            with pytest.raises(Altered, match=expected):
                place.write("a", content)
        proxy.then = lambda method, path: None
        place.write("a", content)
        assert place.content("a") == content


def test_a_checkpoint_whose_list_cannot_be_read_is_not_asked_for_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoint = tmp_path / "run/checkpoints/step_00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMPLETE").write_text("no list")
    place = Place(f"file://{tmp_path}/mirror", 0)
    requests: list[str] = []
    asked = remote.list_objects

    def count(url: str, patience: float) -> dict[str, int]:
        requests.append(url)
        return asked(url, patience)

    monkeypatch.setattr(remote, "list_objects", count)
    uploads = Uploads(tmp_path / "run", place, CheckpointConfig(), 10, set())
    uploads.start()
    time.sleep(1.5)
    uploads.end()
    uploads.join()
    assert 0 < len(requests) < 20  # without pauses there are thousands


@pytest.mark.parametrize(
    ("name", "content"), [("COMPLETE", b"no list"), ("encoder.json", b"[]"), ("encoder.json", None)]
)
def test_a_damaged_checkpoint_does_not_keep_older_ones_out_of_the_mirror(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes | None
):
    checkpoints, place = tmp_path / "run/checkpoints", Place(f"file://{tmp_path}/mirror", 0)
    listed = {"encoder.json": [2, zlib.crc32(b"{}")]}
    for step in (10, 20):
        folder = checkpoints / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "encoder.json").write_bytes(b"{}")
        (folder / "COMPLETE").write_text(json.dumps(listed))
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    uploads = Uploads(tmp_path / "run", place, CheckpointConfig(mirror_wait=60), 20, set())
    uploads.finish(lambda: None, may_wait=lambda: not place.complete())
    uploads.join()
    assert place.complete() == {10} and place.listing(10) == listed
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 2 and "step_00000020 is not in the mirror" in said[0], said
    assert "step_00000020, for which the run waits no longer" in said[1]


@pytest.mark.nightly
def test_a_mirror_that_is_full_then_lies_does_not_stop_the_run(store: S3Server, recipe: Path, tmp_path: Path):
    """The run says once that the mirror is behind, and no checkpoint is complete there before it is whole."""
    folder = tmp_path / "runs/tiny"
    with Proxy(store.endpoint) as proxy:
        run = Run(1, recipe, folder, *OPTIONS, "steps=100000", environment=access(proxy.address))
        run.wait_for(lambda: complete(store))
        proxy.full = True
        time.sleep(0.1)  # requests that are under way end
        before, at = complete(store), done(folder)
        run.wait_for(lambda: "the mirror is behind" in run.stderr)
        run.wait_for(lambda: done(folder) > at + 30)
        assert complete(store) == before and run.stderr.count("the mirror is behind") == 1
        assert "HTTP 507" in run.stderr

        # The store has room again, but loses an object after it has confirmed the write.
        lost = threading.Event()

        def lose(method: str, path: str) -> None:
            if method == "PUT" and path.endswith("/encoder.safetensors"):
                store.client.delete_object(Bucket="bucket", Key=path.removeprefix("/bucket/"))
                lost.set()

        proxy.then, proxy.full = lose, False
        run.wait_for(lost.is_set)
        at = done(folder)
        run.wait_for(lambda: done(folder) > at + 30)
        assert complete(store) == before
        proxy.then = lambda method, path: None
        run.wait_for(lambda: complete(store) != before and "is written to again" in run.stderr)
        run.process.terminate()
        assert run.end() == 0, run.stderr
    sizes = mirrored(store)
    for step in complete(store):
        place = f"checkpoints/step_{step:08d}"
        listed = json.loads((folder / place / "COMPLETE").read_text())
        assert {name: sizes[f"{place}/{name}"] for name in listed} == {n: x[0] for n, x in listed.items()}


@pytest.mark.nightly
def test_a_kill_in_an_upload_and_a_damaged_object_cost_that_checkpoint(
    store: S3Server, recipe: Path, tmp_path: Path
):
    folder = tmp_path / "runs/tiny"
    with Proxy(store.endpoint) as proxy:
        run = Run(1, recipe, folder, *OPTIONS, "steps=100000", environment=access(proxy.address))
        run.wait_for(lambda: len(complete(store)) >= 2)
        proxy.delay = 0.5
        asked = len(proxy.asked)
        run.wait_for(lambda: any("PUT" in x and ".distcp" in x for x in proxy.asked[asked:]))
        run.kill()
    shutil.rmtree(folder)
    *_, earlier, newest = complete(store)
    store.put(f"bucket/runs/tiny/checkpoints/step_{newest:08d}/encoder.safetensors", b"other bytes")

    steps = f"steps={newest + 10}"
    again = train(1, recipe, *OPTIONS, steps, environment=access(store.endpoint))
    assert again.returncode == 0, again.stderr
    assert f"step {newest} of s3://bucket/runs/tiny is damaged there" in again.stderr
    assert f"continuing {folder} from step_{earlier:08d}" in again.stderr
    assert complete(store)[-1] == newest + 10
    assert list(losses(folder)) == list(range(1, newest + 11))


@pytest.mark.nightly
def test_ranks_copy_what_they_wrote_and_fewer_continue_from_it(store: S3Server, recipe: Path, tmp_path: Path):
    folder, environment = tmp_path / "runs/tiny", access(store.endpoint)
    for kind in ("fsdp", "deepspeed"):
        options = (*OPTIONS, f"engine.kind={kind}")
        whole = train(2, recipe, *options, environment=environment)
        assert whole.returncode == 0, whole.stderr
        first = losses(folder)
        assert {f"checkpoints/step_00000060/__{rank}_0.distcp" for rank in (0, 1)} <= set(mirrored(store))
        for name in mirrored(store):
            if "step_00000060" in name:
                store.client.delete_object(Bucket="bucket", Key=f"runs/tiny/{name}")
        shutil.rmtree(folder)
        for ranks in (2, 1):
            again = train(ranks, recipe, *options, environment=environment)
            assert again.returncode == 0, again.stderr
            assert "downloading step 50" in again.stderr if ranks == 2 else "is finished" in again.stderr
        assert losses(folder) == first
        for name in [name for name in mirrored(store) if "step_00000060" in name]:
            store.client.delete_object(Bucket="bucket", Key=f"runs/tiny/{name}")
        shutil.rmtree(folder)
        alone = train(1, recipe, *OPTIONS, environment=environment)
        assert alone.returncode == 0 and "downloading step 50" in alone.stderr, alone.stderr
        assert losses(folder) == pytest.approx(first, rel=1e-4)
        for name in mirrored(store):
            store.client.delete_object(Bucket="bucket", Key=f"runs/tiny/{name}")
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("mirror", "without", "expected"),
    [
        ("/mnt/runs", "", "is no URL of a store"),
        ("s3://nowhere/runs", "", "s3://nowhere/runs/tiny/checkpoints is not there .*NoSuchBucket"),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (
                ("foo://bucket/runs", "", "Protocol not known: foo"),
                ("s3://bucket/runs", "AWS_SECRET_ACCESS_KEY", "checkpoint.mirror: .*access is denied"),
            )
        ),
    ],
)
def test_a_mirror_that_cannot_be_used_is_refused_before_the_first_step(
    store: S3Server, recipe: Path, tmp_path: Path, mirror: str, without: str, expected: str
):
    environment = access(store.endpoint) | ({without: ""} if without else {})
    refused = train(1, recipe, f"checkpoint.mirror={mirror}", environment=environment)
    errors = refused.stderr.splitlines()
    assert refused.returncode == 2 and len(errors) == 1 and errors[0].startswith("error: ")
    assert re.search(expected, errors[0]), errors
    assert not rows(tmp_path / "runs/tiny")
