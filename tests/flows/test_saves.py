"""Saves that a real worker took are answered in their order, and hold up nothing else.

TEST_PAIRS says how many pairs are saved; with the default settings of a worker, every one must end as its last save.
"""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg
import pytest
from sqlalchemy import ColumnElement, func, select

from models.database.schema import plans, roles, users
from tests.flows.deployment import BILLING, Deploy, Deployment, wait_until
from tests.flows.outside import Json, collected_events

pytestmark = pytest.mark.timeout(240)

PAIRS: Final = int(os.environ.get("TEST_PAIRS", "100"))


def user_job(user: str, name: str = "last", organization: str = "acme", role: str = "member") -> Json:
    address = f"{user}@postage.example"
    return {"user_id": user, "organization": organization, "name": name, "email": address, "role": role}


def role_job(role: str, *rights: str) -> Json:
    return {"organization": "acme", "role": role, "rights": list(rights)}


def plan_job(plan: str, price: int) -> Json:
    return {"plan": plan, "name": "Plan", "credits": {"email": 1}, "price": price, "currency": "EUR"}


def pair(number: int, name: str, price: int, *rights: str) -> list[tuple[str, Json]]:
    """Give the saves of a role, of a user who has it, and of a plan."""
    return [
        ("roles.save", role_job(f"role-{number}", *rights)),
        ("users.save", user_job(f"user-{number}", name, role=f"role-{number}")),
        ("plans.save", plan_job(f"plan-{number}", price)),
    ]


def count(deployment: Deployment, condition: ColumnElement[bool]) -> int:
    with deployment.database.snapshot() as connection:
        counted: int = connection.execute(select(func.count()).where(condition)).scalar_one()
        return counted


def test_of_two_saves_the_last_one_wins(deploy: Deploy) -> None:
    """Also a user who is saved right behind their new role finds it; and the answer to every save arrives."""
    with deploy() as deployment:
        task_ids = [
            deployment.send(task, job)
            for number in range(PAIRS)
            for saves in (pair(number, "first", 1), pair(number, "last", 2, "edit_user"))
            for task, job in saves
        ]
        wait_until(lambda: len(deployment.result_keys(*task_ids)) == len(task_ids), "every save is answered")

        ended_as_last = [count(deployment, last) for last in (users.c.name == "last", plans.c.price == 2,
                                                              roles.c.edit_user)]  # fmt: skip
        assert ended_as_last == [PAIRS] * 3


@contextmanager
def held_role(deployment: Deployment, role: str) -> Iterator[None]:
    """Hold up every save of a role within the block, once it was saved."""
    deployment.producer.do("roles.save", role_job(role))
    url = deployment.database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        connection.execute("SELECT FROM roles WHERE role = %s FOR UPDATE", [role])
        yield


def is_at_work(deployment: Deployment, task_id: str) -> bool:
    return task_id in [request["id"] for request in deployment.producer.control("active")]


def test_nothing_but_saves_waits_for_a_save(deploy: Deploy) -> None:
    """Not with a single thread either; and the saves behind it wait in order."""
    with deploy(concurrency=1) as deployment:
        owner, member = deployment.people(email=1)
        with held_role(deployment, "held"):
            held = deployment.send("roles.save", role_job("held", "edit_user"))
            wait_until(lambda: is_at_work(deployment, held), "the save of the role waits for its lock")
            behind = [deployment.send("plans.save", plan_job("plan", price)) for price in (1, 2)]

            bought = deployment.ask(
                "credits.purchase",
                {"order_id": "o", "buyer": member, "credits": {"sms": 1}, "amount": 1, "currency": "EUR"}
                | {"billing": BILLING},
            )
            set_back = {"change_id": "c", "actor": owner, "user": member, "owner": member}
            changed = deployment.ask("credits.set_owner", set_back)
            seen = deployment.remaining(owner)
            answered = deployment.result_keys(held, *behind)
        wait_until(lambda: deployment.result_keys(*behind) == behind, "the saves behind it are answered")

        assert (bought["status"], changed["status"], seen) == ("done", "done", {"email": 1, "sms": 1})
        assert answered == []
        assert count(deployment, plans.c.price == 2) == 1


