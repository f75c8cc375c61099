"""Neighbour graphs agree with scikit-learn, spectra with LAPACK and with closed forms."""

import json
import os
import subprocess
import sys

import networkx
import numpy as np
import pytest
import scipy.sparse
from sklearn.neighbors import kneighbors_graph

from eval_suite.geometry import eigensolver, graph, nearest, spectral_gap
from isotorus.errors import UserError


def flat_torus(n: int, seed: int = 0) -> np.ndarray:
    angles = np.random.default_rng(seed).uniform(0, 2 * np.pi, (n, 2))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def dense_spectrum(adjacency) -> np.ndarray:
    """All eigenvalues of the normalised Laplacian, by LAPACK; isolated vertices have zeros."""
    a = adjacency.toarray().astype(np.float64)
    degree = a.sum(axis=1)
    scale = 1 / np.sqrt(np.where(degree > 0, degree, 1))
    return np.linalg.eigvalsh(np.diag((degree > 0).astype(float)) - scale[:, None] * a * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_graph_is_the_union_of_sklearns_neighbours(dtype, offset):
    x = (np.random.default_rng(0).normal(size=(600, 20)) + offset).astype(dtype)
    directed = kneighbors_graph(x.astype(np.float64), 7)
    ours = graph.knn_graph(x, 7)
    assert ours.format == "csr"
    assert abs(ours - directed.maximum(directed.T)).max() == 0
    assert abs(ours - ours.T).max() == 0 and ours.diagonal().max() == 0


@pytest.mark.parametrize(
    ("kind", "recall"),
    [("torus", 0.9), *((kind, 0.999) for kind in ("torus", "clusters", "noise", "heavy", "copies"))],
)
def test_search_by_cells_has_the_recall_it_states(monkeypatch, kind, recall):
    monkeypatch.setattr(nearest, "EXACT_BELOW", 1000)
    random = np.random.default_rng(1)
    x = {
        "torus": flat_torus(8000) @ random.normal(size=(4, 32)),
        "clusters": random.normal(size=(30, 32))[random.integers(30, size=8000)] * 3
        + random.normal(size=(8000, 32)),
        "noise": random.normal(size=(8000, 32)),
        "heavy": random.standard_t(2, size=(8000, 6)),
        "copies": np.repeat(random.normal(size=(400, 6)), 20, axis=0),
    }[kind]
    found = nearest.neighbours(x, 10, recall=recall)
    exact = nearest.neighbours(x, 10, recall=1)
    distance, limit = (
        np.linalg.norm(x[:, None] - x[search.ids], axis=2) for search in (found, exact)
    )  # not ids, because copies of a row are equally near
    hits = (distance <= limit[:, -1:] * 1.0001).mean()
    assert exact.recall == 1
    assert found.recall == pytest.approx(hits, abs=0.01)
    assert recall <= found.recall <= 1 and hits >= recall
    assert (recall > 0.9) or found.recall < 0.99  # it searched no further than necessary
    assert (found.ids != np.arange(8000)[:, None]).all()


def test_rows_in_a_cell_of_few_search_all_cells():
    centroids = np.array([[0, 0], [10, 0], [0, 20]], dtype=np.float32)
    own = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    reach = np.where(own == 0, np.inf, 1.0).astype(np.float32)  # cell 0 has fewer rows than neighbours
    cells = nearest._Cells(centroids, own)
    visitors = cells.visitors(centroids[own], reach, number=0, part=0.5)
    assert [rows.tolist() for rows in visitors] == [[], [0, 1], [0, 1]]
    np.testing.assert_allclose(
        cells.borders(centroids[own[[0, 2]]], own[[0, 2]], np.arange(2)), [[0, 5], [5, 0]]
    )


def test_copies_of_a_row_do_not_link_it_to_itself():
    x = np.repeat(np.random.default_rng(0).normal(size=(40, 5)), 6, axis=0)
    ids = nearest.neighbours(x, 3).ids
    assert ids.shape == (240, 3)
    assert (ids != np.arange(240)[:, None]).all()
    assert (ids // 6 == np.arange(240)[:, None] // 6).all()
    assert graph.laplacian_spectrum(graph.knn_graph(x, 3), 5).components >= 40


def test_scale_and_constant_features_do_not_matter():
    x = np.random.default_rng(0).normal(size=(300, 6))
    padded = np.concatenate([x, np.full((300, 3), 7.0)], axis=1)
    expected = nearest.neighbours(x, 5).ids
    for same in (padded, x * 1e-30, x * 1e30):
        assert np.array_equal(nearest.neighbours(same, 5).ids, expected)


@pytest.mark.parametrize(
    ("x", "k", "said"),
    [
        (np.zeros((10, 3)), 2, "the same features"),
        (np.eye(5), 5, "k = 5 neighbours of 5 samples"),
        (np.eye(5), 0, "k = 0"),
        (np.zeros((0, 3)), 2, "shape (0, 3)"),
        (np.where(np.eye(6) > 0, np.nan, 1.0), 2, "6 of 6 samples have NaN"),
        (np.array([[np.inf, 1], [0, 1], [2, 3]]), 1, "1 of 3 samples"),
        (np.zeros((4, 3, 2)), 1, "shape (4, 3, 2)"),
    ],
)
def test_what_has_no_neighbours_is_refused_in_one_line(x, k, said):
    with pytest.raises(UserError) as refused:
        graph.knn_graph(x, k)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (networkx.cycle_graph(50), 1 - np.cos(2 * np.pi * np.arange(50) / 50)),
        (networkx.complete_graph(30), np.array([0] + [30 / 29] * 29)),
        (networkx.complete_bipartite_graph(4, 9), np.array([0] + [1] * 11 + [2])),
        (
            networkx.grid_2d_graph(12, 12, periodic=True),
            1
            - (
                np.cos(2 * np.pi * np.arange(12) / 12)[:, None] + np.cos(2 * np.pi * np.arange(12) / 12)
            ).ravel()
            / 2,
        ),
    ],
)
def test_closed_forms(made, expected):
    found = graph.laplacian_spectrum(networkx.to_scipy_sparse_array(made), 10)
    assert found.components == 1
    np.testing.assert_allclose(found.eigenvalues, np.sort(expected)[1:11], atol=1e-12)


