"""Purging: everything that waits on a queue is taken as by a worker, and refused instead of done.

So nothing is lost without a word: a job is acknowledged once its refusal is stored, and after a crash in between it is
delivered once more.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from celery.states import SUCCESS
from kombu import Consumer

from models.errors import Reason, Refused
from models.messages.base import Json
from tasks.base import Arrival, PostageTask
from tasks.queues import Queue
from worker.broker.consumer import why_unfit
from worker.broker.waiting import job_of

PURGE_BATCH = 100
"""Jobs that are refused together."""
QUIET_S = 2.0
"""How long a queue must give nothing until it counts as empty, in seconds."""


def purge_queue(app: Any, queue: Queue, *, operator: str, confirm: Callable[[int], bool]) -> Json:  # noqa: ANN401
    """Refuse as many jobs of a queue as wait there now, if `confirm` says so of their number. Returns the answer.

    What cannot be a job is left for a worker, which quarantines it. Asks for attempts are dropped, for the sweep asks
    again.
    """
    refusal = Refused(Reason.CANCELLED, f"{operator} purged the queue {queue} before a worker began it.")
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        waiting = int(channel._size(str(queue)))  # noqa: SLF001  kombu has no other name for it
        answer: Json = {"status": "done", "queue": str(queue), "cancelled": 0, "left": 0}
        if not waiting or not confirm(waiting):
            return answer
        taken: list[Any] = []
        channel.basic_qos(0, PURGE_BATCH, False)  # noqa: FBT003  kombu's
        with Consumer(channel, [app.amqp.queues[str(queue)]], on_message=taken.append, accept=["json"]):
            while answer["cancelled"] + answer["left"] < waiting and _fill(connection, taken):
                refused = _refuse(app, taken, refusal)
                answer["cancelled"] += refused
                answer["left"] += len(taken) - refused
                taken.clear()
        return answer


def _fill(connection: Any, taken: list[Any]) -> bool:  # noqa: ANN401  kombu's
    """Wait for messages. Returns whether there are any."""
    try:
        while len(taken) < PURGE_BATCH:
            connection.drain_events(timeout=0.05 if taken else QUIET_S)
    except TimeoutError:
        pass
    return bool(taken)


def _refuse(app: Any, messages: list[Any], refusal: Refused) -> int:  # noqa: ANN401
    """Refuse jobs, store the answers for those who wait for them, and acknowledge them. Returns how many."""
    by_task: defaultdict[str, list[tuple[Any, Arrival]]] = defaultdict(list)
    unfit = 0  # they go back to the queue when the connection is closed
    for message in messages:
        job = None if why_unfit(message) else job_of(message)
        if job is None or job.task not in app.tasks:
            unfit += 1
        else:
            by_task[job.task].append((message, Arrival(job.given, job.task_id, refusal=refusal)))
    for name, group in by_task.items():
        task = app.tasks[name]
        if isinstance(task, PostageTask) and task.ends_on_record:
            _answer(task, group)
        for message, _ in group:
            message.ack()
    return len(messages) - unfit


def _answer(task: Any, group: list[tuple[Any, Arrival]]) -> None:  # noqa: ANN401
    for answers in task.answer([arrival for _, arrival in group]):
        for place, answer in answers:
            if not task.ignore_result:
                task.backend.store_result(group[place][1].task_id, answer, SUCCESS)
