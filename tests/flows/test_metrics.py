"""Metrics: what a worker serves, and that a Prometheus which reads it can evaluate every alarm and every panel."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from models.database.schema import accounts
from tests.conftest import TEMPLATE
from tests.flows.deployment import Deployment, run, wait_until
from tests.flows.jobs import email_job
from tests.prometheus import PrometheusServer, promtool
from tests.servers import PostgresServer, free_port

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/prometheus"
RULES = FOLDER / "postage.rules.yml"
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/postage.json").read_text())
JOB = "postage"

pytestmark = [pytest.mark.xdist_group("metrics"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def served(
    migrated_postgres: PostgresServer, broker_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Give a worker that serves metrics, and beat."""
    folder = tmp_path_factory.mktemp("served")
    with (
        migrated_postgres.copy_of(TEMPLATE) as url,
        Deployment(folder, url, broker_url, beat=True, audit_s=0.5, roll_up_s=0.5, metrics_port=free_port()) as served,
    ):
        yield served


def metrics(deployment: Deployment) -> dict[tuple[str, ...], float]:
    """Give the metrics that a worker serves: each value by its name and its labels, in the order of their names."""
    with urlopen(f"http://127.0.0.1:{deployment.settings['metrics_port']}/metrics", timeout=10) as page:
        text = page.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *(label for _, label in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("postage_")
    }


@contextmanager
def broken_balance(deployment: Deployment, owner: str) -> Iterator[None]:
    """Let a balance differ from its entries, which the database takes only from who turns its foreign keys off."""
    set_balance(deployment, owner, 99)
    yield
    set_balance(deployment, owner, 2)


def set_balance(deployment: Deployment, owner: str, available: int) -> None:
    with deployment.database.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        its_email = (accounts.c.owner_id == owner) & (accounts.c.kind == "email")
        connection.execute(accounts.update().where(its_email).values(available=available))


def test_a_worker_serves_how_jobs_and_messages_ended(served: Deployment) -> None:
    _, member = served.people(email=3)
    served.send("email.send", email_job("one", member))
    many = {**email_job("many", member), "recipients": [{"to": "a@b.example"}, {"to": "c@b.example"}]}
    served.send("email.send_many", {name: value for name, value in many.items() if name != "to"})
    served.wait_until_final("one", "many")

    found = wait_until(lambda: _counted(served), "both jobs are counted")
    assert found["postage_jobs_total", "done", "upkeep.sweep"] > 0
    assert found["postage_messages_total", "sent", "email.send"] == 1
    assert found["postage_messages_total", "sent", "email.send_many"] == 2
    assert found["postage_messages_total", "failed", "sms.send"] == 0
    assert found["postage_credits_charged_total", "email"] == 3
    assert found["postage_credits_refunded_total", "email"] == 0
    assert found["postage_batch_messages_sum", "email.send_many"] == 2
    assert found["postage_charge_seconds_count", "email.send"] == 1
    assert found["postage_deliveries_total", "127.0.0.1", "email", "accepted"] == 3
    assert found["postage_delivery_seconds_count", "127.0.0.1", "email"] == 3
    assert found["postage_carrier_resting", "127.0.0.1", "email"] == 0
    assert found["postage_beat_age_seconds",] < 60
    assert found["postage_queue_waiting", "email"] == 0


def _counted(deployment: Deployment) -> dict[tuple[str, ...], float] | None:
    found = metrics(deployment)
    messages = sum(found["postage_messages_total", "sent", task] for task in ("email.send", "email.send_many"))
    answered = found.get(("postage_jobs_total", "sent", "email.send"), 0)
    return found if (messages, answered) == (3, 1) and found["postage_audit_last_run_timestamp_seconds",] else None


def test_what_an_audit_finds_is_served_and_logged(served: Deployment) -> None:
    owner, _ = served.people(email=2)
    wait_until(lambda: metrics(served)["postage_audit_findings",] == 0, "an audit finds nothing")

    with broken_balance(served, owner):
        wait_until(lambda: metrics(served)["postage_findings",] >= 1, "an audit finds it")
        wait_until(lambda: metrics(served)["postage_audit_findings",] >= 1, "the worker has counted it")
        assert '"event": "audit finding"' in served.worker.output
        assert f"{owner}/email" in served.worker.output


