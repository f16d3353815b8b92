"""Many processes spend one balance at once: not a credit too many, and not one too few."""

import pytest

from tests.races.racing import balance, buy, findings, race, repeated, save_users, send_all, share, states, worker

OWNER = "olga"
CREDIT_USERS = [f"user-{number}" for number in range(8)]


@pytest.mark.timeout(600)
def test_sixteen_processes_spend_exactly_what_one_balance_holds(postgres_url: str) -> None:
    """There are 4,000 jobs for 2,800 credits, on PostgreSQL."""
    _race_for(postgres_url, processes=16, jobs=4_000, credits_=2_800)


@pytest.mark.timeout(600)
def test_four_processes_spend_exactly_what_one_balance_holds(sqlite_url: str) -> None:
    """There are 1,000 jobs for 700 credits, on SQLite."""
    _race_for(sqlite_url, processes=4, jobs=1_000, credits_=700)


def _race_for(url: str, *, processes: int, jobs: int, credits_: int) -> None:
    with worker(url) as context:
        save_users(context, OWNER, *CREDIT_USERS)
        share(context, OWNER, *CREDIT_USERS)
        buy(context, CREDIT_USERS[0], email=credits_)

        sent = race(*((send_all, url, share_of_jobs) for share_of_jobs in _divide(jobs, processes)))

        assert states(context) == {
            ("sent", None): credits_,
            ("refused", "insufficient_credits"): jobs - credits_,
        }
        assert balance(context, OWNER) == 0
        assert findings(context) == []
    delivered = [job_id for result in sent for job_id in result.delivered]
    assert len(delivered) == credits_
    assert repeated(delivered) == []
    charged = [charge for result in sent for charge in result.charges]
    refused = {charge.job_id for charge in charged if charge.state == "refused"}
    # All processes that sent a job got the same answer, except "sending" while another process was sending it.
    assert {(charge.job_id in refused, charge.payer) for charge in charged} == {(True, None), (False, OWNER)}
    assert {charge.state for charge in charged if charge.job_id not in refused} <= {"sent", "sending"}
    assert refused.isdisjoint(delivered)


def _divide(jobs: int, processes: int) -> list[list[tuple[str, str]]]:
    """Divide (job id, sender) among the processes. Every twentieth job goes to three, at about the same time."""
    shares: list[list[tuple[str, str]]] = [[] for _ in range(processes)]
    for number in range(jobs):
        job = f"job-{number}", CREDIT_USERS[number % len(CREDIT_USERS)]
        for copy in range(3 if number % 20 == 0 else 1):
            shares[(number + copy) % processes].append(job)
    return shares
