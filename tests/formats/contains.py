"""Compare what an earlier version wrote with what today's code gives, which may have more keys."""

from typing import Any

import pytest


def assert_contains(found: Any, written: Any, but: tuple[str, ...] = (), place: str = "") -> None:
    """Assert that `found` has all keys and values of `written`.

    Numbers may differ by rounding. The keys `but` must be there, with any value.
    """
    if isinstance(written, dict):
        for key, value in written.items():
            assert key in found, f"{place}.{key} is gone"
            if key not in but:
                assert_contains(found[key], value, but, f"{place}.{key}")
    elif isinstance(written, list):
        assert len(found) == len(written), place
        for i, value in enumerate(written):
            assert_contains(found[i], value, but, f"{place}[{i}]")
    elif isinstance(written, float):
        assert found == pytest.approx(written, rel=1e-4, abs=1e-5), place
    else:
        assert found == written, place
