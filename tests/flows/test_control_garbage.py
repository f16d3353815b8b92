"""What somebody publishes on the channel of remote control ends no worker, and is not logged whole."""

import base64
import itertools
import json

import pytest

from tests.flows.deployment import Deploy, wait_until
from tests.flows.jobs import email_job

pytestmark = pytest.mark.timeout(180)

CHANNEL = "/0.celery.pidbox"
SECRET = "s3cret-in-garbage"
PROPERTIES = {"delivery_tag": "t", "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""}}


def envelope(body: object, /, **fields: object) -> str:
    """Give a control message whose body is any JSON."""
    encoded = base64.b64encode(json.dumps(body).encode()).decode()
    message = {
        "body": encoded,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {**PROPERTIES, "body_encoding": "base64"},
    }
    return json.dumps({**message, **fields})


ODD = [None, 5, -1.5, True, SECRET, [SECRET], {SECRET: SECRET}, [[]], {"a": {"b": []}}, "\ud800", 10**30]
PLAIN = [b"5", b"null", b"", b"\xff\xfe", b"{", b"[]", b'"x"', b"true", b"[" * 5_000, SECRET.encode() * 2_000, b"{}"]
BODIES = [
    *ODD,
    *({"method": value} for value in ODD),
    *({"method": method, "arguments": value} for method in ("ping", "rate_limit", "query_task") for value in ODD),
    *({"method": "ping", part: value} for part in ("reply_to", "destination", "pattern", "ticket") for value in ODD),
]
ENVELOPES = [
    *(envelope({}, **{field: value}) for field in ("body", "properties", "headers") for value in ODD),
    *(envelope({}, **{field: value}) for field in ("content-type", "content-encoding") for value in ODD),
    *(envelope({}, properties={**PROPERTIES, "body_encoding": value}) for value in ODD),
    *(envelope({}, properties={**PROPERTIES, "delivery_tag": value}) for value in ODD),
    *(envelope({}, properties={**PROPERTIES, "delivery_info": value}) for value in ODD),
]


def test_nothing_that_is_published_to_a_worker_ends_it(deploy: Deploy) -> None:
    garbage = [*PLAIN, *ENVELOPES, *map(envelope, BODIES)]
    with deploy(log_level="INFO") as deployment:
        _, member = deployment.people(email=1)
        for item in itertools.chain(garbage):
            deployment.redis.publish(CHANNEL, item)
        wait_until(lambda: deployment.producer.control("ping", timeout=2.0), "the worker answers a ping")
        deployment.send("email.send", email_job("after", member))
        deployment.wait_until_final("after")
        deployment.worker.check()

        assert len(garbage) > 80
        assert max(map(len, deployment.worker.output.splitlines())) < 10_000
        assert deployment.redis.zcard("postage.quarantined") == 0


def test_a_worker_without_remote_control_obeys_nobody(deploy: Deploy) -> None:
    with deploy() as deployment:
        deployment.worker.end()
        deployment.settings["remote_control"] = "false"
        deployment.start_worker()
        wait_until(lambda: " ready." in deployment.worker.output.rpartition("Warm")[2], "it is ready")

        assert deployment.producer.control("shutdown", timeout=1.0) is None
        assert deployment.producer.control("ping", timeout=1.0) is None
        deployment.worker.check()