def test_components_of_few_rows_have_their_closed_forms_together():
    cycles = [networkx.to_scipy_sparse_array(networkx.cycle_graph(n)) for n in (40, 50)]
    found = graph.laplacian_spectrum(scipy.sparse.block_diag(cycles, format="csr"), 8)
    expected = [1 - np.cos(2 * np.pi * mode / n) for n in (40, 50) for mode in (1, 1, 2, 2)]
    assert found.components == 2
    np.testing.assert_allclose(found.eigenvalues, np.sort(expected), atol=1e-12)


def test_grid_torus_by_iteration_has_its_fourfold_eigenvalues():
    found = graph.laplacian_spectrum(
        networkx.to_scipy_sparse_array(networkx.grid_2d_graph(50, 50, periodic=True)), 8
    )
    first = (1 - np.cos(2 * np.pi / 50)) / 2
    np.testing.assert_allclose(
        found.eigenvalues, [first] * 4 + [2 * first] * 4, rtol=2 * eigensolver.ACCURACY
    )


@pytest.mark.parametrize("kind", ["torus", "noise", "hubs"])
def test_iteration_agrees_with_lapack(kind):
    random = np.random.default_rng(3)
    x = {
        "torus": flat_torus(1500),
        "noise": random.normal(size=(1500, 100)),
        "hubs": random.standard_t(2, size=(1500, 30)),
    }[kind]
    adjacency = graph.knn_graph(x, 12)
    everything = dense_spectrum(adjacency)
    found = graph.laplacian_spectrum(adjacency, 12)
    assert found.components == (everything < 1e-10).sum()
    expected = everything[found.components : found.components + 12]
    np.testing.assert_allclose(found.eigenvalues, expected, rtol=0, atol=eigensolver.ACCURACY * expected[-1])


def test_disconnected_graphs_merge_their_components_spectra():
    parts = [
        graph.knn_graph(flat_torus(1200), 10),
        networkx.to_scipy_sparse_array(networkx.cycle_graph(40)),
        scipy.sparse.csr_array(np.zeros((1, 1))),
        networkx.to_scipy_sparse_array(networkx.path_graph(2)),
    ]
    union = scipy.sparse.block_diag(parts, format="csr")
    shuffled = np.random.default_rng(0).permutation(union.shape[0])
    union = union[shuffled][:, shuffled]
    everything = dense_spectrum(union)
    assert (everything[:4] < 1e-10).all() and everything[4] > 1e-4
    found = graph.laplacian_spectrum(union, 20)
    assert found.components == 4
    np.testing.assert_allclose(
        found.eigenvalues, everything[4:24], rtol=0, atol=eigensolver.ACCURACY * everything[23]
    )


