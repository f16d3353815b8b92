"""Two processes roll usage up while others charge and settle: at every moment it is what all charges add up to."""

from typing import Any

import pytest

from models.messages.views import ViewUsage
from models.reports.rollup import roll_up_usage
from models.sends.carrier import Handover, OutboundMessage, Outcome, Receipt
from tests.fakes import send
from tests.races.racing import RecordingCarrier, Start, buy, email_from, findings, race, save_users, share, worker
from tests.spending import usage_of_all_charges, usage_shown

OWNER = "olga"
SENDERS = [f"user-{number}" for number in range(4)]


class PickyCarrier(RecordingCarrier):
    """A carrier that refuses every third message, so that its credits go back."""

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:
        """Accept the message, or refuse it."""
        accepted = await super().deliver(message, handover)
        return accepted if len(self.job_ids) % 3 else Receipt(Outcome.NEVER, "No.")


BATCH = 5


def spend(start: Start, url: str, sender: str, jobs: int) -> None:
    """Send jobs in batches, of each of which one or two fail."""
    with worker(url, PickyCarrier()) as context:
        start()
        for number in range(0, jobs, BATCH):
            send(context, [email_from(f"{sender}-{number + place}", sender) for place in range(BATCH)])


def entries_of(jobs: int) -> int:
    """Give how many entries there are in the end: one of the purchase, and two of each batch."""
    return 1 + 2 * jobs // BATCH


def roll_up(start: Start, url: str, jobs: int) -> int:
    """Roll up a few entries at a time, until all are rolled up. Returns how many this process did."""
    rolled = 0
    with worker(url) as context:
        start()
        while _rolled(context) < entries_of(jobs):
            rolled += context.database.write(lambda connection: roll_up_usage(connection, entry_batch=3))
    return rolled


def _rolled(context: Any) -> int:
    with context.database.snapshot() as connection:
        return int(connection.exec_driver_sql("SELECT coalesce(sum(seq), 0) FROM usage_marks").scalar_one())


def view_usage(start: Start, url: str, jobs: int) -> list[tuple[Any, Any]]:
    """View usage until all jobs are charged. Returns what was shown and what should have been, where they differ."""
    wrong, total = [], -1
    with worker(url) as context:
        start()
        while total < jobs - jobs // 3:
            for view in (ViewUsage(viewer=SENDERS[0]), ViewUsage(viewer=SENDERS[1], of="self")):
                with context.database.snapshot() as connection:
                    shown, expected = usage_shown(connection, view), usage_of_all_charges(connection, view)
                wrong += [(shown, expected)] if shown != expected else []
                total = max(total, _settled(context))
    return wrong


def _settled(context: Any) -> int:
    with context.database.snapshot() as connection:
        query = "SELECT count(*) FROM charges WHERE state = 'sent'"
        return int(connection.exec_driver_sql(query).scalar_one())


@pytest.mark.timeout(600)
def test_usage_is_exact_while_jobs_are_charged_refunded_and_rolled_up(database_url: str) -> None:
    each = 60
    jobs = each * len(SENDERS)
    with worker(database_url) as context:
        save_users(context, OWNER, *SENDERS)
        share(context, OWNER, *SENDERS)
        buy(context, OWNER, email=jobs)

        *rolled, wrong = race(
            *((roll_up, database_url, jobs) for _ in range(2)),
            *((spend, database_url, sender, each) for sender in SENDERS),
            (view_usage, database_url, jobs),
        )

        assert wrong == []
        assert sum(count or 0 for count in rolled) == entries_of(jobs)
        assert findings(context) == []
