"""Features that differ only by the rounding of their type count as constant, at every magnitude."""

import numpy as np
import pytest

from eval_suite.features.constant import is_constant

RANDOM = np.random.default_rng(0)
POINT = RANDOM.normal(size=16)
CLOUD = RANDOM.normal(size=(50, 16))


@pytest.mark.parametrize("size", [1e-18, 1.0, 1e3, 1e18])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_vector_that_varies_by_rounding_is_constant_at_every_size(size: float, kind: type):
    noise = 1 + np.finfo(kind).eps * RANDOM.uniform(-2, 2, (50, 16))
    assert is_constant((size * POINT * noise).astype(kind))
    assert not is_constant((size * (POINT + 1e-3 * CLOUD)).astype(kind))


def test_small_differences_far_from_the_origin_count_in_the_type_that_holds_them():
    far = 4.2e6 + CLOUD
    assert not is_constant(far)
    assert is_constant(np.full((50, 16), 4.2e6)) and is_constant(np.zeros((2, 1)))
    assert not is_constant(CLOUD[:1])
