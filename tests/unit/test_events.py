"""The event dispatcher: many threads send events through it, and none is lost."""

import threading
from types import SimpleNamespace
from typing import Any

from celery.events.dispatcher import EventDispatcher

from worker.app import create_app
from worker.broker.events import ThreadSafeDispatcher
from worker.settings import Settings


class SlowPublisher:
    """A producer that takes its time, so that threads meet while it publishes."""

    def __init__(self) -> None:
        self.published: list[dict[str, Any]] = []

    def publish(self, events: list[dict[str, Any]], **options: Any) -> None:
        batch = list(events)
        threading.Event().wait(0.001)
        self.published += batch


def test_a_buffered_event_is_the_one_that_celery_would_buffer() -> None:
    app = create_app(Settings(broker_url="redis://127.0.0.1:1/0"))
    gathered = []
    for kind in (ThreadSafeDispatcher, EventDispatcher):
        dispatcher = kind(None, enabled=False, app=app, hostname="here", buffer_group={"task"}, buffer_limit=100)
        dispatcher.enabled = True
        dispatcher.send("task-started", uuid="one")
        gathered += dispatcher._group_buffer["task"]

    own_event, celery_event = ({**event, "timestamp": 0, "clock": 0} for event in gathered)
    assert own_event == celery_event


def test_events_of_a_group_that_nobody_watches_are_not_buffered() -> None:
    app = create_app(Settings(broker_url="redis://127.0.0.1:1/0", task_events=False))
    dispatcher = app.events.Dispatcher(
        app.connection_for_write(), enabled=False, buffer_group={"task"}, buffer_limit=100, groups=["worker"]
    )
    dispatcher.enabled = True
    dispatcher.send("task-started", uuid="one")
    assert not dispatcher._group_buffer["task"]

    dispatcher.groups.add("task")  # remote control does so when somebody wants to see these events
    dispatcher.send("task-started", uuid="one")
    assert [event["uuid"] for event in dispatcher._group_buffer["task"]] == ["one"]
    assert app.conf.worker_send_task_events is False


def test_no_event_is_lost_when_many_threads_send_at_once() -> None:
    """An event that comes while others are being published goes out with the next ones."""
    app = create_app(Settings(broker_url="redis://127.0.0.1:1/0"))
    assert isinstance(app.events.Dispatcher(app.connection_for_write(), enabled=False), ThreadSafeDispatcher)
    dispatcher = app.events.Dispatcher(app.connection_for_write(), enabled=False, buffer_group={"task"}, buffer_limit=3)
    dispatcher.enabled = True
    dispatcher.producer = publisher = SlowPublisher()
    dispatcher.exchange = SimpleNamespace(name="celeryev")

    def send(thread: int) -> None:
        for number in range(50):
            dispatcher.send("task-succeeded", uuid=f"{thread}-{number}")

    threads = [threading.Thread(target=send, args=[thread]) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    dispatcher.flush()

    assert sorted(f"{thread}-{number}" for thread in range(8) for number in range(50)) == sorted(
        event["uuid"] for event in publisher.published
    )
