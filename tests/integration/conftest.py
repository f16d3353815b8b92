"""What the tests of parts together stand on."""

from collections.abc import Iterator

import pytest
from redis import Redis


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Redis]:
    """A client of the empty broker."""
    with Redis.from_url(valkey_url) as client:
        yield client
