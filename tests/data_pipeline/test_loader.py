import os
import pickle
import shutil
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.augment import AugmentConfig
from data_pipeline.decode import decode
from data_pipeline.errors import UserError
from data_pipeline.index import Dataset
from data_pipeline.loader import Batch, Loader
from data_pipeline.views import ViewsConfig

VIEWS = ViewsConfig(global_views=2, global_size=24, local_views=3, local_size=12)


def loader(dataset: Dataset, **options: object) -> Loader:
    defaults = {"batch_size": 8, "views": VIEWS, "augment": AugmentConfig(), "channels": 3, "seed": 4}
    return Loader(dataset, **{**defaults, **options})  # type: ignore[arg-type]


def take(dataset: Dataset, steps: int, **options: object) -> list[Batch]:
    return list(islice(loader(dataset, **options), steps))


def assert_same(a: Batch, b: Batch) -> None:
    assert a.step == b.step
    np.testing.assert_array_equal(a.indices, b.indices)
    np.testing.assert_array_equal(a.epochs, b.epochs)
    assert torch.equal(a.labels, b.labels)
    for x, y in zip(a.views + a.parameters, b.views + b.parameters, strict=True):
        assert torch.equal(x, y)


def joined(ranks: list[Batch]) -> Batch:
    return Batch(
        step=ranks[0].step,
        indices=np.concatenate([r.indices for r in ranks]),
        epochs=np.concatenate([r.epochs for r in ranks]),
        labels=torch.cat([r.labels for r in ranks]),
        views=[torch.cat(parts, dim=1) for parts in zip(*(r.views for r in ranks), strict=True)],
        parameters=[torch.cat(parts, dim=1) for parts in zip(*(r.parameters for r in ranks), strict=True)],
    )


def test_shapes_and_contents(packed: Dataset) -> None:
    batch = take(packed, 1)[0]
    assert [tuple(v.shape) for v in batch.views] == [(2, 8, 3, 24, 24), (3, 8, 3, 12, 12)]
    assert [tuple(p.shape) for p in batch.parameters] == [(2, 8, 7), (3, 8, 7)]
    assert all(v.dtype == torch.uint8 for v in batch.views)
    np.testing.assert_array_equal(batch.labels, packed.labels[batch.indices])
    flat = batch.views[0].flatten(0, 1)
    assert len({view.numpy().tobytes() for view in flat}) == len(flat)


def test_a_view_without_crop_or_flip_is_the_image(packed: Dataset) -> None:
    views = ViewsConfig(global_views=1, global_size=40, global_scale=(1, 1), local_views=0, ratio=(1, 1.2))
    batch = take(packed, 1, views=views, augment=AugmentConfig(horizontal_flip=0))[0]
    assert len(batch.views) == 1
    for view, index in zip(batch.views[0][0], batch.indices, strict=True):
        image = decode(packed.read(index), 3).astype(float)
        assert abs(view.float().mean().item() - image.mean()) < 4


@pytest.mark.parametrize("world_size, workers", [(1, 1), (1, 2), (2, 0), (4, 1)])
def test_global_batches_do_not_depend_on_ranks_and_workers(
    packed: Dataset, world_size: int, workers: int
) -> None:
    steps = 5
    reference = take(packed, steps)
    ranks = [take(packed, steps, rank=r, world_size=world_size, workers=workers) for r in range(world_size)]
    for step in range(steps):
        assert_same(joined([rank[step] for rank in ranks]), reference[step])


def test_every_epoch_has_every_sample_once(packed: Dataset) -> None:
    n = len(packed)
    batches = take(packed, n)  # n batches of 8 are 8 epochs exactly
    indices = np.concatenate([batch.indices for batch in batches])
    np.testing.assert_array_equal(np.sort(indices.reshape(8, n), axis=1), np.tile(np.arange(n), (8, 1)))
    np.testing.assert_array_equal(np.concatenate([b.epochs for b in batches]), np.repeat(np.arange(8), n))


@pytest.mark.parametrize("stop, workers", [(1, 0), (3, 2)])
def test_it_carries_on_from_any_step(packed: Dataset, stop: int, workers: int) -> None:
    reference = take(packed, 7)
    first = loader(packed, workers=workers)
    before = list(islice(first, stop))
    assert first.state == stop  # of the steps consumed, whatever the workers have prepared
    after = take(packed, 7 - stop, start_step=first.state, world_size=1, workers=workers)
    for ours, expected in zip(before + after, reference, strict=True):
        assert_same(ours, expected)
    assert_same(next(iter(first)), reference[stop])


def test_views_change_with_the_epoch_and_the_seed(packed: Dataset) -> None:
    n = len(packed)
    first, second = take(packed, 2, batch_size=n)
    others = [take(packed, 1, batch_size=n, seed=seed)[0] for seed in (5, 0, -1, 2**63)]
    assert len({batch.parameters[0][:, 0].numpy().tobytes() for batch in others}) == 4
    for batch in (second, *others):
        back = [np.flatnonzero(batch.indices == i)[0] for i in first.indices]
        assert (batch.views[0][:, back] != first.views[0]).flatten(2).any(2).all()
        assert (batch.parameters[0][:, back] != first.parameters[0]).any(2).float().mean() > 0.8


def test_the_process_generators_are_left_alone(packed: Dataset) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    take(packed, 2, workers=1)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_one_channel(packed: Dataset) -> None:
    assert take(packed, 1, channels=1)[0].views[0].shape == (2, 8, 1, 24, 24)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(packed: Dataset) -> None:
    with pytest.raises(UserError, match=r"10 does not divide by 4 ranks; use 8 or 12"):
        loader(packed, batch_size=10, world_size=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_changed_shard_ends_in_one_line(packed: Dataset, tmp_path: Path, workers: int) -> None:
    copy = tmp_path / "set"
    shutil.copytree(packed.path, copy)
    dataset = Dataset(copy)
    row = dataset.rows[0]
    with (copy / dataset.shard_name(0)).open("r+b") as file:
        file.seek(int(row["offset"]) + 30)
        file.write(b"\xff\x00\xff")
    with pytest.raises(UserError, match="changed since the index was made") as refused:
        take(dataset, 3, workers=workers)
    assert "\n" not in str(refused.value) and refused.value.__cause__ is None


def test_workers_outlive_the_signals_that_stop_a_job(packed: Dataset) -> None:
    batches = iter(loader(packed, workers=1))
    next(batches)
    for child in torch.multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGINT)
    assert [next(batches).step for _ in range(6)] == list(range(1, 7))


def test_a_dataset_is_pickled_by_its_place(packed: Dataset) -> None:
    packed.read(0)
    blob = pickle.dumps(packed)
    assert len(blob) < 1500
    again = pickle.loads(blob)
    assert again.read(5) == packed.read(5) and again.fingerprint == packed.fingerprint
