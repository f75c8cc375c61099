"""Options keep the form that results.json has had, so that finished evaluations are found again."""

from eval_suite.options import Options

STORED = {
    "metrics": ["rank", "shape", "views", "graph", "homology"],
    "baselines": ["untrained", "pixels", "handmade"],
    "initialisations": 3,
    "features": None,
    "pixel_size": 32,
    "samples": 10_000,
    "neighbours": 15,
    "landmarks": None,
    "draws": 20,
    "objects": 256,
    "views": 8,
    "seed": 0,
}
"""Options in results.json of format 2, without `useful`."""


def test_stored_options_are_those_of_earlier_results():
    stored = Options().stored()
    useful = stored.pop("useful")
    assert stored == STORED
    assert useful["draws"] == 20 and useful["k"] == [10, 20, 100, 200]
