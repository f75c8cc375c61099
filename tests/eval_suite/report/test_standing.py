"""The headline is decided against the best baseline, and claims no more than its interval allows."""

import pytest

from eval_suite.report.sentences import headline
from eval_suite.report.standing import leaders, standings
from eval_suite.report.summary.advice import what_next
from eval_suite.report.summary.lines import about_usefulness
from tests.eval_suite.report.compared import results


def test_ahead_of_every_baseline():
    found = results(
        baselines={"untrained": (0.70, (0.07, 0.13)), "pixels": (0.77, (0.01, 0.05)), "resnet": (0.6, None)}
    )
    assert standings(found)[0].outcome == "ahead"
    assert headline(found) == (
        "Pretraining helps: 3.0 points ahead of the best baseline, raw pixels "
        "(95\u00a0% interval +1.0 to +5.0; linear probe, AUROC)."
    )
    assert what_next(found) == "Next: use it: isotorus export runs/a/checkpoints/latest --out encoder"


def test_ahead_of_untrained_but_far_behind_pixels_is_not_yet_a_help():
    found = results(ours=0.55, baselines={"untrained": (0.5, (0.03, 0.07)), "pixels": (0.97, (-0.44, -0.4))})
    assert standings(found)[0].outcome == "ahead of untrained"
    assert headline(found) == (
        "Not yet: raw pixels are 42.0 points ahead (95\u00a0% interval +40.0 to +44.0; linear probe, AUROC). "
        "The pretrained encoder is 5.0 points ahead of the untrained encoder "
        "(95\u00a0% interval +3.0 to +7.0)."
    )
    assert "helps" not in about_usefulness(found)
    assert "steps=1000" in what_next(found) and "views.global_scale" in what_next(found)


def test_level_with_another_encoder_is_not_ahead_of_it():
    found = results(baselines={"untrained": (0.7, (0.07, 0.13)), "dino": (0.79, (-0.01, 0.03))})
    assert standings(found)[0].outcome == "ahead of untrained"
    assert headline(found).startswith("Better than untrained, but not clearly than dino: +1.0 points (")
    assert "encoder.weights=" in what_next(found)


def test_no_effect_says_which_effects_could_have_been_seen():
    found = results(baselines={"untrained": (0.799, (-0.023, 0.025)), "pixels": (0.79, (-0.02, 0.04))})
    assert standings(found)[0].outcome == "unclear"
    said = headline(found)
    assert said.startswith("No effect seen: +0.1 points against the untrained encoder (")
    assert said.endswith("Effects below about 2.4 points cannot be seen on this set.")
    assert "--folds 5" in what_next(found)
    found["reported_on"] = "folds"
    assert "label four times as many images" in what_next(found)
    found["checkpoint"]["seeds"] = [0, 1, 2]
    assert "cannot be seen with these seeds" in headline(found) and "more seeds" in what_next(found)


def test_a_test_split_beside_the_folds_is_reported_and_decides_nothing():
    found = results(baselines={"untrained": (0.70, (0.07, 0.13)), "pixels": (0.77, (0.01, 0.05))})
    found["reported_on"] = "folds"
    found["representations"]["pretrained"]["probe"]["test"] = {"auroc": 0.75}
    found["representations"]["pixels"]["probe"]["test"] = {"auroc": 0.78}
    found["differences"]["pixels"]["probe"]["test"] = {"auroc": {"value": -0.03, "interval": [-0.09, 0.03]}}
    assert headline(found).startswith("Pretraining helps: 3.0 points ahead of the best baseline, raw pixels")
    assert (
        about_usefulness(found)
        .split("balanced accuracy 70.0\u00a0%. ")[1]
        .startswith(
            "On the test split, which is in no fold: linear probe AUROC 75.0\u00a0%, −3.0 points against raw "
            "pixels (95\u00a0% interval −9.0 to +3.0). Next: use it"
        )
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("untrained", "Pretraining hurts: the untrained encoder is 10.0 points ahead"),
        ("pixels", "Behind: raw pixels are 10.0 points ahead"),
        ("dino", "Behind: dino is 10.0 points ahead"),
    ],
)
def test_behind_names_what_is_ahead(name: str, said: str):
    found = results(baselines={name: (0.9, (-0.12, -0.08))})
    assert standings(found)[0].outcome == "behind"
    assert headline(found).startswith(f"{said} (95\u00a0% interval +8.0 to +12.0; ")
    assert "isotorus sweep --config runs/a/config.yaml optimizer.lr=" in what_next(found)


