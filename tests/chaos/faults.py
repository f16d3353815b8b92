"""The faults that are done to a running rig, and the garbage that is put on its queues."""

import base64
import contextlib
import json
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

from redis import RedisError

from tests.chaos.rig import Program, Rig

Fault = Callable[[Rig], set[str]]
"""Does the fault, and returns the messages that it leaves in doubt at most, beside those that mail servers cut off."""


def kill_worker(rig: Rig) -> set[str]:
    """Kill the main process of a worker, its whole group, or one of its children if it has any.

    The rig starts a main process again at once. A worker replaces its children itself.
    """
    victim = _running(rig)
    assert victim.pid is not None
    children = _children(victim.pid)
    match rig.rng.choice(["main", "group", *(["child"] * 2 if children else [])]):
        case "child":
            with contextlib.suppress(ProcessLookupError):
                os.kill(rig.rng.choice(children), signal.SIGKILL)
        case target:
            rig.kill(victim, group=target == "group")
    return rig.in_doubt(victim)


def _running(rig: Rig) -> Program:
    while not (running := [worker for worker in rig.workers if worker.pid]):
        time.sleep(0.05)
    return rig.rng.choice(running)


def stop_worker(seconds: float) -> Fault:
    """Stop a worker that is at work by SIGSTOP, and continue it after so many seconds."""

    def stop(rig: Rig) -> set[str]:
        victim = _running(rig)
        pid = victim.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        in_doubt = rig.in_doubt(victim)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        return in_doubt

    return stop


def kill_valkey(rig: Rig) -> set[str]:
    """Kill the broker, and start it again from its append-only file."""
    rig.valkey.kill()
    time.sleep(rig.rng.uniform(0.0, 2.0))
    rig.valkey.start()
    return set()


def restart_valkey(rig: Rig) -> set[str]:
    """End the broker in good order, and start it again."""
    rig.valkey.restart()
    return set()


def stop_valkey(rig: Rig) -> set[str]:
    """Stop the broker for a while by SIGSTOP: it accepts connections, but does not answer."""
    os.kill(rig.valkey.pid, signal.SIGSTOP)
    time.sleep(rig.rng.uniform(0.5, 4.0))
    os.kill(rig.valkey.pid, signal.SIGCONT)
    return set()


def cut_valkey(rig: Rig) -> set[str]:
    """Cut the connection of every client of the broker."""
    with contextlib.suppress(RedisError):
        rig.redis.execute_command("CLIENT", "KILL", "TYPE", "normal")
        rig.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    return set()


def kill_postgres(rig: Rig) -> set[str]:
    """Kill the main process of the database, or all of its processes, and start it again. It recovers by itself."""
    children = _children(rig.postgres.pid) if rig.rng.random() < 0.5 else []
    began = time.monotonic()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    rig.postgres.kill()
    time.sleep(rig.rng.uniform(0.0, 2.0))
    rig.postgres.start()
    return _outlasted(rig, time.monotonic() - began)


def restart_postgres(rig: Rig) -> set[str]:
    """End the database in good order, which cuts every connection, and start it again."""
    began = time.monotonic()
    rig.postgres.restart()
    return _outlasted(rig, time.monotonic() - began)


def _outlasted(rig: Rig, seconds: float) -> set[str]:
    """Give what is in doubt because leases may have ended while the database was away for so long."""
    lease_s = float(str(rig.settings["lease_s"]))
    return rig.in_doubt(*rig.workers) if seconds > lease_s / 3 else set()


def _children(pid: int) -> list[int]:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(word) for word in words]


def republish(rig: Rig) -> set[str]:
    """Put copies of waiting queue items on their queues again, byte for byte, with the same delivery tags."""
    redis: Any = rig.redis
    for queue in ("email", "sms"):
        items = redis.lrange(queue, 0, 30)
        if items:
            redis.lpush(queue, *rig.rng.sample(items, len(items)))
    return set()


# -- garbage ----------------------------------------------------------------------------------------------------------

_GOOD_HEADERS: Final = {"lang": "py", "task": "email.send", "argsrepr": "()", "kwargsrepr": "{}", "retries": 0}
NESTED: Final = 100_000


def garbage(rng: Random, queue: str) -> list[bytes]:
    """Give items that can never be a job: one of each kind, for one queue."""
    deep = "[" * NESTED + "]" * NESTED
    call: list[Any] = [[{}], {}, {}]
    return [
        rng.randbytes(50),
        b"\x00",
        b"not JSON",
        b"null",
        b"17",
        b"[]",
        b"{}",
        b'{"properties": {}}',
        b'{"properties": {"delivery_tag": 1, "delivery_info": {"exchange": "a", "routing_key": "b"}}}',
        deep.encode(),
        b'{"properties": ' + deep.encode() + b"}",
        _item(queue, call)[:-20],
        _item(queue, call, drop=("body",)),
        _item(queue, call, drop=("headers",)),
        _item(queue, call, drop=("content-type",)),
        _item(queue, call, task="no.such_task"),
        _item(queue, call, task=None),
        _item(queue, call, task=17),
        _item(queue, call, body="!!! no base64 !!!"),
        _item(queue, call, body=base64.b64encode(rng.randbytes(40)).decode()),
        _item(queue, call, body=base64.b64encode(b'[[{}], {}, {"chord": ').decode()),
        _item(queue, call, body=17),
        _item(queue, "no call"),
        _item(queue, {"a": "call"}),
        _item(queue, []),
        _item(queue, call, **{"content-type": "application/x-python-serialize"}),
    ]


def refusable(queue: str) -> list[bytes]:
    """Give messages to tasks that exist, with parts that no task takes. They are refused, not quarantined."""
    deep = "[" * NESTED + "]" * NESTED
    calls: list[Any] = [[[], {}, {}], [[17], {}, {}], [[{"to": "x"}], {}, {}], [[{}, {}], {"a": 1}, {}]]
    oddly_encoded = _item(queue, [[17], {}, {}], **{"content-encoding": "no such encoding"})
    nested = _item(queue, [], body=base64.b64encode(deep.encode()).decode())
    return [*(_item(queue, call) for call in calls), oddly_encoded, nested, _item(queue, calls[0], eta="yesterday")]


def _item(queue: str, call: object, *, drop: tuple[str, ...] = (), **changes: Any) -> bytes:
    """Give a queue item as kombu writes it, with changes."""
    task_id = str(uuid.uuid4())
    headers = {**_GOOD_HEADERS, "id": task_id, "root_id": task_id}
    headers |= {name: changes.pop(name) for name in ("task", "eta") if name in changes}
    item = {
        "body": base64.b64encode(json.dumps(call).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": queue, "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
        **changes,
    }
    return json.dumps({name: value for name, value in item.items() if name not in drop}).encode()