def test_saves_have_their_events_and_are_revoked_delayed_and_refused_as_before(deploy: Deploy) -> None:
    with deploy() as deployment, collected_events(deployment.producer.app) as events:
        deployment.producer.control("revoke", task_id="unwanted")
        app = deployment.producer.app
        with held_role(deployment, "member"):
            deployment.send("roles.save", role_job("member"))
            deployment.send("users.save", user_job("unwanted"), "unwanted")
            soon = datetime.now(UTC) + timedelta(seconds=2)
            app.send_task("users.save", [user_job("delayed")], task_id="delayed", queue="billing", eta=soon)
            app.send_task("users.save", [user_job("late")], task_id="late", queue="billing", expires=-1)
            deployment.send("users.save", user_job("wanted"), "wanted")
            deployment.producer.send_raw("users.save", [1, 2], {"a": "b"}, task_id="broken")
        done = ["wanted", "broken", "delayed"]
        wait_until(lambda: deployment.result_keys(*done) == done, "all others are answered")

        def kinds_of(task_id: str) -> Counter[str]:
            return Counter(event["type"] for event in list(events) if event.get("uuid") == task_id)

        for task_id in done:
            end = "task-failed" if task_id == "broken" else "task-succeeded"
            wanted = Counter(["task-received", "task-started", end])
            wait_until(lambda task_id=task_id, wanted=wanted: kinds_of(task_id) == wanted, f"events of {task_id}")
        with deployment.database.snapshot() as connection:
            saved = set(connection.execute(select(users.c.id)).scalars())
        assert saved == {"wanted", "delayed"}
        assert [row.reason for row in deployment.refusals(["broken"])] == ["invalid_job"]
        deployment.wait_until_idle()


def test_a_save_with_a_fault_is_tried_again_alone(deploy: Deploy) -> None:
    """Those behind it do not wait for it."""
    with deploy() as deployment:
        deployment.producer.do("roles.save", role_job("member"))
        with deployment.database.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE users ADD CONSTRAINT no_faulty CHECK (id <> 'faulty')")
        faulty = deployment.send("users.save", user_job("faulty"))
        for name in ("first", "last"):
            deployment.send("users.save", user_job("behind", name))
        wait_until(lambda: count(deployment, users.c.name == "last") == 1, "the saves behind it are done")
        wait_until(lambda: '"event": "fault"' in deployment.worker.output, "the fault is logged")
        with deployment.database.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE users DROP CONSTRAINT no_faulty")
        wait_until(lambda: count(deployment, users.c.id == "faulty") == 1, "the faulty save is done")

        wait_until(lambda: deployment.result_keys(faulty), "it is answered")
        deployment.wait_until_idle()


def test_a_worker_that_ends_finishes_a_save_and_hands_back_those_behind_it_in_order(deploy: Deploy) -> None:
    with deploy() as deployment:
        with held_role(deployment, "held"):
            held = deployment.send("roles.save", role_job("held", "edit_user"))
            behind = [deployment.send("plans.save", plan_job("plan", price)) for price in range(10)]
            wait_until(lambda: is_at_work(deployment, held), "the save of the role waits for its lock")
            deployment.worker.ask_to_end(signal.SIGTERM)
            wait_until(lambda: "Warm shutdown" in deployment.worker.output, "the worker begins to end")
        assert deployment.worker.wait() == 0
        finished = deployment.result_keys(held, *behind)
        left = deployment.redis.llen("billing")
        deployment.restart_worker(empty_queues=False)
        wait_until(lambda: deployment.result_keys(*behind) == behind, "another worker answers the others")

        assert finished[0] == held
        assert len(finished) + left == 11
        wait_until(lambda: deployment.redis.hlen("unacked") == 0, "every save is acknowledged, after its answer")
        assert count(deployment, plans.c.price == 9) == 1
