"""A broker behind Sentinels: its machine is lost with jobs on the queue and in flight, and a replica takes over."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.sentinel import Sentinel

from tasks.client import enqueue, producer_app
from tests.flows.deployment import PATIENT, Deployment, wait_until
from tests.flows.jobs import email_job, new_id
from tests.flows.outside import Producer
from tests.servers import SentinelServer, ValkeyServer, sentinels_of

pytestmark = [pytest.mark.xdist_group("fail-over"), pytest.mark.timeout(240)]

JOBS = 500


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[tuple[ValkeyServer, list[SentinelServer]]]:
    with sentinels_of(tmp_path / "broker") as broker:
        yield broker


def test_a_broker_that_fails_over_loses_no_job_and_sends_none_twice(
    tmp_path: Path, postgres_url: str, sentinels: tuple[ValkeyServer, list[SentinelServer]]
) -> None:
    master, watching = sentinels
    url = ";".join(f"sentinel://127.0.0.1:{sentinel.port}" for sentinel in watching)
    to_master = Sentinel([("127.0.0.1", sentinel.port) for sentinel in watching]).master_for("mymaster")
    outside = {"redis": to_master, "producer": Producer(url, master_name="mymaster")}
    with Deployment(tmp_path, postgres_url, url, beat=True, **PATIENT, **outside) as deployment:
        _, member = deployment.people(email=JOBS + 1)
        jobs = [new_id("mail") for _ in range(JOBS)]
        deployment.mail_server.hold()
        for job in jobs:
            deployment.send("email.send", email_job(job, member))
        assert to_master.wait(1, 10_000) == 1, "the replica has every job"
        wait_until(lambda: deployment.mail_server.offers, "some jobs are at the carrier")
        assert deployment.redis.hlen("unacked") > 1

        master.kill()
        deployment.mail_server.release()
        wait_until(lambda: {one.ask()["port"] for one in watching}.isdisjoint({master.port}), "the replica takes over")
        deployment.wait_until_final(*jobs)

        last = new_id("mail")
        with producer_app(url) as app:
            enqueue(app, [("email.send", email_job(last, member))])
        deployment.wait_until_final(last)
        # Its answer comes by the result backend. A producer that has waited for answers at the old master may miss the
        # first one at the new, since Celery subscribes at the connection that it had, and then has to ask again.
        asked = {"viewer": member, "job_id": last}
        assert Producer(url, master_name="mymaster").ask("views.message", asked)["status"] == "sent"

        # Acknowledgements that were lost with the master: the visibility timeout of those messages is over now.
        lost = dict.fromkeys(deployment.redis.zrange("unacked_index", 0, -1), 1)
        deployment.redis.zadd("unacked_index", lost, xx=True)
        deployment.wait_until_idle()
        assert Counter(mail.job_id for mail in deployment.mail_server.mails) == Counter([*jobs, last])
        assert deployment.findings() == []
