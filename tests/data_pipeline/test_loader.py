import os
import pickle
import shutil
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.decode import decode
from data_pipeline.loader import Batch, Loader
from data_pipeline.packing.pack import Options, pack
from data_pipeline.sources import Sources
from data_pipeline.transforms.columns import DROP, GAMMA, IDENTITY, KEY, NOISE, PARAMETERS
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from isotorus.errors import UserError
from tests.data_pipeline.pictures import save_pictures

VIEWS = ViewsConfig(global_views=2, global_size=24, local_views=3, local_size=12)
SMALL = ViewsConfig(global_views=1, global_size=8, local_views=1, local_size=4)


def loader(data: Dataset | Sources, **options: object) -> Loader:
    sources = data if isinstance(data, Sources) else Sources([data], [1.0])
    defaults = {"batch_size": 8, "views": VIEWS, "augment": AugmentConfig(), "channels": 3, "seed": 4}
    return Loader(sources, **{**defaults, **options})  # type: ignore[arg-type]


def take(data: Dataset | Sources, steps: int, **options: object) -> list[Batch]:
    return list(islice(loader(data, **options), steps))


def assert_same(a: Batch, b: Batch) -> None:
    assert a.step == b.step
    np.testing.assert_array_equal(a.indices, b.indices)
    np.testing.assert_array_equal(a.epochs, b.epochs)
    assert torch.equal(a.labels, b.labels)
    for x, y in zip(a.views + a.parameters + a.actions, b.views + b.parameters + b.actions, strict=True):
        assert torch.equal(x, y)


def joined(ranks: list[Batch]) -> Batch:
    return Batch(
        step=ranks[0].step,
        indices=np.concatenate([r.indices for r in ranks]),
        epochs=np.concatenate([r.epochs for r in ranks]),
        labels=torch.cat([r.labels for r in ranks]),
        views=[torch.cat(parts, dim=1) for parts in zip(*(r.views for r in ranks), strict=True)],
        replaced=[replaced for r in ranks for replaced in r.replaced],
        parameters=[torch.cat(parts, dim=1) for parts in zip(*(r.parameters for r in ranks), strict=True)],
        actions=[torch.cat(parts, dim=1) for parts in zip(*(r.actions for r in ranks), strict=True)],
    )


