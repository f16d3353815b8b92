"""The short form of the chaos scenarios: each runs once, small, in one rig. `make chaos` runs the long form."""

import random
from collections.abc import Iterator

import pytest

from tests.chaos.rig import Rig
from tests.chaos.scenarios import Size, run_in
from tests.chaos.verdict import Verdict, fill_in

SETTINGS = {"smtp_timeout_s": 1, "smtp_dot_timeout_s": 1, "sms_timeout_s": 1, "lease_s": 6,
            "visibility_timeout_s": 12, "sweep_s": 0.3, "retry_base_s": 0.3, "retry_max_s": 0.6}  # fmt: skip
QUIET_S = 90.0
SHORT = {
    "worker-killed": Size(150, 3, QUIET_S),
    "bulk-killed": Size(300, 2, QUIET_S),
    "worker-stopped": Size(60, 1, QUIET_S),
    "redis-gone": Size(150, 4, QUIET_S),
    "postgres-gone": Size(150, 2, QUIET_S),
    "delivered-thrice": Size(60, 4, QUIET_S),
    "smtp-moody": Size(60, 8, QUIET_S),
    "carrier-dies": Size(200, 2, QUIET_S, lasts_s=1.5),
    "carrier-broken": Size(120, 10, QUIET_S),
    "killed-at-the-dot": Size(80, 4, QUIET_S),
    "rate": Size(300, 0, QUIET_S),
    "garbage": Size(40, 6, QUIET_S),
}

pytestmark = pytest.mark.xdist_group("chaos")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Give the rig that all scenarios use, one after the other."""
    seed = random.SystemRandom().randrange(10**6)
    with Rig(tmp_path_factory.mktemp("chaos"), seed, threads=4, **SETTINGS) as rig:
        yield rig


@pytest.mark.timeout(180)
@pytest.mark.parametrize("scenario", SHORT)
def test_no_job_is_lost_sent_twice_or_charged_twice(rig: Rig, scenario: str) -> None:
    """Whatever breaks while jobs run, each job ends once, and the money adds up."""
    verdict = run_in(rig, scenario, SHORT[scenario])

    assert verdict.wrong == [], verdict


@pytest.mark.timeout(180)
def test_nothing_is_left_over(rig: Rig) -> None:
    """After all scenarios nothing waits, nothing is unacknowledged, and the quarantine holds only the garbage."""
    jobs = rig.known_jobs()

    rig.wait_until_quiet(jobs, QUIET_S)

    verdict = fill_in(rig, Verdict("all", rig.seed, jobs, 0), quiet=True)
    assert verdict.wrong == [], verdict
