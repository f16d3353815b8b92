"""Six connections charge one pool without a pause: nobody else waits until they are done, and nothing else grows."""

import pytest

from tests.races.busy_pool import CREDIT_USERS, Measured, measure
from tests.races.racing import deadlocks, findings, worker

CALLS = 2 * len(CREDIT_USERS)


@pytest.mark.timeout(600)
def test_owners_change_and_users_are_saved_while_a_pool_is_charged_without_a_pause(postgres_url: str) -> None:
    """How long they waited is printed, and no condition: what else the machine does would decide."""
    seen = measure(postgres_url, connections=6, calls=CALLS)

    print(seen)  # noqa: T201  figures to look at, with `pytest -s`
    assert (len(seen.changes.took), len(seen.saves.took)) == (CALLS, CALLS)
    assert all(_ran_on(seen, load.committed) for load in seen.loads)
    assert seen.charged == seen.spent
    with worker(postgres_url) as context:
        assert findings(context) == []
        assert deadlocks(context) == 0


def _ran_on(seen: Measured, committed: list[float]) -> bool:
    """Whether a connection charged between the first call and the last one, and after it."""
    first, last = min(seen.changes.began[0], seen.saves.began[0]), max(seen.changes.began[-1], seen.saves.began[-1])
    return any(first < moment < last for moment in committed) and committed[-1] > last


@pytest.mark.timeout(600)
def test_charging_makes_no_multixacts(postgres_url: str) -> None:
    """Rows that several transactions lock at once would fill a store that PostgreSQL must clean up in time."""
    seen = measure(postgres_url, connections=8, calls=10, charges=10_000)

    assert seen.charged >= 10_000
    assert seen.multixacts == 0
