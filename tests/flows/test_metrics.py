"""Metrics: a worker counts how jobs end, audits the money when beat asks for it, and serves the results."""

import math
import socket
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.database.schema import accounts
from tests.flows.deployment import Deploy, Deployment, run, wait_until
from tests.flows.jobs import email_job
from tests.servers import free_port

pytestmark = pytest.mark.timeout(240)


def metrics(port: int) -> dict[tuple[str, ...], float]:
    """Give the metrics that a worker serves: each value by its name and its labels, in the order of their names."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        text = page.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *(label for _, label in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("postage_")
    }


def break_a_balance(deployment: Deployment, owner: str) -> None:
    """Change a balance without an entry, which the database takes only from who turns its foreign keys off."""
    with deployment.database.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(accounts.update().where(accounts.c.owner_id == owner).values(available=99))


def test_a_worker_serves_what_its_audits_found_and_how_jobs_ended(deploy: Deploy) -> None:
    port, before = free_port(), time.time()
    with deploy(beat=True, audit_s=0.5, metrics_port=port) as deployment:
        first = metrics(port)
        assert math.isnan(first["postage_audit_findings",]) or first["postage_audit_findings",] == 0
        owner, member = deployment.people(email=3)
        deployment.send("email.send", email_job("one", member))
        deployment.wait_until_final("one")

        clean = wait_until(lambda: _audited(port), "the worker audits")
        assert clean["postage_audit_findings",] == 0
        assert before < clean["postage_audit_last_run_timestamp_seconds",] <= time.time()
        sent = wait_until(lambda: metrics(port).get(("postage_jobs_total", "sent", "email.send")), "the job is counted")
        assert sent == 1
        assert metrics(port)["postage_deliveries_total", "127.0.0.1", "email", "accepted"] == 1
        assert metrics(port)["postage_carrier_resting", "127.0.0.1", "email"] == 0

        break_a_balance(deployment, owner)

        assert wait_until(lambda: metrics(port)["postage_audit_findings",] >= 2, "the audit finds both accounts")
        assert '"event": "audit finding"' in deployment.worker.output
        assert f"{owner}/email" in deployment.worker.output


def _audited(port: int) -> dict[tuple[str, ...], float] | None:
    found = metrics(port)
    return found if found["postage_audit_last_run_timestamp_seconds",] > 0 else None


def test_a_port_that_is_taken_is_named_in_a_sentence(tmp_path: Path, sqlite_url: str, valkey_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run("worker", cwd=tmp_path, database_url=sqlite_url, broker_url=valkey_url, metrics_port=port)

    assert result.code == 1
    assert f"Metrics cannot be served on 127.0.0.1:{port}: Address already in use." in result.err
    assert "POSTAGE_METRICS_PORT of its own" in result.err
    assert "Traceback" not in result.err
