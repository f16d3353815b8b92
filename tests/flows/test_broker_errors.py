"""A broker that answers with an error is a broker that is away: workers and beat wait, say so, and go on."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError
from redis import Redis, RedisError

from tests.flows.deployment import Deploy, wait_until
from tests.flows.jobs import email_job, new_id, sms_job

pytestmark = [pytest.mark.xdist_group("broker-errors"), pytest.mark.timeout(240)]

FAULT_S = 1.0
"""How long a fault lasts: long enough for a worker that restarts its connection to meet it several times."""


@contextmanager
def out_of_memory(redis: Redis) -> Iterator[None]:
    redis.config_set("maxmemory", 1)
    yield
    redis.config_set("maxmemory", 0)


@contextmanager
def read_only(redis: Redis) -> Iterator[None]:
    """As after a fail-over to a replica, while clients still talk to the old master."""
    redis.replicaof("127.0.0.1", 1)
    yield
    redis.replicaof("NO", "ONE")


@contextmanager
def busy(redis: Redis) -> Iterator[None]:
    """Somebody's script does not end."""
    redis.config_set("busy-reply-threshold", 50)
    hang = threading.Thread(target=lambda: _evaluate_for_ever(redis))
    hang.start()
    time.sleep(0.3)
    yield
    redis.script_kill()
    hang.join()


def _evaluate_for_ever(redis: Redis) -> None:
    with suppress(RedisError):
        redis.eval("while true do end", 0)


@contextmanager
def forbidden(redis: Redis) -> Iterator[None]:
    """An operator has taken a right from the user of the workers (NOPERM)."""
    redis.acl_setuser("default", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-zadd"])
    yield
    redis.acl_setuser("default", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all"])


@contextmanager
def wrong_type(redis: Redis) -> Iterator[None]:
    """Somebody has written a string where the unacknowledged messages are."""
    kept = redis.dump("unacked")
    redis.set("unacked", "not a hash")
    yield
    redis.delete("unacked")
    if kept:
        redis.restore("unacked", 0, kept)


@contextmanager
def full_disk(redis: Redis) -> Iterator[None]:
    """A snapshot cannot be written, so that writes are refused (MISCONF)."""
    in_the_way = Path(redis.config_get("dir")["dir"]) / "dump.rdb"
    redis.config_set("save", "3600 1")
    in_the_way.mkdir()
    redis.bgsave()
    wait_until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err", "the snapshot fails")
    yield
    in_the_way.rmdir()
    redis.bgsave()
    wait_until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "ok", "the snapshot is written")


FAULTS = {
    "OOM": out_of_memory,
    "READONLY": read_only,
    "BUSY": busy,
    "NOPERM": forbidden,
    "WRONGTYPE": wrong_type,
    "MISCONF": full_disk,
}
WAITS = "broker answers with an error; waiting until it is over"
STOPPED = "queue stopped: its key is not a list"


def test_workers_and_beat_outlive_every_error_of_the_broker(deploy: Deploy) -> None:
    with deploy(beat=True) as deployment:
        _, member = deployment.people(email=100)
        sent = []
        for name, fault in FAULTS.items():
            before, after = new_id(name), new_id(name)
            with fault(deployment.redis):
                with suppress(OperationalError, RedisError):  # a broker out of memory takes nothing
                    deployment.send("email.send", email_job(before, member))
                    sent.append(before)
                time.sleep(FAULT_S)
                deployment.worker.check()
            deployment.send("email.send", email_job(after, member))
            sent.append(after)
            deployment.wait_until_final(*sent)
        sweeps = deployment.worker.output.count("upkeep.sweep")

        wait_until(lambda: deployment.worker.output.count("upkeep.sweep") > sweeps + 4, "beat goes on")
        wait_until(lambda: "broker answers again" in deployment.worker.output, "the worker says that it is over")
        assert 1 <= deployment.worker.output.count(WAITS) <= len(FAULTS)
        assert len(sent) >= len(FAULTS)
        assert {job: len(deployment.mail_server.mails_of(job)) for job in sent} == dict.fromkeys(sent, 1)
        assert deployment.findings() == []


def test_a_key_that_is_no_list_stops_its_own_queue_alone(deploy: Deploy) -> None:
    with deploy() as deployment:
        _, member = deployment.people(email=1, sms=1)
        deployment.redis.set("sms", "not a list")
        mail, text = new_id("mail"), new_id("text")
        deployment.send("email.send", email_job(mail, member))
        deployment.wait_until_final(mail)
        wait_until(lambda: STOPPED in deployment.worker.output, "the worker names the key")

        deployment.redis.delete("sms")
        deployment.send("sms.send", sms_job(text, member))
        deployment.wait_until_final(text)
        assert deployment.worker.output.count(STOPPED) == 1
        assert "queue goes on" in deployment.worker.output
