"""The winding memory against exhaustive search, and what it refuses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from isotorus.errors import UserError
from pretrain.geometry import flat_torus
from pretrain.geometry.memory import ABSENT, STEPS, WindingMemory


def draw(n: int, m: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-3 * np.pi, 3 * np.pi, (n, m))


def filled(n: int = 400, m: int = 2, bins: int = 8, seed: int = 0) -> tuple[WindingMemory, np.ndarray]:
    memory, angles = WindingMemory(m, bins), draw(n, m, seed)
    memory.add(angles, np.arange(n))
    return memory, angles


def geodesic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return flat_torus.geodesic(torch.from_numpy(a)[:, None], torch.from_numpy(b)[None]).numpy()


@pytest.mark.parametrize(("m", "bins"), [(1, 1), (2, 8), (3, 5), (16, 2)])
def test_nearest_items_are_those_of_exhaustive_search(m: int, bins: int):
    memory, angles = filled(400, m, bins)
    queries = draw(50, m, 1)
    found = memory.query(queries, 5)
    whole = geodesic(queries, angles)
    # A stored angle is off by up to half a step of a bin.
    rounding = math.sqrt(m) * math.pi / bins / STEPS
    np.testing.assert_allclose(found.distances, np.sort(whole, axis=1)[:, :5], atol=rounding)
    of_found = np.take_along_axis(whole, found.ids, axis=1)
    np.testing.assert_allclose(found.distances, of_found, atol=rounding)
    assert (found.cells <= memory.occupied).all()
    if m == 2:
        assert found.cells.mean() < 0.3 * memory.occupied


def test_cells_are_probed_by_geodesic_distance_and_across_the_seam():
    memory = WindingMemory(1, 8)
    memory.add(np.array([[0.01], [2 * np.pi - 0.01], [np.pi]]), np.array([10, 11, 12]))
    found = memory.query(np.array([[-0.02]]), 2)
    assert found.ids.tolist() == [[11, 10]]
    assert found.distances[0] == pytest.approx([0.01, 0.03], abs=np.pi / 8 / STEPS)
    # The query's own cell alone does not know of the item just beyond its edge.
    assert memory.query(np.array([[-0.02]]), 2, cells=1).ids.tolist() == [[11, ABSENT]]


def test_more_cells_find_more():
    memory, _ = filled(2000, 3, 8)
    queries = draw(100, 3, 2)
    exact = memory.query(queries, 10).ids
    recall = [
        np.mean(
            [
                len(set(a) & set(b)) / 10
                for a, b in zip(memory.query(queries, 10, cells=c).ids, exact, strict=True)
            ]
        )
        for c in (1, 4, 16, 64)
    ]
    assert recall == sorted(recall) and recall[0] < 0.5 and recall[-1] > 0.95


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=40), st.integers(1, 4))
def test_layers_separate_what_shares_a_cell(steps: list[tuple[bool, int]], bins: int):
    """Against a dictionary of addresses, through any sequence of adding and deleting."""
    memory, known = WindingMemory(1, bins), {}
    for adds, item in steps:
        angle = item * 0.7
        if adds and item not in known:
            memory.add(np.array([[angle]]), np.array([item]))
            cell = int(angle / (2 * np.pi) % 1 * bins)
            above = [layer for b, layer in known.values() if b == cell]
            known[item] = (cell, max(above, default=-1) + 1)
        elif not adds:
            assert memory.delete(np.array([item])) == (known.pop(item, None) is not None)
    assert len(memory) == len(known)
    for item, (cell, layer) in known.items():
        assert memory.address(item) == ((cell,), layer)
        assert memory.at([cell], layer) == item
    assert memory.at([0], 10_000) is None


def test_items_of_one_cell_that_came_together_are_layers_in_their_order():
    memory = WindingMemory(2, 2)
    memory.add(np.full((3, 2), 0.1), np.array([7, 5, 6]))
    memory.add(np.full((2, 2), 0.2), np.array([1, 2]))
    assert [memory.address(item).layer for item in (7, 5, 6, 1, 2)] == [0, 1, 2, 3, 4]
    assert memory.occupied == 1


def test_saved_and_loaded_it_answers_alike(tmp_path: Path):
    memory, _ = filled(300, 3, 6)
    memory.delete(np.arange(0, 300, 7))
    memory.save(tmp_path / "memory.safetensors")
    loaded = WindingMemory.load(tmp_path / "memory.safetensors", angles=3, bins=6)
    before, after = (m.query(draw(40, 3, 3), 4) for m in (memory, loaded))
    np.testing.assert_array_equal(before.ids, after.ids)
    np.testing.assert_array_equal(before.distances, after.distances)
    assert loaded.address(5) == memory.address(5) and loaded.nbytes == memory.nbytes
    # 3 + 12 bytes an item, and what the cells take.
    assert memory.nbytes == 15 * len(memory) + (3 + 8) * memory.occupied + 8


def test_nothing_stored_is_nothing_found():
    found = WindingMemory(2, 4).query(draw(3, 2), 2)
    assert (found.ids == ABSENT).all() and np.isinf(found.distances).all()


def test_what_is_refused(tmp_path: Path):
    memory, _ = filled(20)
    memory.save(tmp_path / "m.safetensors")
    for bad in ([0, 8], [-1, 0], [0]):
        with pytest.raises(UserError, match="expected 2 bins, each of 0 to 7"):
            memory.at(bad, 0)
    with pytest.raises(UserError, match="saved with 8 bins, not 9; fill a new one"):
        WindingMemory.load(tmp_path / "m.safetensors", bins=9)
    with pytest.raises(UserError, match="saved with 2 angles, not 3"):
        WindingMemory.load(tmp_path / "m.safetensors", angles=3)
    with pytest.raises(UserError, match="id 3 would be there twice"):
        memory.add(draw(1, 2), np.array([3]))
    with pytest.raises(UserError, match="at most 256 bins"):
        WindingMemory(2, 257)
    with pytest.raises(UserError, match="2⁶³ cells"):
        WindingMemory(16, 16)
    with pytest.raises(ValueError, match="angles are"):
        memory.query(draw(1, 3), 1)
    (tmp_path / "text").write_text("no tensors")
    for other in (tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(UserError, match="is no winding memory"):
            WindingMemory.load(other)
    arrays = load_file(tmp_path / "m.safetensors")
    kept = '{"format": "x", "angles": "2", "bins": "8"}'
    save_file(arrays | {"ids": arrays["ids"][:-1]}, tmp_path / "cut", {"memory": kept})
    with pytest.raises(UserError, match="is damaged"):
        WindingMemory.load(tmp_path / "cut")
