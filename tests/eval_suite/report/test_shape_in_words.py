"""Sentences give the ratio of a torus's circles, and read verdicts of earlier versions, which have none."""

from eval_suite.report.sentences import NO_SHAPE, about_geometry, shape_in_words


def test_a_torus_has_its_ratio_and_no_shape_has_what_is_nearest():
    torus = {"name": "rectangular flat torus T²", "flat_torus": {"ratio": 2.04}, "nearest": ""}
    assert shape_in_words(torus) == "rectangular flat torus T² with circles 2.04 : 1"
    none = {"name": "none of these", "flat_torus": None, "nearest": "a torus's homology, not …"}
    assert shape_in_words(none) == f"{NO_SHAPE} (nearest: a torus's homology, not …)"


def test_verdicts_of_earlier_versions_are_read():
    assert shape_in_words({"name": "flat torus T²", "topology": "torus"}) == "flat torus T²"
    assert shape_in_words({"name": "none of these", "topology": ""}) == NO_SHAPE
    assert shape_in_words({"name": "circle", "flat_torus": {"ratio": 3.9}}) == "circle"


def test_pairs_of_angles_are_counted():
    pairs = {"pairs": [{"name": "flat torus T²"}, {"name": "none of these"}], "of": 3}
    said = about_geometry({"geometry": {"angles": {"verdict": {"name": "none of these"}, "pairs": pairs}}})
    assert said.endswith("(1 of 2 pairs of angles are flat tori).")