def test_a_weak_link_is_a_small_eigenvalue_and_no_zero_mode():
    two = scipy.sparse.block_diag([np.ones((30, 30)) - np.eye(30)] * 2, format="lil")
    two[0, 30] = two[30, 0] = 1e-7
    found = graph.laplacian_spectrum(two.tocsr(), 3)
    assert found.components == 1 and 0 <= found.eigenvalues[0] < 1e-8 < found.eigenvalues[1]


def test_fewer_eigenvalues_than_asked_for_and_none():
    assert len(graph.laplacian_spectrum(networkx.to_scipy_sparse_array(networkx.path_graph(4)), 10)[0]) == 3
    empty = graph.laplacian_spectrum(scipy.sparse.csr_array((5, 5)), 10)
    assert empty.components == 5 and len(empty.eigenvalues) == 0


@pytest.mark.parametrize("bad", [np.ones((2, 3)), np.array([[0, 1], [0, 0]]), np.array([[0, -1], [-1, 0]])])
def test_what_is_no_adjacency_is_refused(bad):
    with pytest.raises(ValueError, match="laplacian_spectrum"):
        graph.laplacian_spectrum(scipy.sparse.csr_array(bad))


@pytest.mark.parametrize(("n", "k"), [(500, 10), (500, 30), (2000, 10), (2000, 30), (5000, 10), (5000, 30)])
def test_a_perfect_torus_has_the_gap_and_multiplicities_of_one(n, k):
    found = spectral_gap.summary(flat_torus(n, seed=n + k), k, subsamples=0)
    assert found["torus_ratio"] == pytest.approx(1, abs=0.1)
    assert found["second_band"] == pytest.approx(2, abs=0.12)
    assert found["components"] == 1


def test_reference_approaches_the_closed_form():
    closed = np.pi * 20 / (2 * 10_000)
    assert spectral_gap.band(spectral_gap.torus_reference(10_000, 20)) == pytest.approx(closed, rel=0.05)
    assert spectral_gap.band(spectral_gap.torus_reference(1_000_000, 20)) == pytest.approx(
        closed / 100, rel=0.05
    )


def test_summary_separates_a_sphere_a_circle_and_noise_from_a_torus():
    random = np.random.default_rng(0)
    sphere = random.normal(size=(2000, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    angle = random.uniform(0, 2 * np.pi, 2000)
    measured = {
        "sphere": spectral_gap.summary(sphere, subsamples=0),
        "circle": spectral_gap.summary(np.stack([np.cos(angle), np.sin(angle)], axis=1), subsamples=0),
        "noise": spectral_gap.summary(random.normal(size=(2000, 40)), subsamples=0),
    }
    eigenvalues = np.array(measured["sphere"]["eigenvalues"])
    assert eigenvalues[3:8].mean() / eigenvalues[:3].mean() == pytest.approx(3, rel=0.1)  # l(l+1): 2, 6
    assert measured["circle"]["spread"] > 3
    assert measured["noise"]["second_band"] < 1.15 and measured["noise"]["torus_ratio"] > 10
    assert measured["noise"]["gaussian_ratio"] == pytest.approx(1, abs=0.1)
    assert measured["sphere"]["gaussian_ratio"] < 0.5


def test_intervals_hold_the_value_and_the_summary_is_json():
    found = spectral_gap.summary(flat_torus(600), 15, seed=3)
    for name, (low, high) in found["intervals"].items():
        assert low < high and low < found[name] * 1.05 and high > found[name] * 0.95
    low, high = found["intervals"]["torus_ratio"]
    assert 0.01 < high - low < 0.2
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert spectral_gap.summary(flat_torus(600), 15, seed=3) == found


def test_a_spectrum_leaves_the_number_of_threads_as_it_was():
    """OMP_NUM_THREADS holds for torch after numba has started its own threads."""
    code = (
        "import numpy as np, scipy.sparse, torch\n"
        "from eval_suite.geometry import eigensolver\n"
        "n = 1200\n"
        "ring = scipy.sparse.diags_array([0.5] * 4, offsets=[1, -1, n - 1, 1 - n], shape=(n, n)).tocsr()\n"
        "eigensolver.largest(ring, np.full(n, n**-0.5), 4)\n"
        "print(torch.get_num_threads())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["1"]
