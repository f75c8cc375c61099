import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.order.mixture import PERIOD, Mixture
from isotorus.errors import UserError

weights = st.lists(st.floats(0.01, 1e6), min_size=2, max_size=12).filter(lambda w: min(w) > sum(w) / PERIOD)


def shares(given: list[float]) -> NDArray[np.float64]:
    return np.array(given) / math.fsum(given)


@settings(max_examples=40, deadline=None)
@given(weights=weights, seed=st.integers(-(2**66), 2**66), period=st.integers(0, 2**40))
def test_each_period_has_exact_proportions_and_no_gap_in_any_source(
    weights: list[float], seed: int, period: int
) -> None:
    mixture = Mixture(weights, seed)
    source, local = mixture.locate(np.arange(PERIOD * period, PERIOD * (period + 2)))
    for half in source[:PERIOD], source[PERIOD:]:
        counts = np.bincount(half, minlength=len(weights))
        assert (np.abs(counts - shares(weights) * PERIOD) < 1).all()
    for k in range(len(weights)):
        count = int((source[:PERIOD] == k).sum())
        np.testing.assert_array_equal(local[source == k], period * count + np.arange(2 * count))


@settings(max_examples=40, deadline=None)
@given(weights=weights, seed=st.integers(0, 2**32), data=st.data())
def test_every_stretch_is_fair(weights: list[float], seed: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, 3 * PERIOD))
    length = data.draw(st.integers(1, PERIOD))
    source, _ = Mixture(weights, seed).locate(np.arange(first, first + length))
    off = np.bincount(source, minlength=len(weights)) - length * shares(weights)
    assert (np.abs(off) <= 2 * (1 + len(weights) * shares(weights)) + length / PERIOD).all()


@settings(max_examples=40, deadline=None)
@given(
    weights=weights,
    positions=st.lists(st.integers(0, 20 * PERIOD), min_size=1, max_size=30),
    cut=st.integers(0, 29),
)
def test_a_place_does_not_depend_on_what_is_asked_beside_it(
    weights: list[float], positions: list[int], cut: int
) -> None:
    mixture, p = Mixture(weights, 1), np.array(positions)
    whole = np.stack(mixture.locate(p))
    parts = [np.stack(mixture.locate(part)) for part in (p[: cut + 1], p[cut + 1 :]) if len(part)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal([mixture.locate(np.array(x)) for x in positions], whole.T)
    np.testing.assert_array_equal(np.stack(mixture.locate(p.reshape(-1, 1))), whole[..., None])


@settings(max_examples=10, deadline=None)
@given(weights=weights, lanes=st.integers(1, 100), first=st.integers(0, 2**40))
def test_each_lane_has_its_own_positions_of_a_source_in_order(
    weights: list[float], lanes: int, first: int
) -> None:
    mixture = Mixture(weights, 3, lanes)
    for lane in {0, 1 % lanes, lanes - 1}:
        places = np.arange(PERIOD + 700)
        source, local = mixture.locate(places, np.full_like(places, lane))
        later = mixture.locate(places + first, np.full_like(places, lane))
        for k in range(len(weights)):
            np.testing.assert_array_equal(local[source == k], lane + lanes * np.arange((source == k).sum()))
            assert (np.diff(later[1][later[0] == k]) == lanes).all() and (later[1] % lanes == lane).all()


@pytest.mark.parametrize("lanes", [2, 48, 64])
@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [2, 1], [0.7, 0.2, 0.07, 0.03]])
def test_a_place_of_all_lanes_is_as_fair_as_independent_draws(weights: list[float], lanes: int) -> None:
    places = np.arange(2000).repeat(lanes)
    source, _ = Mixture(weights, 0, lanes).locate(places, np.tile(np.arange(lanes), 2000))
    for k, share in enumerate(shares(weights)):
        count = (source.reshape(-1, lanes) == k).sum(1)
        assert count.mean() == pytest.approx(share * lanes, abs=0.02 * lanes)
        assert count.std() < 1.15 * math.sqrt(lanes * share * (1 - share))


def test_sources_follow_each_other_without_a_pattern() -> None:
    source, _ = Mixture([1, 1], 0).locate(np.arange(4 * PERIOD))
    again = (source[1:] == source[:-1]).mean()
    assert 0.2 < again < 0.5  # turns would give 0, coin tosses a half
    periods = source.reshape(4, PERIOD)
    others, _ = Mixture([1, 1], 1).locate(np.arange(PERIOD))
    for a, b in (periods[0], periods[1]), (periods[2], periods[3]), (periods[0], others):
        assert (a == b).mean() == pytest.approx(0.5, abs=0.05)


def test_the_largest_remainders_get_the_slots_that_are_left() -> None:
    assert Mixture([1, 1, 1], 0).slots == (5462, 5461, 5461)
    assert Mixture([1e308, 1e308], 0).slots == (8192, 8192)
    assert Mixture([0.7, 0.2, 0.1], 0).slots == (11469, 3277, 1638)  # of 11468.8, 3276.8, 1638.4
    assert Mixture([1, PERIOD - 1], 0).slots == (1, PERIOD - 1)


def test_a_single_source_is_left_as_it_is() -> None:
    positions = np.array([[0, 5], [10**15, 2**61]])
    source, local = Mixture([0.3], 4).locate(positions)
    assert not source.any()
    np.testing.assert_array_equal(local, positions)


@pytest.mark.parametrize(
    "weights, message",
    [
        ([0.0, 0.0], r"weights of data\.sources are \[0\.0, 0\.0\]"),
        ([0.0], r"weights of data\.sources"),
        ([1.0, -2.0], r"data\.sources\.1\.weight is -2\.0"),
        ([math.nan, 1.0], r"data\.sources\.0\.weight is nan"),
        ([1.0, math.inf], r"data\.sources\.1\.weight is inf"),
        ([1.0, 2.0, 1e-5], r"data\.sources\.2\.weight is 1e-05, a share of 3\.3e-06; .* 1/16384"),
        ([1.0, 0.0], r"data\.sources\.1\.weight is 0\.0"),
    ],
)
def test_weights_that_make_no_mixture_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        Mixture(weights, 0)
    assert "\n" not in str(refused.value)
