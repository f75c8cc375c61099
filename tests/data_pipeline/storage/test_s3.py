"""Shards in a bucket of a real S3 server on the loopback: their bytes, and what it costs to read them."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.dataset.index import Corrupt, Dataset
from data_pipeline.loader import Loader
from data_pipeline.sources import DataConfig
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.chunks import CHUNK
from data_pipeline.storage.reader import fetch, open_reader
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from isotorus.errors import UserError
from tests.data_pipeline.s3_server import S3Server

SIZE = 20_000_000
CHUNKS = 3
FORK = multiprocessing.get_context("fork")


def read_whole(cache: CacheConfig, checksums: dict[str, int]) -> None:
    reader = open_reader("s3://bucket/set", cache)
    for name, expected in checksums.items():
        data = b"".join(reader.read(name, offset, 500_000) for offset in range(0, SIZE, 500_000))
        assert zlib.crc32(data) == expected


def in_processes(cache: CacheConfig, tasks: list[dict[str, int]]) -> None:
    processes = [FORK.Process(target=read_whole, args=(cache, task)) for task in tasks]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def entries(cache: CacheConfig) -> list[Path]:
    return list((cache.folder / "entries").glob("*/*"))


def test_any_range_is_that_of_the_object(s3: S3Server, objects: dict[str, bytes], cache: CacheConfig) -> None:
    reader, data = open_reader("s3://bucket/set/", cache), objects["shard-0.tar"]
    assert reader.size("shard-0.tar") == SIZE
    random = np.random.default_rng(1)
    ranges = [(CHUNK - 3, 6), (0, SIZE), (SIZE - 1, 1), (5, 0), (CHUNK - 1, CHUNK + 2), (2 * CHUNK, 1)]
    ranges += [(int(start), int(random.integers(SIZE - start))) for start in random.integers(SIZE, size=20)]
    for offset, size in ranges:
        assert reader.read("shard-0.tar", offset, size) == data[offset : offset + size]
    with pytest.raises(UserError, match=rf"s3://bucket/set/shard-0.tar has {SIZE} bytes.*verify"):
        reader.read("shard-0.tar", SIZE - 1, 2)


def test_a_local_index_may_name_remote_shards(
    s3: S3Server, objects: dict[str, bytes], cache: CacheConfig, tmp_path: Path
) -> None:
    reader = open_reader(tmp_path, cache)
    assert reader.read("s3://bucket/set/shard-1.tar", 7, 9) == objects["shard-1.tar"][7:16]


def test_a_sequential_read_costs_a_request_a_chunk(
    s3: S3Server, objects: dict[str, bytes], cache: CacheConfig
) -> None:
    data = objects["shard-1.tar"]
    gets, heads = (s3.requests(method, "shard-1.tar") for method in ("GET", "HEAD"))
    for _ in range(2):  # the second time from the cache
        reader = open_reader("s3://bucket/set", cache)
        for offset in range(0, SIZE, 100_000):
            assert reader.read("shard-1.tar", offset, 100_000) == data[offset : offset + 100_000]
    assert s3.requests("GET", "shard-1.tar") - gets == CHUNKS
    assert s3.requests("HEAD", "shard-1.tar") - heads == 2


def test_many_processes_download_a_chunk_once(
    s3: S3Server, objects: dict[str, bytes], cache: CacheConfig
) -> None:
    reader = open_reader("s3://bucket/set", cache)
    reader.read("shard-0.tar", 0, 1)  # the parent has connections and threads of its own before it forks
    reader.prefetch("shard-0.tar", CHUNK, 1)
    names = ["shard-2.tar", "shard-3.tar"]
    before = [s3.requests("GET", name) for name in names]
    in_processes(cache, [{name: zlib.crc32(objects[name]) for name in names}] * 4)
    assert [s3.requests("GET", name) - b for name, b in zip(names, before, strict=True)] == [CHUNKS] * 2
    assert reader.read("shard-0.tar", 3, 5) == objects["shard-0.tar"][3:8]


def test_threads_share_a_reader(s3: S3Server, objects: dict[str, bytes], cache: CacheConfig) -> None:
    reader, before = open_reader("s3://bucket/set", cache), s3.requests("GET", "shard-4.tar")
    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda o: reader.read("shard-4.tar", o, 250_000), range(0, SIZE, 250_000)))
    assert b"".join(parts) == objects["shard-4.tar"]
    assert s3.requests("GET", "shard-4.tar") - before == CHUNKS


def test_prefetched_chunks_need_no_further_request(
    s3: S3Server, objects: dict[str, bytes], cache: CacheConfig
) -> None:
    reader, before = open_reader("s3://bucket/set", cache), s3.requests("GET", "shard-1.tar")
    for _ in range(3):
        reader.prefetch("shard-1.tar", CHUNK - 10, 20)
    end = time.monotonic() + 30
    while s3.requests("GET", "shard-1.tar") < before + 2 and time.monotonic() < end:
        time.sleep(0.05)
    reader.prefetch("missing.tar", 0, 10)
    reader.prefetch("shard-1.tar", 10 * SIZE, 10)
    assert reader.read("shard-1.tar", CHUNK - 10, 20) == objects["shard-1.tar"][CHUNK - 10 : CHUNK + 10]
    assert s3.requests("GET", "shard-1.tar") == before + 2


def test_several_processes_stay_within_the_limit(
    s3: S3Server, objects: dict[str, bytes], cache: CacheConfig
) -> None:
    names = list(objects)
    assert sum(map(len, objects.values())) > 1.5 * cache.size
    orders = [names, names[::-1], names[3:] + names[:3]]
    tasks = [{name: zlib.crc32(objects[name]) for name in order} for order in orders]
    readers = FORK.Process(target=in_processes, args=(cache, tasks))
    readers.start()
    most = 0
    while readers.is_alive():
        most = max(most, bytes_in(cache))
        time.sleep(0.01)
    assert readers.exitcode == 0
    assert 0.5 * cache.size < most <= cache.size


def bytes_in(cache: CacheConfig) -> int:
    total = 0
    for file in entries(cache):
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # evicted since it was listed
            continue
    return total


def test_a_cut_cache_file_is_fetched_again(
    s3: S3Server, objects: dict[str, bytes], cache: CacheConfig
) -> None:
    reader = open_reader("s3://bucket/set", cache)
    reader.read("shard-0.tar", 0, SIZE)
    for file in entries(cache):
        os.truncate(file, file.stat().st_size // 2)
    for again in (reader, open_reader("s3://bucket/set", cache)):
        assert again.read("shard-0.tar", 0, SIZE) == objects["shard-0.tar"]


def test_a_replaced_shard_gives_no_old_bytes(s3: S3Server, cache: CacheConfig) -> None:
    s3.put("bucket/changing/a.tar", b"old bytes")
    reader = open_reader("s3://bucket/changing", cache)
    assert reader.read("a.tar", 0, 9) == b"old bytes"
    s3.put("bucket/changing/a.tar", b"new bytes")
    assert open_reader("s3://bucket/changing", cache).read("a.tar", 0, 9) == b"new bytes"
    with pytest.raises(UserError, match=r"s3://bucket/changing/a.tar was replaced.*verify"):
        reader.forget("a.tar", 0, 9)


def test_a_shard_cut_or_deleted_while_in_use_is_named(s3: S3Server, cache: CacheConfig) -> None:
    for name in ("cut.tar", "gone.tar"):
        s3.put(f"bucket/changing/{name}", bytes(CHUNK + 100))
    reader = open_reader("s3://bucket/changing", cache)
    assert reader.read("cut.tar", 0, 9) == reader.read("gone.tar", 0, 9) == bytes(9)
    for length in (50, CHUNK + 50):
        s3.put("bucket/changing/cut.tar", bytes(length))
        with pytest.raises(UserError, match=r"s3://bucket/changing/cut.tar was replaced.*verify"):
            reader.read("cut.tar", CHUNK, 9)
    s3.client.delete_object(Bucket="bucket", Key="changing/gone.tar")
    with pytest.raises(UserError, match=r"s3://bucket/changing/gone.tar is not there .*NoSuchKey"):
        reader.read("gone.tar", CHUNK, 9)


def test_fetch_brings_each_version_once(s3: S3Server, objects: dict[str, bytes], cache: CacheConfig) -> None:
    for data in (objects["shard-0.tar"], objects["shard-1.tar"] + b"appended"):
        s3.put("bucket/changing/index.npy", data)
        before = s3.requests("GET", "changing/index.npy")
        for _ in range(2):
            assert fetch("s3://bucket/changing/index.npy", cache).read_bytes() == data
        assert s3.requests("GET", "changing/index.npy") - before == CHUNKS
    s3.put("bucket/changing/index.npy", b"")
    assert fetch("s3://bucket/changing/index.npy", cache).read_bytes() == b""


def test_a_fetched_file_stays_while_it_is_in_use(
    s3: S3Server, objects: dict[str, bytes], cache: CacheConfig
) -> None:
    index = fetch("s3://bucket/set/shard-0.tar", cache)
    os.utime(index, (0, 0))
    read_whole(cache, {name: zlib.crc32(data) for name, data in objects.items()})
    assert index.read_bytes() == objects["shard-0.tar"]
    assert bytes_in(cache) <= cache.size


@pytest.fixture
def remote_set(s3: S3Server, packed: Dataset) -> str:
    """The set `packed`, in a bucket."""
    for file in Path(packed.path).iterdir():
        s3.put(f"bucket/packed/{file.name}", file.read_bytes())
    return "s3://bucket/packed"


def same_images(dataset: Dataset, images: list[bytes]) -> None:
    assert [dataset.read(i) for i in range(len(dataset))] == images


def test_a_packed_set_in_a_bucket_is_that_on_the_disk(
    remote_set: str, packed: Dataset, cache: CacheConfig
) -> None:
    dataset = Dataset(remote_set, cache=cache)
    images = [packed.read(i) for i in range(len(packed))]
    same_images(dataset, images)
    assert dataset.fingerprint == packed.fingerprint
    assert [dataset.key(i) for i in range(len(dataset))] == [packed.key(i) for i in range(len(packed))]
    process = FORK.Process(target=same_images, args=(dataset, images))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    # As in a spawned process, which inherits nothing of its parent.
    program = (
        "import pickle, sys; dataset = pickle.load(sys.stdin.buffer); "
        "pickle.dump([dataset.read(i) for i in range(len(dataset))], sys.stdout.buffer)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(dataset), stdout=subprocess.PIPE, check=True
    )
    assert pickle.loads(done.stdout) == images


def test_batches_from_a_bucket_are_those_from_the_disk(
    s3: S3Server, remote_set: str, packed: Dataset, cache: CacheConfig
) -> None:
    remote = DataConfig(path=remote_set, cache=cache, workers=2, order="windowed")
    options = {
        "batch_size": 8,
        "views": ViewsConfig(global_views=1, global_size=16, local_views=0),
        "augment": AugmentConfig(),
        "channels": 3,
        "seed": 4,
        "order": "windowed",
    }
    local = islice(Loader(remote.model_copy(update={"path": packed.path}).open(), **options), 6)
    before = s3.requests("GET", ".tar")
    for ours, expected in zip(Loader(remote.open(), workers=2, **options), local, strict=False):
        np.testing.assert_array_equal(ours.indices, expected.indices)
        assert torch.equal(ours.views[0], expected.views[0])
    assert s3.requests("GET", ".tar") - before == len(packed.shards)  # of one chunk each, in both workers


def test_damage_in_the_cache_is_repaired_and_damage_in_the_bucket_named(
    s3: S3Server, remote_set: str, packed: Dataset, cache: CacheConfig
) -> None:
    dataset = Dataset(remote_set, cache=cache)
    same_images(dataset, images := [packed.read(i) for i in range(len(packed))])
    shard, offset, _ = packed.ranges(np.array([3]))[0]
    whole = (Path(packed.path) / shard).read_bytes()
    for file in entries(cache):
        if file.read_bytes() == whole:
            file.write_bytes(bytes(len(whole)))
    same_images(dataset, images)

    s3.put(
        f"bucket/packed/{shard}", whole[: offset + 9] + bytes([whole[offset + 9] ^ 1]) + whole[offset + 10 :]
    )
    dataset = Dataset(remote_set, cache=cache)
    with pytest.raises(Corrupt, match=rf"s3://bucket/packed/{shard}.*sample 3"):
        dataset.read(3)
    assert dataset.read(4) == images[4]


def test_a_uniform_order_over_more_than_the_cache_holds_is_refused(
    packed: Dataset, s3: S3Server, cache: CacheConfig
) -> None:
    for name in ("index.npy", "shards.npy", "dataset.json"):
        data = Path(packed.path, name).read_bytes()
        if name == "dataset.json":
            total = f'"bytes": {packed.description.bytes}'.encode()
            assert total in data
            data = data.replace(total, b'"bytes": 70000000000')
        s3.put(f"bucket/large/{name}", data)
    with pytest.raises(UserError, match=r"reads 70 GB of remote shards .* use data.order=windowed"):
        DataConfig(path="s3://bucket/large", cache=cache).open()
    assert len(DataConfig(path="s3://bucket/large", cache=cache, order="windowed").open()) == len(packed)
