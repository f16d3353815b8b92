"""The private names of Celery and kombu that worker/broker uses: after an upgrade, the missing one fails here."""

import ast
import functools
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

BROKER = Path(__file__).parents[2] / "worker" / "broker"

NAMES = {
    "celery.app.events:Events": ("dispatcher_cls",),
    "celery.concurrency.base:apply_target": (),
    "celery.concurrency.solo:TaskPool": ("apply_async",),
    "celery.concurrency.thread:TaskPool": ("apply_async",),
    "celery.events.dispatcher:EventDispatcher": (
        "_group_buffer",
        "_outbound_buffer",
        "buffer_group",
        "buffer_limit",
        "clock",
        "close",
        "enabled",
        "flush",
        "groups",
        "on_send_buffered",
        "send",
    ),
    "celery.worker.components:Pool": (),
    "celery.worker.consumer:Consumer": (
        "call_soon",
        "connection_errors",
        "controller",
        "create_task_handler",
        "on_decode_error",
        "on_invalid_task",
        "on_unknown_message",
        "on_unknown_task",
        "pool",
        "timer",
    ),
    "celery.worker.request:Request": (
        "_args",
        "_argsrepr",
        "_ignore_result",
        "_kwargsrepr",
        "_payload",
        "_request_dict",
        "acknowledged",
        "delivery_info",
        "info",
        "message",
        "on_accepted",
        "on_success",
        "request_dict",
        "revoked",
    ),
    "celery.worker.strategy:default": (),
    "kombu.message:Message": ("_decode", "ack_log_error"),
    "kombu.transport.redis:Channel": (
        "_brpop_read",
        "_brpop_sent_at",
        "_brpop_start",
        "_create_client",
        "_get_message_priority",
        "_in_poll",
        "_lookup",
        "_purge",
        "_q_for_pri",
        "_queue_cycle",
        "_size",
        "active_queues",
        "basic_consume",
        "conn_or_acquire",
        "connection_errors",
        "from_transport_options",
        "pool",
        "priority_steps",
        "sep",
        "unacked_index_key",
        "unacked_key",
    ),
    "kombu.transport.redis:QoS": (
        "_delivered",
        "_dirty",
        "_remove_from_indices",
        "ack",
        "append",
        "can_consume_max_estimate",
        "reject",
        "restore_by_tag",
        "restore_unacked",
        "restore_unacked_once",
        "restore_visible",
        "unacked_mutex_expire",
        "unacked_mutex_key",
        "visibility_timeout",
    ),
    "kombu.transport.redis:Transport": ("_deliver", "register_with_event_loop"),
    "kombu.transport.virtual.base:Message": ("_raw",),
    "redis.connection:Connection": ("_sock",),
}
"""What worker/broker overrides or reaches into, by the class that has it."""


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in NAMES.items() for name in names])
def test_a_private_name_still_exists(owner: str, name: str) -> None:
    assert has(owner, name), f"{owner} has no {name} any more; see where worker/broker uses it."


def test_a_name_that_is_gone_is_noticed() -> None:
    assert not has("kombu.transport.redis:QoS", "_gone")


def has(owner: str, name: str) -> bool:
    """Whether a class has an attribute, be it set in one of its methods only."""
    module, _, class_name = owner.partition(":")
    cls = getattr(import_module(module), class_name)
    return hasattr(cls, name) or any(sets(base, name) for base in cls.__mro__[:-1])


@functools.cache
def sets(cls: type, name: str) -> bool:
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return False
    return f"self.{name} = " in source or f"self.{name}: " in source or f"'{name}'" in source


@pytest.mark.parametrize("path", sorted(BROKER.glob("*.py")), ids=lambda path: path.stem)
def test_every_private_name_that_is_used_is_listed(path: Path) -> None:
    tree = ast.parse(path.read_text())
    listed = {name for names in NAMES.values() for name in names}

    assert set(private_names_used(tree)) - set(own_names(tree)) - listed == set()


def private_names_used(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            yield node.attr


def own_names(tree: ast.AST) -> Iterator[str]:
    """Methods that the module defines, and attributes that it sets on `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self":
                    yield part.attr
