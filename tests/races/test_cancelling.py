"""Whoever is first counts: a job that is sent and cancelled at once is sent and charged, or neither, and never both."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from models.messages.base import Json
from models.messages.billing import CancelMessages
from models.messages.bulk import SendManyEmails
from tasks import bulk, cancelling, sending
from tasks.context import QueuedJob
from tasks.queues import Queue
from tests.races.racing import (
    RecordingCarrier,
    Sent,
    Start,
    balance,
    buy,
    deadlocks,
    findings,
    race,
    repeated,
    save_users,
    send_all,
    states,
    worker,
)

QUEUED, WAITING = 400, 400
CANCEL = CancelMessages(cancel_id="stop", actor="olga", sender="olga")


class Waiting:
    """A broker on whose email queue all jobs wait, as long as the race lasts."""

    def read(self, queue: Queue) -> Iterator[list[QueuedJob]]:
        """Yield the jobs, those first that workers take last."""
        if queue is Queue.EMAIL:
            jobs = [QueuedJob("email.send", f"task-{number}", _given(number)) for number in reversed(range(QUEUED))]
            yield from (jobs[start : start + 20] for start in range(0, QUEUED, 20))


def _given(number: int) -> Json:
    to, subject, text = ["reader@example.org"], "News", "There is none."
    return {"job_id": f"job-{number}", "sender": "olga", "to": to, "subject": subject, "text": text}


@pytest.mark.timeout(600)
def test_each_job_is_sent_and_charged_or_cancelled_and_free(database_url: str) -> None:
    """Two workers take jobs from a queue, one sends what waits, and two cancel all of it at once."""
    with worker(database_url) as context:
        save_users(context, "olga")
        buy(context, "olga", email=QUEUED + WAITING)
        bulk.send_many(context, _campaign())
        jobs = [(f"job-{number}", "olga") for number in range(QUEUED)]

        *sent, first, second = race(
            (send_all, database_url, jobs[0::2]),
            (send_all, database_url, jobs[1::2]),
            (_resume_all, database_url),
            (_cancel, database_url),
            (_cancel, database_url),
        )

        delivered = [job_id for result in sent for job_id in result.delivered]
        counts = states(context)
        assert repeated(delivered) == []
        assert counts.pop(("bulk", None)) == 1
        assert counts.pop(("sent", None), 0) == len(delivered)
        assert set(counts) <= {("refused", "cancelled"), ("failed", "cancelled")}
        assert sum(counts.values()) == QUEUED + WAITING - len(delivered)
        assert balance(context, "olga") == QUEUED + WAITING - len(delivered)
        assert first == second
        assert first["cancelled"] == sum(counts.values())
        assert first["credits"] == counts.get(("failed", "cancelled"), 0)
        assert deadlocks(context) == 0
        assert findings(context) == []


def _campaign() -> SendManyEmails:
    recipients = [{"to": f"reader-{number}@example.org"} for number in range(WAITING)]
    campaign = {"job_id": "campaign", "sender": "olga", "recipients": recipients, "subject": "News", "text": "None."}
    return SendManyEmails.model_validate(campaign)


def _resume_all(start: Start, url: str) -> Sent:
    """Send the messages of the campaign, in batches, as a worker does."""
    carrier, draw = RecordingCarrier(), random.Random(1)
    with worker(url, carrier) as context:
        org_id = 1
        start()
        left = [f"campaign/{number}" for number in range(WAITING)]
        while left:
            batch, left = left[: (count := draw.choice([1, 5, 50]))], left[count:]
            sending.resume(context, org_id, dict.fromkeys(batch, 0))
    return Sent([], carrier.job_ids)


def _cancel(start: Start, url: str) -> Json:
    """Cancel everything that olga has waiting. Of two who do so under one id, both answer with what both have done."""
    with worker(url) as context:
        start()
        cancelling.cancel(replace(context, queues=Waiting()), CANCEL)
        return cancelling.cancel(context, CANCEL)
