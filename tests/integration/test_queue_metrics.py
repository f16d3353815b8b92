"""What broker and database say as metrics: all that waits, by which deployments are scaled, and nothing while away."""

from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from redis import Redis

from tasks.queues import Queue
from tests.servers import ValkeyServer, free_port
from worker.broker.transport import register_transport
from worker.metrics import served_metrics
from worker.settings import Settings


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ValkeyServer]:
    """Give a broker that a test may end."""
    register_transport()
    with ValkeyServer(tmp_path / "valkey") as server:
        yield server


def waiting(port: int) -> dict[str, float]:
    """Give what the metrics say that waits on each queue."""
    return {sample.labels["queue"]: sample.value for sample in samples(port, "postage_queue_waiting")}


def findings(port: int) -> list[float]:
    """Give how many findings the metrics say there are, if they say so."""
    return [sample.value for sample in samples(port, "postage_findings")]


def samples(port: int, name: str) -> list[Sample]:
    """Give the values of a metric."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        families = text_string_to_metric_families(page.read().decode())
    return [sample for family in families for sample in family.samples if sample.name == name]


def test_what_waits_is_counted_also_where_it_was_moved_to_its_senders(broker: ValkeyServer) -> None:
    settings = Settings(broker_url=broker.url(), metrics_port=free_port())
    with Redis.from_url(broker.url()) as redis, served_metrics(settings, fresh_s=0):
        assert waiting(settings.metrics_port or 0) == dict.fromkeys(Queue, 0)

        redis.lpush("email", "one", "two")
        redis.lpush("postage.lines:email", "mary")
        redis.lpush("postage.line:email:mary", "three", "four", "five")
        redis.lpush("billing", "one")

        assert waiting(settings.metrics_port or 0) == {**dict.fromkeys(Queue, 0), "email": 5, "billing": 1}


def test_metrics_are_served_while_the_broker_is_away(broker: ValkeyServer) -> None:
    """A missing figure is told from an empty queue, so nothing is scaled down meanwhile."""
    settings = Settings(broker_url=broker.url(), metrics_port=free_port())
    with served_metrics(settings):
        broker.stop()

        assert waiting(settings.metrics_port or 0) == {}


def test_jobs_of_every_priority_are_counted(broker: ValkeyServer) -> None:
    """Celery keeps those with a priority in lists of their own."""
    settings = Settings(broker_url=broker.url(), metrics_port=free_port())
    with Redis.from_url(broker.url()) as redis, served_metrics(settings):
        redis.lpush("email", "one")
        redis.lpush("email\x06\x163", "two")
        redis.lpush("email\x06\x169", "three")

        assert waiting(settings.metrics_port or 0) == {**dict.fromkeys(Queue, 0), "email": 3}


def test_figures_of_the_database_are_served_and_missing_while_it_is_away(broker: ValkeyServer, sqlite_url: str) -> None:
    port = free_port()
    with served_metrics(Settings(broker_url=broker.url(), metrics_port=port, database_url=sqlite_url)):
        assert findings(port) == [0]
    with served_metrics(
        Settings(broker_url=broker.url(), metrics_port=port, database_url="postgresql://127.0.0.1:1/p")
    ):
        assert findings(port) == []
