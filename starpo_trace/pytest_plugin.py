"""pytest -> the fixture `starpo_spans`, in every project that has Starpo installed.

pytest imports this at each start, so it imports nothing itself.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starpo_trace.testing import MemoryStore


def pytest_configure(config: pytest.Config) -> None:
    """Make the fixture's marker known."""
    config.addinivalue_line(
        "markers",
        "starpo(history, policy_id, is_fixed): how the fixture `starpo_spans` records",
    )


@pytest.fixture
def starpo_spans(request: pytest.FixtureRequest) -> "Iterator[MemoryStore]":
    """Record for the length of a test; the spans that ended so far, in memory."""
    from starpo_trace.testing import record_spans

    marker = request.node.get_closest_marker("starpo")
    with record_spans(**({} if marker is None else marker.kwargs)) as store:
        yield store
