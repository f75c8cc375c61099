"""Searches use the GPU of their own process, after torch has given back what it does not need.

FAISS's functions for GPUs are replaced by those for CPUs, with the same arguments.
"""

from typing import Any

import faiss
import numpy as np
import pytest
import torch

from eval_suite.features import faiss_gpu
from eval_suite.geometry import nearest
from eval_suite.usefulness import neighbors

OWN = 3


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what is done with GPUs, in order, on a machine that seems to have several."""
    done: list[Any] = []

    def knn_gpu(resources: str, queries: Any, x: Any, k: int, device: int) -> Any:
        done.append(("search", device) if x.dtype == np.float32 else ("search in float16", device))
        return faiss.knn(queries.astype(np.float32), x.astype(np.float32), k)

    def to_gpu(resources: str, device: int, index: Any) -> Any:
        done.append(("search", device))
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 8)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu)
    monkeypatch.setattr(faiss_gpu, "resources", lambda: "scratch space")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: OWN)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("room"))
    return done


def test_searches_run_on_the_own_gpu(done: list[Any]):
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    truth = np.linalg.norm(x[:, None] - x, axis=-1).argsort(1)[:, 1:4]
    np.testing.assert_array_equal(nearest.neighbours(x, 3).ids, truth)
    assert done == ["room", ("search", OWN)]
    done.clear()
    _, ids = neighbors.nearest(x, x, 1)
    np.testing.assert_array_equal(ids[:, 0], np.arange(40))
    assert done == ["room", ("search", OWN)]


def test_too_many_neighbours_for_a_gpu_are_searched_for_on_the_cpu(done: list[Any]):
    x = np.random.default_rng(0).normal(size=(faiss_gpu.MOST_NEIGHBOURS + 2, 2)).astype(np.float32)
    assert nearest.neighbours(x, len(x) - 1).ids.shape == (len(x), len(x) - 1)
    assert neighbors.nearest(x, x[:5], len(x))[1].shape == (5, len(x))
    assert not [what for what in done if what != "room"]


def spread(n: int, width: int, offset: float) -> np.ndarray:
    """Return points of a plane (n, width), half of them `offset` away from the others."""
    random = np.random.default_rng(0)
    x = np.zeros((n, width), dtype=np.float32)
    x[:, :2] = random.uniform(size=(n, 2))
    x[n // 2 :] += offset
    return x


@pytest.mark.parametrize(("offset", "halves"), [(0.0, True), (300.0, False)])
def test_cells_are_searched_in_float16_where_its_recall_suffices(
    done: list[Any], monkeypatch: pytest.MonkeyPatch, offset: float, halves: bool
):
    class OnCpu(faiss.Kmeans):  # this FAISS has no GPU for the cells
        def __init__(self, *arguments: Any, gpu: int, **options: Any) -> None:
            assert gpu == 1
            super().__init__(*arguments, **options)

    monkeypatch.setattr(faiss, "Kmeans", OnCpu)
    monkeypatch.setattr(nearest, "EXACT_BELOW", 1000)
    x = spread(6000, 4, offset)
    found = nearest.neighbours(x, 5, recall=0.97)
    in_halves = done.count(("search in float16", OWN))
    assert in_halves > 10 if halves else in_halves == 1  # the one that measured the recall
    exact = nearest.neighbours(x, 5, recall=1)
    hits = np.mean([len(set(a) & set(b)) for a, b in zip(found.ids, exact.ids, strict=True)]) / 5
    assert found.recall == pytest.approx(hits, abs=0.01) and hits > 0.96


def test_float16_rounds_on_the_cpu_as_an_index_in_float16_does():
    x = spread(2000, 8, 0.0)
    index: Any = faiss.IndexScalarQuantizer(8, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
    index.train(x)
    index.add(x)
    halves = x.astype(np.float16)
    _, ids = nearest._knn(halves, halves, 5)
    np.testing.assert_array_equal(ids, index.search(halves.astype(np.float32), 5)[1])
