"""Checkpoints by the address of a run's mirror, in a real S3 store."""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from eval_suite.inputs import find
from isotorus.errors import UserError
from pretrain.checkpoint.export.command import main as export
from pretrain.checkpoint.mirror.address import copies, is_copy, without_cache
from pretrain.checkpoint.mirror.place import Place
from tests.data_pipeline.s3_server import S3Server, become_a_user
from tests.eval_suite.eval_samples import ONE, run_command, save_checkpoint

RUN = "s3://bucket/runs/mine"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 10, 20 and 30, whose weights are equal but whose steps differ."""
    run = tmp_path_factory.mktemp("saved") / "mine"
    for step in (10, 20, 30):
        folder = save_checkpoint(run / f"checkpoints/step_{step:08d}", step=step)
        (folder / "__0_0.distcp").write_bytes(os.urandom(1000))
        listed = {file.name: [file.stat().st_size, zlib.crc32(file.read_bytes())]
                  for file in folder.iterdir() if file.name != "COMPLETE"}  # fmt: skip
        (folder / "COMPLETE").write_text(json.dumps(listed))
    (run / "metrics.jsonl").write_text('{"step": 30, "loss": 0.5}\n')
    return run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3") / "store"
    (folder / "bucket").mkdir(parents=True)
    server = S3Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def store(
    server: S3Server, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Server]:
    """A store with the run, of which this process is a user with an empty cache folder."""
    become_a_user(server.endpoint, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file in saved.rglob("*"):
        if file.is_file():
            server.put(f"bucket/runs/mine/{file.relative_to(saved)}", file.read_bytes())
    yield server
    for each in server.client.list_objects_v2(Bucket="bucket").get("Contents", []):
        server.client.delete_object(Bucket="bucket", Key=each["Key"])


def steps(*given: str, every: int | None = None) -> list[int]:
    return [checkpoint.step for checkpoint in find.find(given, every)]


def damage(store: S3Server, step: int, name: str = "encoder.safetensors") -> None:
    store.put(f"bucket/runs/mine/checkpoints/step_{step:08d}/{name}", b"other bytes")


def test_a_run_means_its_newest_checkpoint_which_is_copied_once(store: S3Server, saved: Path):
    (found,) = find.find([RUN])
    assert (found.step, found.name) == (30, "mine") and is_copy(found.folder)
    original = saved / "checkpoints/step_00000030/encoder.safetensors"
    assert found.weights.read_bytes() == original.read_bytes()
    assert (found.root / "metrics.jsonl").read_text() == (saved / "metrics.jsonl").read_text()
    assert not list(found.root.rglob("*.distcp"))  # from which only training continues
    path = "runs/mine/checkpoints/step_00000030/encoder.safetensors"
    asked = store.requests("GET", path)
    assert steps(RUN) == steps(f"{RUN}/") == [30] and store.requests("GET", path) == asked
    found.weights.write_bytes(b"damaged on this disk")
    assert steps(RUN) == [30] and found.weights.read_bytes() == original.read_bytes()


def test_steps_by_address_and_multiples(store: S3Server):
    assert steps(f"{RUN}/checkpoints/step_00000010") == [10]
    assert steps(RUN, every=20) == [20, 30]
    # A run that was begun anew has older steps than the copies, which do not count then.
    for step in (20, 30):
        store.client.delete_object(Bucket="bucket", Key=f"runs/mine/checkpoints/step_{step:08d}/COMPLETE")
    assert steps(RUN) == [10]


def test_a_damaged_checkpoint_is_left_out(
    store: S3Server, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    damage(store, 30)
    assert steps(RUN) == [20]
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "step_00000030 is damaged there: encoder.safetensors" in said
    with pytest.raises(UserError, match=r"step_00000030 is damaged there: encoder\.safetensors has"):
        find.find([f"{RUN}/checkpoints/step_00000030"])
    damage(store, 20, "COMPLETE")
    assert steps(RUN) == [10]
    store.client.delete_object(Bucket="bucket", Key="runs/mine/checkpoints/step_00000010/encoder.json")
    assert steps(RUN) == [10]  # a copy that is whole
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    with pytest.raises(UserError, match="step_00000030 is damaged there"):
        find.find([RUN])


def test_a_checkpoint_that_is_removed_while_it_is_read_gives_way_to_the_one_before(
    store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read = Place.read

    def removed(place: Place, name: str, *rest: Any) -> int:
        if "00000030" in name:
            store.client.delete_object(Bucket="bucket", Key=f"runs/mine/{name}")
        return read(place, name, *rest)

    monkeypatch.setattr(Place, "read", removed)
    assert steps(RUN) == [20]
    assert not list((tmp_path / "cache").rglob(".partial_*"))


def test_a_cache_behind_a_link_is_the_cache_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to("disk")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert is_copy(copies() / "x/mine") and is_copy((copies() / "x/mine").resolve())
    assert not is_copy(tmp_path / "disk/runs/mine")


def test_a_copy_in_another_cache_is_the_same_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = set()
    for job in ("1", "2"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / job))
        found.add(without_cache(str(copies() / "0123/mine/encoder.safetensors")))
    assert found == {"0123/mine/encoder.safetensors"}
    assert without_cache("runs/mine/encoder.safetensors") == "runs/mine/encoder.safetensors"
    assert without_cache(None) is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3://bucket/runs/other", "s3://bucket/runs/other: no complete checkpoint is there; name a run"),
        ("s3://bucket/runs", "s3://bucket/runs: no complete checkpoint is there"),
        (f"{RUN}/checkpoints/step_00000040", "step_00000040: no complete checkpoint is there"),
        ("s3://nowhere/runs/mine", "s3://nowhere/runs/mine/checkpoints is not there .*NoSuchBucket"),
        ("foo://bucket/runs/mine", "Protocol not known: foo"),
    ],
)
def test_what_is_not_there_is_one_line(store: S3Server, address: str, expected: str):
    with pytest.raises(UserError, match=expected) as refused:
        find.find([address])
    assert "\n" not in str(refused.value)


def test_without_credentials_access_is_denied(store: S3Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="access is denied"):
        find.find([RUN])


def test_results_are_not_written_into_the_copy(store: S3Server, data: list[object]):
    refused = run_command(RUN, *data)
    assert refused.code == 2 and refused.err.splitlines()[-1].endswith("give --out FOLDER")
    watching = run_command(RUN, *data, "--watch")
    assert watching.code == 2 and "--watch follows runs on a disk" in watching.err


def test_export_takes_an_address(store: S3Server, saved: Path, tmp_path: Path):
    assert export([f"{RUN}/checkpoints/step_00000020", "--out", str(tmp_path / "exported")]) == 0
    exported = load_file(tmp_path / "exported/model.safetensors")
    original = load_file(saved / "checkpoints/step_00000020/encoder.safetensors")
    assert all((exported[name] == tensor).all() for name, tensor in original.items())


@pytest.mark.nightly
def test_an_evaluation_and_vectors_from_a_store_are_those_from_the_disk(
    store: S3Server, saved: Path, data: list[object], tmp_path: Path
):
    results = []
    for name, where in (("store", RUN), ("disk", saved)):
        done = run_command(where, *data, *ONE, "--out", tmp_path / name)
        assert done.code == 0, done.err
        vectors = tmp_path / f"{name}.npz"
        embedded = run_command("embed", where, data[1], "--out", vectors)
        assert embedded.code == 0, embedded.err
        found = json.loads((tmp_path / name / "results.json").read_text())
        assert found["checkpoint"]["step"] == 30
        results.append((found["representations"], np.load(vectors)["features"].tolist()))
    assert results[0] == results[1]
