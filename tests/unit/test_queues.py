"""The table of messages, the registered tasks and the routes to queues name the same tasks."""

import json
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from models.messages.wire import MESSAGES, SAVE_TASKS
from tasks.base import PostageTask
from tasks.queues import ROUTES, Queue
from tests.fakes import TASK_MODULES
from tests.unit.wire import EXAMPLES_FOLDER
from worker.broker.fair_queue import PERSON_FIELDS
from worker.celery_config import TURNS, celery_config
from worker.settings import Settings


@pytest.fixture(scope="module")
def registered() -> dict[str, PostageTask]:
    """Give Postage's own tasks, which every Celery app of this process has."""
    app: Any = Celery("queues", set_as_current=False)
    app.finalize()
    modules = {module.__name__ for module in TASK_MODULES}
    return {name: task for name, task in app.tasks.items() if task.__module__ in modules}


def test_every_message_has_its_task(registered: dict[str, PostageTask]) -> None:
    assert set(MESSAGES) - set(registered) == set()


def test_every_task_has_its_queue_and_every_route_its_task(registered: dict[str, PostageTask]) -> None:
    assert set(registered) == set(ROUTES)


def test_every_queue_is_used() -> None:
    assert set(ROUTES.values()) == set(Queue)


def test_every_task_is_a_postage_task(registered: dict[str, PostageTask]) -> None:
    assert [name for name, task in registered.items() if not isinstance(task, PostageTask)] == []


def test_send_tasks_keep_no_result_and_other_messages_do(registered: dict[str, PostageTask]) -> None:
    keep_results = {name for name, task in registered.items() if not task.ignore_result}

    assert keep_results == {name for name in MESSAGES if "send" not in name}


@pytest.mark.parametrize(
    ("task", "queue"),
    [
        ("email.send", "email"),
        ("sms.send", "sms"),
        ("email.send_many", "bulk"),
        ("sms.send_many", "bulk"),
        ("credits.purchase", "billing"),
        ("credits.set_owner", "billing"),
        ("users.save", "billing"),
        ("roles.save", "billing"),
        ("plans.save", "billing"),
        ("users.erase", "billing"),
        ("messages.cancel", "billing"),
        *((name, "views") for name in MESSAGES if name.startswith("views.")),
    ],
)
def test_tasks_go_to_the_queue_that_producers_were_told(task: str, queue: str) -> None:
    assert ROUTES[task] == queue


def test_saves_take_no_turns_with_each_other() -> None:
    """None names the person by whom their queue takes turns, so they share a line: of two saves the last one counts."""
    assert {field for task in SAVE_TASKS for field in MESSAGES[task].model_fields} & set(PERSON_FIELDS) == set()


def test_the_people_who_take_turns_are_named_by_a_field_of_the_jobs() -> None:
    for queue, field in TURNS.items():
        assert field in PERSON_FIELDS
        assert any(field in MESSAGES[task].model_fields for task in MESSAGES if ROUTES[task] == queue)


def test_every_task_that_beat_schedules_exists_and_has_a_route(registered: dict[str, PostageTask]) -> None:
    scheduled = {entry["task"] for entry in celery_config(Settings())["beat_schedule"].values()}

    assert scheduled <= set(registered)
    assert scheduled <= set(ROUTES)


def test_every_message_has_an_example() -> None:
    assert {path.name for path in EXAMPLES_FOLDER.glob("*.json")} == {f"{task}.json" for task in MESSAGES}


@pytest.mark.parametrize("path", sorted(EXAMPLES_FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_an_example_is_in_the_file_of_its_task(path: Path) -> None:
    assert json.loads(path.read_text())["task"] == path.stem
