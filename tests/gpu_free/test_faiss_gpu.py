"""Searches use the GPU of their own process, after torch has given back what it does not need.

FAISS's functions for GPUs are replaced by those for CPUs, with the same arguments.
"""

from typing import Any

import faiss
import numpy as np
import pytest
import torch

from eval_suite import faiss_gpu
from eval_suite.geometry import nearest
from eval_suite.usefulness import neighbors

OWN = 3


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what is done with GPUs, in order, on a machine that seems to have several."""
    done: list[Any] = []

    def knn_gpu(resources: str, queries: Any, x: Any, k: int, device: int) -> Any:
        done.append(("search", device))
        return faiss.knn(queries, x, k)

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
