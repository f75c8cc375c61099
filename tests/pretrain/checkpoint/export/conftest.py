"""What the tests of exports share."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_trace_log() -> Iterator[None]:
    """Keep pytest from collecting torch's trace log, which takes longer than the trace itself."""
    logger = logging.getLogger("torch.__trace")
    before, logger.propagate = logger.propagate, False
    yield
    logger.propagate = before
