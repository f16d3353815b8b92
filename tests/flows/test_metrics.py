"""A worker serves what it counts, and beat has it audit the money."""

import math
import random
import socket
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.database.schema import accounts
from tests.flows.conftest import OpenHouse
from tests.flows.house import Deployment, run, until

pytestmark = pytest.mark.timeout(240)


def free_port() -> int:
    """Give a port below those of outgoing connections."""
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError


def metrics(port: int) -> dict[tuple[str, ...], float]:
    """Give what a worker serves: values by name and labels, these in the order of their names."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        text = page.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *(label for _, label in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("postage_")
    }


def break_a_balance(house: Deployment, owner: str) -> None:
    """Change a balance without an entry, as no code of ours does."""
    with house.database.engine.begin() as connection:
        connection.execute(accounts.update().where(accounts.c.owner_id == owner).values(available=99))


def test_a_worker_serves_what_its_audits_found_and_how_jobs_ended(open_house: OpenHouse) -> None:
    port, before = free_port(), time.time()
    with open_house(beat=True, audit_s=0.5, metrics_port=port) as house:
        first = metrics(port)
        assert math.isnan(first["postage_audit_findings",]) or first["postage_audit_findings",] == 0
        owner, member = house.people(email=3)
        job = {"job_id": "one", "sender": member, "to": "a@customer.example", "subject": "Hello", "text": "Hello"}
        house.send("email.send", job)
        house.wait_until_final("one")

        clean = until(lambda: _audited(port), "the worker audits")
        assert clean["postage_audit_findings",] == 0
        assert before < clean["postage_audit_last_run_timestamp_seconds",] <= time.time()
        sent = until(lambda: metrics(port).get(("postage_jobs_total", "sent", "email.send")), "the job is counted")
        assert sent == 1

        break_a_balance(house, owner)

        assert until(lambda: metrics(port)["postage_audit_findings",] == 2, "the audit finds both accounts")
        assert '"event": "audit finding"' in house.worker.said
        assert f"{owner}/email" in house.worker.said


def _audited(port: int) -> dict[tuple[str, ...], float] | None:
    found = metrics(port)
    return found if found["postage_audit_last_run_timestamp_seconds",] > 0 else None


def test_a_port_that_is_taken_is_said_in_a_sentence(tmp_path: Path, sqlite_url: str, valkey_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = run("worker", cwd=tmp_path, database_url=sqlite_url, broker_url=valkey_url, metrics_port=port)

    assert ran.code == 1
    assert f"Metrics cannot be served on 127.0.0.1:{port}: Address already in use." in ran.err
    assert "POSTAGE_METRICS_PORT of its own" in ran.err
    assert "Traceback" not in ran.err