def test_every_metric_is_documented_and_no_other(served: Deployment) -> None:
    rows = re.findall(r"^\| `(postage_[a-z_]+)", (ROOT / "docs/operating.md").read_text(), re.MULTILINE)
    parts = re.compile(r"_(bucket|count|sum)$")
    names = {name for name, *_ in metrics(served) if not name.endswith("_created")}

    assert {parts.sub("", name) for name in names} == set(rows)


# -- a Prometheus that reads them -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prometheus(served: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """Give a Prometheus with our rules that has read the worker some times."""
    target = {"targets": [f"127.0.0.1:{served.settings['metrics_port']}"]}
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": JOB, "static_configs": [target]}],
    }
    with PrometheusServer(tmp_path_factory.mktemp("prometheus"), config) as server:
        wait_until(lambda: server.query("rate(postage_jobs_total[5m])"), "Prometheus has read the worker twice")
        yield server


def test_every_rule_is_evaluated_without_an_error(prometheus: PrometheusServer) -> None:
    rules = wait_until(lambda: _evaluated(prometheus), "Prometheus has evaluated every rule")

    assert {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in rules} == {
        rule["alert"]: ("ok", "") for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    }


def _evaluated(prometheus: PrometheusServer) -> list[Any] | None:
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    return None if any(rule["health"] == "unknown" for rule in rules) else rules


def test_every_rule_and_panel_asks_for_series_that_there_are(prometheus: PrometheusServer) -> None:
    """What is compared with nothing never fires, and a panel without series is empty."""
    alarms = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    selectors = {
        one
        for text in [*alarms, *panel_expressions()]
        for one in re.findall(r"\b(?:postage_\w+|up)\b(?:\{[^}]*\})?", text)
    }

    assert len(selectors) > 30
    assert [one for one in selectors if not prometheus.query(one)] == []


def test_every_panel_can_be_drawn(prometheus: PrometheusServer) -> None:
    for expression in panel_expressions():
        assert prometheus.query(expression), expression
    [variable] = DASHBOARD["templating"]["list"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
    assert prometheus.ask(f"label/{label}/values", **{"match[]": metric}) == [JOB]
    [annotation] = DASHBOARD["annotations"]["list"]
    prometheus.query(filled(annotation["expr"]))


def panel_expressions() -> list[str]:
    return [filled(target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def filled(expression: str) -> str:
    """Fill in the variables of an expression as Grafana does."""
    return expression.replace("$job", JOB).replace("$__rate_interval", "1m")


def test_an_alarm_fires_for_a_difference_in_the_money(served: Deployment, prometheus: PrometheusServer) -> None:
    owner, _ = served.people(email=2)
    firing = 'ALERTS{alertname="PostageAuditFinding", alertstate="firing"}'
    assert prometheus.query(firing) == []

    with broken_balance(served, owner):
        wait_until(lambda: prometheus.query(firing), "the alarm fires")


@pytest.mark.parametrize(
    "words", [("check", "config", "prometheus.yml"), ("test", "rules", "postage.rules.test.yml")], ids=" ".join
)
def test_promtool_accepts(words: tuple[str, str, str]) -> None:
    """The configuration with its rules, and what fires when."""
    result = promtool(*words[:2], FOLDER / words[2])

    assert result.returncode == 0, result.stdout + result.stderr


def test_a_port_that_is_taken_is_named_in_a_sentence(tmp_path: Path, sqlite_url: str, valkey_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run("worker", cwd=tmp_path, database_url=sqlite_url, broker_url=valkey_url, metrics_port=port)

    assert result.code == 1
    assert f"Metrics cannot be served on 127.0.0.1:{port}: Address already in use." in result.err
    assert "POSTAGE_METRICS_PORT of its own" in result.err
    assert "Traceback" not in result.err