def test_the_best_untrained_initialisation_counts():
    found = results(
        baselines={
            "untrained": (0.70, (0.07, 0.13)),
            "untrained-2": (0.82, (-0.05, 0.01)),
            "untrained-3": (0.74, (0.03, 0.09)),
        }
    )
    (standing,) = standings(found)
    assert standing.outcome == "unclear"
    assert standing.untrained is not None and standing.untrained.baseline == "untrained-2"
    assert "against the untrained encoder (2) (" in headline(found)


def test_the_probe_decides_and_knn_is_named_where_it_disagrees():
    probe = {"untrained": (0.7, (0.07, 0.13)), "pixels": (0.75, (0.02, 0.08))}
    found = results(baselines=probe, knn={"untrained": (0.7, (0.07, 0.13)), "pixels": (0.9, (-0.12, -0.08))})
    said = headline(found)
    assert said.startswith("Pretraining helps: 5.0 points ahead of the best baseline, raw pixels (")
    assert "k-NN disagrees: raw pixels are 10.0 points ahead (95\u00a0% interval +8.0 to +12.0)." in said
    assert "disagrees" not in headline(results(baselines=probe, knn=probe))


def test_heads_of_the_pretrained_model_are_no_baselines():
    found = results(baselines={"untrained": (0.7, (0.07, 0.13)), "projector": (0.95, (-0.17, -0.13))})
    assert standings(found)[0].outcome == "ahead"


def test_averaged_weights_of_the_same_run_do_not_decide_whether_pretraining_helps():
    found = results(baselines={"untrained": (0.7, (0.07, 0.13)), "averaged": (0.81, (-0.02, 0.01))})
    assert standings(found)[0].outcome == "ahead"
    assert headline(found).startswith("Pretraining helps: 10.0 points ahead of the untrained encoder")


def test_a_baseline_without_a_score_is_named_and_costs_nothing_else():
    found = results(baselines={"untrained": (0.7, (0.07, 0.13))})
    found["representations"]["handmade"] = {}
    assert standings(found)[0].outcome == "ahead"
    said = headline(found)
    assert said.endswith("Not compared, for want of a linear probe score: hand-made descriptors.")
    del found["representations"]["untrained"]
    assert headline(found) == ""
    assert about_usefulness(found) == (
        "The pretrained encoder on the test split: linear probe AUROC 80.0\u00a0%, "
        "balanced accuracy 70.0\u00a0%. Next: compare it with baselines: "
        "isotorus eval runs/a --baselines untrained,pixels,handmade"
    )


def test_without_a_paired_interval_the_two_intervals_are_put_together():
    (standing,) = standings(results(baselines={"dino": (0.77, None)}))
    # Both scores have ± 0.02, so an independent difference has ± 0.02·√2.
    assert (standing.best.low, standing.best.high) == pytest.approx((0.03 - 0.0283, 0.03 + 0.0283), abs=1e-4)
    assert standing.outcome == "ahead"


def test_without_any_interval_no_effect_is_claimed():
    found = results(baselines={"untrained": (0.5, None)})
    found["representations"]["untrained"]["probe"]["auroc_interval"] = [None, None]
    assert standings(found)[0].outcome == "unclear"
    assert headline(found).startswith("No effect can be claimed: +30.0 points against the untrained")


def test_bold_is_the_best_or_level_with_it():
    found = results(
        baselines={"a": (0.81, (-0.03, 0.01)), "b": (0.795, (-0.01, 0.02)), "c": (0.78, (0.01, 0.03))}
    )
    # a is best; pretrained is level by the paired interval, b lies within a's interval, c does not.
    assert leaders(found, "probe/auroc") == {"a", "pretrained", "b"}
    far = results(ours=0.9, baselines={"a": (0.81, (0.05, 0.13)), "b": (0.89, (-0.01, 0.03))})
    assert leaders(far, "probe/auroc") == {"pretrained", "b"}
    assert leaders(far, "probe/accuracy") == set()