@pytest.fixture(scope="module")
def mixed(packed: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Twenty-three images of cats and dogs, and seven birds and dogs that are shown as often."""
    folder = tmp_path_factory.mktemp("more")
    save_pictures(folder / "images", [f"{'bird' if i % 2 else 'dog'}/{i}.png" for i in range(7)])
    pack(folder / "images", folder / "set", Options(labels="folder"))
    return Sources([packed, Dataset(folder / "set")], [1.0, 1.0])


def test_shapes_and_contents(packed: Dataset) -> None:
    batch = take(packed, 1)[0]
    assert [tuple(v.shape) for v in batch.views] == [(2, 8, 3, 24, 24), (3, 8, 3, 12, 12)]
    assert [tuple(p.shape) for p in batch.parameters] == [
        (2, 8, len(PARAMETERS)),
        (3, 8, len(PARAMETERS)),
    ]
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


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize(
    "order, world_size, workers",
    [("uniform", w, k) for w, k in ((1, 1), (2, 1), (3, 0), (4, 0), (8, 0))]
    + [("windowed", w, k) for w, k in ((1, 4), (3, 1), (8, 0))],
)
def test_global_batches_do_not_depend_on_ranks_and_workers(
    mixed: Sources, order: str, world_size: int, workers: int
) -> None:
    options = {"batch_size": 24, "views": SMALL, "order": order}
    ranks = [
        take(mixed, 4, rank=r, world_size=world_size, workers=workers, **options) for r in range(world_size)
    ]
    for step, reference in enumerate(take(mixed, 4, **options)):
        assert_same(joined([rank[step] for rank in ranks]), reference)


@pytest.mark.parametrize("order", ["uniform", "windowed"])
def test_every_epoch_has_every_sample_once(packed: Dataset, order: str) -> None:
    n = len(packed)
    batches = take(packed, n, views=SMALL, order=order)  # n batches of 8 are 8 epochs exactly
    indices = np.concatenate([batch.indices for batch in batches])
    np.testing.assert_array_equal(np.sort(indices.reshape(8, n), axis=1), np.tile(np.arange(n), (8, 1)))
    np.testing.assert_array_equal(np.concatenate([b.epochs for b in batches]), np.repeat(np.arange(8), n))


def test_sources_are_mixed_by_weight_and_share_classes_by_name(mixed: Sources) -> None:
    batches = take(mixed, 20, views=SMALL)
    indices = np.concatenate([b.indices for b in batches])
    labels = np.concatenate([b.labels.numpy() for b in batches])
    epochs = np.concatenate([b.epochs for b in batches])
    assert mixed.classes == ["cat", "dog", "bird"]
    second = indices >= 23
    assert abs(second.mean() - 0.5) < 0.05
    assert set(labels[second]) == {1, 2} and set(labels[~second]) == {0, 1}
    for source, n in ((~second, 23), (second, 7)):  # each has its own epochs, and repeats only after one
        whole = len(indices[source]) // n * n
        seen = np.sort(indices[source][:whole].reshape(-1, n), axis=1)
        np.testing.assert_array_equal(seen, np.tile(seen[0], (len(seen), 1)))
        assert len(set(seen[0])) == n
        np.testing.assert_array_equal(epochs[source][:whole].reshape(-1, n)[:, 0], np.arange(whole // n))


@pytest.mark.parametrize("stop, workers", [(1, 0), (3, 2)])
def test_it_carries_on_from_any_step(packed: Dataset, stop: int, workers: int) -> None:
    reference = take(packed, 7)
    first = loader(packed, workers=workers)
    before = list(islice(first, stop))
    assert first.state == stop  # the steps consumed, not those that workers have prepared
    after = take(packed, 7 - stop, start_step=first.state, world_size=1, workers=workers)
    for ours, expected in zip(before + after, reference, strict=True):
        assert_same(ours, expected)
    assert_same(next(iter(first)), reference[stop])


TURNED = ViewsConfig(
    global_views=1, global_size=8, local_views=0, actions=["hue", "rotation"], turned=2, turned_size=12
)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (3, 0)])
def test_angles_do_not_depend_on_ranks_workers_and_where_a_run_was_continued(
    packed: Dataset, world_size: int, workers: int
) -> None:
    options = {"batch_size": 7, "views": TURNED}
    reference = take(packed, 5, **options)
    ranks = [
        take(packed, 3, rank=r, world_size=world_size, workers=workers, start_step=2, **options)
        for r in range(world_size)
    ]
    for step, whole in enumerate(reference[2:]):
        assert_same(joined([rank[step] for rank in ranks]), whole)
    angles = torch.cat([batch.actions[1] for batch in reference], dim=1)
    assert angles.shape == (2, 35, 2) and angles.dtype == torch.float32
    assert len(angles.unique()) == angles.numel()  # no two views, samples or epochs have the same
    assert not any(batch.actions[0].any() for batch in reference)


def test_the_hue_is_turned_by_the_photometric_parameters_and_others_that_undo_it_are_off(
    packed: Dataset,
) -> None:
    options = {"batch_size": 20, "augment": AugmentConfig(turned=True)}
    (batch,) = take(packed, 1, views=TURNED, **options)
    (plain,) = take(packed, 1, views=TURNED.model_copy(update={"actions": ["rotation"]}), **options)
    column = {name: number for number, name in enumerate(PARAMETERS)}
    turned, upright = batch.parameters[1], batch.parameters[0]
    assert torch.equal(turned[..., column["turn"]], batch.actions[1][..., 0])
    assert not upright[..., column["turn"]].any()
    for name in ("hue", "grey", "solarize"):
        assert (turned[..., column[name]] == IDENTITY[column[name]]).all()
        assert (plain.parameters[1][..., column[name]] != IDENTITY[column[name]]).any()
    kept = [column[name] for name in ("brightness", "contrast", "saturation", "blur")]
    assert torch.equal(turned[..., kept], plain.parameters[1][..., kept])
    assert torch.equal(upright, plain.parameters[0]) and torch.equal(batch.views[1], plain.views[1])
    assert torch.equal(plain.actions[1][..., 0], batch.actions[1][..., 1])


def test_turned_views_beside_others_have_no_other_photometric_change_by_default(packed: Dataset) -> None:
    (beside,) = take(packed, 1, batch_size=20, views=TURNED)
    (whole,) = take(packed, 1, batch_size=20, views=TURNED.model_copy(update={"turned": "all"}))
    turn = PARAMETERS.index("turn")
    expected = torch.tensor(IDENTITY).repeat(2, 20, 1)
    expected[..., turn] = beside.actions[1][..., 0]
    assert torch.equal(beside.parameters[1], expected)
    assert (whole.parameters[0][..., :turn] != expected[0, :, :turn]).any()


def test_turned_views_beside_leave_the_others_as_they_are(packed: Dataset) -> None:
    (turned,), (plain,) = (
        take(packed, 1, views=VIEWS.model_copy(update=extra))
        for extra in ({"actions": ["rotation", "hue"], "turned": 3, "turned_size": 16}, {})
    )
    assert plain.actions == [] and len(turned.views) == 3
    for x, y in zip(turned.views[:2] + turned.parameters[:2], plain.views + plain.parameters, strict=True):
        assert torch.equal(x, y)


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


@pytest.mark.parametrize("ranks", [2, 3, 4, 7, 10])
def test_any_number_of_ranks_takes_the_same_batch_in_shares_equal_to_within_one(
    packed: Dataset, ranks: int
) -> None:
    (whole,) = take(packed, 1, batch_size=10)
    parts = [take(packed, 1, batch_size=10, rank=rank, world_size=ranks)[0] for rank in range(ranks)]
    sizes = [len(part.indices) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    np.testing.assert_array_equal(np.concatenate([part.indices for part in parts]), whole.indices)
    assert torch.equal(torch.cat([part.views[0] for part in parts], dim=1), whole.views[0])


def test_more_ranks_than_images_are_refused(packed: Dataset) -> None:
    with pytest.raises(UserError, match=r"batch of 3 is not an image for each of 4 ranks; use at most 3"):
        loader(packed, batch_size=3, world_size=4)


def test_more_batches_than_shared_memory_holds_are_refused(
    packed: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000000")  # each of them has as many batches
    with pytest.raises(UserError, match=r"/dev/shm has .* MiB free.*data\.workers"):
        take(packed, 1, workers=1)
    take(packed, 1, workers=0)


def damaged(packed: Dataset, folder: Path, samples: list[int]) -> Dataset:
    """A copy of the set with some bytes of these samples overwritten."""
    shutil.copytree(packed.path, folder)
    for name, offset, _ in packed.ranges(np.array(samples)):
        with (folder / name).open("r+b") as file:
            file.seek(offset + 30)
            file.write(b"\xff\x00\xff")
    return Dataset(folder)


@pytest.mark.parametrize("world_size, workers", [(1, 0), (2, 1)])
def test_a_damaged_sample_is_replaced_and_moves_no_other(
    packed: Dataset, tmp_path: Path, world_size: int, workers: int
) -> None:
    broken = damaged(packed, tmp_path / "set", [3, 11])
    steps = 9  # three epochs and a bit
    ranks = [take(broken, steps, rank=r, world_size=world_size, workers=workers) for r in range(world_size)]
    replaced = []
    for step, whole in enumerate(take(packed, steps)):
        batch = joined([rank[step] for rank in ranks])
        same = ~np.isin(whole.indices, [3, 11])
        np.testing.assert_array_equal(batch.indices[same], whole.indices[same])
        assert torch.equal(batch.views[1][:, same], whole.views[1][:, same])
        # A replacement is augmented otherwise than where it stands by itself in the same epoch.
        for x, y in zip(batch.parameters, whole.parameters, strict=True):
            assert torch.equal(x, y)
        assert not np.isin(batch.indices, [3, 11]).any()
        np.testing.assert_array_equal(batch.labels, packed.labels[batch.indices])
        replaced += batch.replaced
    assert {r.sample for r in replaced} == {3, 11} and len(replaced) >= 6
    for entry in replaced:
        assert packed.key(entry.sample) in entry.name and "changed" in entry.reason


def test_a_set_without_a_whole_sample_ends_in_one_line(packed: Dataset, tmp_path: Path) -> None:
    broken = damaged(packed, tmp_path / "set", list(range(len(packed))))
    with pytest.raises(UserError, match=r"in a row are damaged, first: .*verify") as refused:
        take(broken, 1, workers=1)
    assert "\n" not in str(refused.value) and refused.value.__cause__ is None


@pytest.mark.parametrize("replacement", [None, b"x" * 4096])
def test_a_shard_deleted_or_replaced_during_training_ends_in_one_line(
    packed: Dataset, tmp_path: Path, replacement: bytes | None
) -> None:
    copy = tmp_path / "set"
    shutil.copytree(packed.path, copy)
    dataset = Dataset(copy)
    batches = iter(loader(dataset, batch_size=1, views=SMALL))
    next(batches)
    for shard in copy.glob("*.tar"):
        shard.unlink()
        if replacement:
            shard.write_bytes(replacement)
    with pytest.raises(UserError, match=r"shard .* (missing|replaced|bytes).*verify") as refused:
        list(islice(batches, 100))
    assert "\n" not in str(refused.value)


def test_workers_outlive_the_signals_that_stop_a_job(packed: Dataset) -> None:
    batches = iter(loader(packed, workers=1))
    next(batches)
    for child in torch.multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGINT)
    assert [next(batches).step for _ in range(6)] == list(range(1, 7))


def test_workers_end_when_the_batches_are_closed(packed: Dataset) -> None:
    batches = iter(loader(packed, workers=2, views=SMALL))
    next(batches)
    children = torch.multiprocessing.active_children()
    assert len(children) >= 2
    os.kill(children[0].pid, signal.SIGSTOP)  # like a worker that hangs
    batches.close()
    for child in children:
        child.join(10)
        assert not child.is_alive()


def test_a_dataset_is_pickled_by_its_place(packed: Dataset) -> None:
    packed.read(0)
    blob = pickle.dumps(packed)
    assert len(blob) < 2000
    again = pickle.loads(blob)
    assert again.read(5) == packed.read(5) and again.fingerprint == packed.fingerprint


def test_quarter_turns_turn_whole_views_as_often_as_asked(packed: Dataset) -> None:
    """Crops and colours are those of a run without them, and each of the three turns is as likely."""
    views = ViewsConfig(global_views=4, global_size=16, local_views=4, local_size=8)
    plain = take(packed, 30, views=views)
    turned = take(packed, 30, views=views, augment=AugmentConfig(quarter_turns=0.6))
    counts = np.zeros(4)
    for before, after in zip(plain, turned, strict=True):
        for x, y in zip(before.views, after.views, strict=True):
            for a, b in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True):
                fitting = [k for k in range(4) if torch.equal(a.rot90(k, (1, 2)), b)]
                assert fitting
                counts[fitting[0]] += 1
        assert all(map(torch.equal, before.parameters, after.parameters))
    assert counts / counts.sum() == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.04)


def test_turned_views_are_not_turned_by_quarters(packed: Dataset) -> None:
    """An action's view would otherwise show another angle than the one that is known."""
    views = ViewsConfig(global_views=1, global_size=16, local_views=0, actions=["hue"], turned=2)
    plain, turned = (take(packed, 2, views=views, augment=AugmentConfig(quarter_turns=q)) for q in (0.0, 1.0))
    for before, after in zip(plain, turned, strict=True):
        assert not torch.equal(before.views[0], after.views[0])
        assert torch.equal(before.views[1], after.views[1])


def test_noise_leaves_all_other_random_numbers_as_they_were(packed: Dataset) -> None:
    noisy = AugmentConfig(noise_probability=1.0, gamma_probability=1.0, channel_drop_probability=1.0)
    for before, after in zip(take(packed, 2), take(packed, 2, augment=noisy), strict=True):
        assert all(map(torch.equal, before.views, after.views))
        for x, y in zip(before.parameters, after.parameters, strict=True):
            assert torch.equal(x[..., :GAMMA], y[..., :GAMMA])
            assert (y[..., NOISE] > 0).all() and (y[..., DROP] > 0).all()
    keys = torch.cat([p[..., KEY].flatten() for p in after.parameters])
    assert len(keys.unique()) == len(keys)
    # Every rank and every number of workers sees the same noise.
    ranks = [take(packed, 1, augment=noisy, rank=r, world_size=2)[0] for r in range(2)]
    assert_same(joined(ranks), take(packed, 1, augment=noisy, workers=2)[0])


def test_rotations_change_some_views_and_nothing_else(packed: Dataset) -> None:
    views = ViewsConfig(global_views=2, global_size=16, local_views=2, local_size=8)
    plain = take(packed, 5, views=views)
    rotated = take(packed, 5, views=views, augment=AugmentConfig(rotation_probability=0.5))
    changed: list[bool] = []
    for before, after in zip(plain, rotated, strict=True):
        for x, y in zip(before.views, after.views, strict=True):
            changed += (x != y).flatten(2).any(2).flatten().tolist()
        assert all(torch.equal(a, b) for a, b in zip(before.parameters, after.parameters, strict=True))
    assert 0.35 < np.mean(changed) < 0.65
