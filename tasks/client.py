"""Enqueuing from Python, many jobs a round trip. It needs only the broker: no database, no settings, no worker.

    app = producer_app("redis://127.0.0.1:6379/0")
    enqueue(app, [SendEmail(job_id="invoice-4711", sender="mary", to=["you@example.org"], subject="Hello", text="Hi!")])

Celery's own `send_task` makes every message, inside kombu's batch: on the wire it is like a job that was sent alone.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import time  # noqa: TID251  nothing is stored of it
from uuid import uuid4

from celery import Celery
from kombu import Producer
from kombu.exceptions import BatchPublishError, OperationalError  # type: ignore[attr-defined]  # new in kombu 5.7

from models.errors import PostageError, Reason, Refused
from models.messages.base import Json, TaskMessage
from models.messages.bulk import SendMany
from models.messages.sends import Send
from models.messages.signatures import HEADER, ProducerKey
from models.messages.views import View
from models.messages.wire import MESSAGES, parse
from models.text import sanitize
from tasks.broker_urls import complete, transport_options, without_repeated_passwords
from tasks.job_ids import ID_FIELDS, first_id, redacted_args
from tasks.queues import ROUTES

JobLike = TaskMessage | tuple[str, Json]
"""A message, or the name of a task and the JSON object that it takes."""

JOBS_BATCH = 500
"""Jobs published in one round trip, at most."""
TASK_NAME_MAX = 64
"""Characters of the name of an unknown task that are repeated."""
CHARACTERS_BATCH = 4_000_000
"""A batch of this many characters is published at once: large emails must not fill the memory."""
TASKS = {message: task for task, message in MESSAGES.items() if message is not View}
"""The task that takes a message. A plain `View` fits several tasks; those are enqueued by name and object."""
CONNECTING = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5}
"""After four tries within a second the broker counts as away."""
NOTHING_AFTERWARDS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
"""The last part of a message's body as Celery writes it, if nothing is to be done after the job."""
TIMEOUTS = {"socket_timeout": 30, "socket_connect_timeout": 5, "socket_keepalive": True}
"""Without timeouts, a call to a broker that stands still would wait for ever."""
NO_KEY = "`job_id`: must be there, made before the first try: with it, publishing a job again is harmless."


class EnqueueError(PostageError):
    """Only the first `published` jobs were enqueued. The message says what happened."""

    published = 0


class InvalidJobError(EnqueueError):
    """The job at `index` (from 0) is not valid, and `why` says why. No job of its batch was published."""

    def __init__(self, index: int, name: str, why: str) -> None:
        super().__init__(index, name, why)
        self.index, self.name, self.why = index, name, why

    def __str__(self) -> str:
        return f"jobs[{self.index}] ({self.name}) is not valid: {self.why} {_so_far(self.published)}"


class BrokerAwayError(EnqueueError):
    """The broker could not be used. Of the `uncertain` jobs after the published ones, some may have been published."""

    def __init__(self, broker: str, why: str, uncertain: int) -> None:
        super().__init__(broker, why, uncertain)
        self.broker, self.why, self.uncertain = broker, why, uncertain

    def __str__(self) -> str:
        return (
            f"The broker {self.broker} cannot be used: {self.why}. {_so_far(self.published, self.uncertain)} "
            "Enqueue the others, or simply all, again as they are: the same id is never charged or sent twice."
        )


@dataclass(frozen=True, slots=True)
class _Checked:
    """A job that its worker will be able to parse."""

    task: str
    given: Json
    characters: int


class _Sent:
    """What `send_task` returns for a task that was sent: its id, without a subscription to its answer."""

    def __init__(self, task_id: str) -> None:
        self.id = task_id
        self.ignored = True


def producer_app(
    broker_url: str,
    results_url: str | None = None,
    *,
    key_prefix: str = "",
    sentinel_master: str = "mymaster",
    sentinel_password: str | None = None,
) -> Celery:
    """Return a Celery app that knows Postage's queues. `results_url` is needed only to read answers with `.get()`.

    The options are called as the settings of Postage are: `POSTAGE_KEY_PREFIX` and so on.

    Raises
    ------
    ValueError
        With a sentence, if the Sentinels of a URL contradict each other, or the prefix is not fit to be one.

    """
    options = transport_options(key_prefix, sentinel_master, sentinel_password)
    backend = results_url and without_repeated_passwords(complete(results_url))
    app = Celery("producer", broker=complete(broker_url), backend=backend, set_as_current=False)
    app.conf.update(
        broker_transport_options={**options, **TIMEOUTS},
        result_backend_transport_options=options,
        task_routes={task: {"queue": str(queue)} for task, queue in ROUTES.items()},
        task_serializer="json",
        accept_content=["json"],
    )
    return app


def enqueue(app: Celery, jobs: Iterable[JobLike], key: ProducerKey | None = None) -> list[str]:
    """Put jobs on their queues, through any Celery app with Postage's broker. Returns their Celery task ids, in order.

    All jobs of a list are checked before the first is published. Those of any other iterable are checked and published
    batch by batch, so there may be more of them than fit into memory. With a `key`, every message is signed.

    Raises
    ------
    InvalidJobError
        Naming the first job that no worker could parse, or that lacks its `job_id`.
    BrokerAwayError
        Saying how much was published. The same jobs can be enqueued again.

    """
    checked: Iterable[_Checked] = _each_checked([jobs] if isinstance(jobs, TaskMessage) else jobs)
    task_ids: list[str] = []
    try:
        for batch in _batches(list(checked) if isinstance(jobs, Sequence) else checked):
            task_ids += _publish(app, batch, key)
    except EnqueueError as error:
        error.published = len(task_ids)
        raise
    except Exception as error:  # raised by the caller's iterable
        error.add_note(_so_far(len(task_ids)))
        raise
    return task_ids


def _so_far(published: int, uncertain: int = 0) -> str:
    if not uncertain:
        return f"The first {published} jobs were published." if published else "Nothing was published."
    if not published:
        return f"Of the first {uncertain} jobs some may have been published."
    return f"The first {published} jobs were published, and of the next {uncertain} some may have been."


# -- checking ---------------------------------------------------------------------------------------------------------


def _each_checked(jobs: Iterable[JobLike]) -> Iterator[_Checked]:
    for index, job in enumerate(jobs):
        task, given = _on_the_wire(job)
        try:
            yield check_job(task, given)
        except Refused as why:
            name = f"{sanitize(task, TASK_NAME_MAX)}, {first_id(given, ID_FIELDS) or 'no valid id'}"
            raise InvalidJobError(index, name, why.detail) from None


def _on_the_wire(job: JobLike) -> tuple[str, Json]:
    """Return the task of a job, and its object with the fields that were given."""
    if isinstance(job, TaskMessage):
        return TASKS.get(type(job), type(job).__name__), job.model_dump(mode="json", exclude_unset=True)
    return job


def check_job(task: str, given: Json) -> _Checked:
    """Parse a job as its worker will, and make sure that it can be published twice without harm.

    Raises
    ------
    Refused
        `invalid_job`, with what is wrong field by field.

    """
    if task not in MESSAGES:
        raise Refused(Reason.INVALID_JOB, f"the tasks are {', '.join(MESSAGES)}.")
    message = parse(task, given)
    if isinstance(message, Send) and message.job_id is None:
        raise Refused(Reason.INVALID_JOB, NO_KEY)
    if isinstance(message, SendMany):
        for _ in message.each():  # checks every message
            pass
    return _Checked(task, given, len(message.model_dump_json()))


def signature(key: ProducerKey, task: str, task_id: str, given: Json) -> Json:
    """Return the headers that sign a job which Celery sends as JSON: those of `send_task`, with the same `task_id`."""
    body = json.dumps(([given], {}, NOTHING_AFTERWARDS)).encode()
    return {HEADER: key.sign(task=task, task_id=task_id, body=body, at=int(time()))}


# -- publishing -------------------------------------------------------------------------------------------------------


def _batches(jobs: Iterable[_Checked]) -> Iterator[list[_Checked]]:
    batch: list[_Checked] = []
    characters = 0
    for job in jobs:
        batch.append(job)
        characters += job.characters
        if len(batch) == JOBS_BATCH or characters >= CHARACTERS_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _publish(app: Celery, batch: Sequence[_Checked], key: ProducerKey | None) -> list[str]:
    """Publish a batch in one round trip.

    Raises
    ------
    BrokerAwayError
        If the broker could not be used.

    """
    uncertain = 0
    with app.producer_or_acquire() as producer:
        try:
            producer.connection.ensure_connection(**CONNECTING)
            uncertain = len(batch)
            with producer.batch(max_size=JOBS_BATCH):
                return [_send(app, producer, job, key) for job in batch]
        except (OperationalError, BatchPublishError) as error:
            # Not chained, because redis repeats the beginning of the message when it refuses a command.
            raise BrokerAwayError(producer.connection.as_uri(), _words(error), uncertain) from None


def _words(error: Exception) -> str:
    """Return what the broker or its driver said, on one line, without the command and the driver's own objects."""
    said = re.sub(r"^Command # \d+ .* of pipeline caused error: ", "", str(error.__cause__ or error), flags=re.DOTALL)
    said = re.sub(r" : <redis\..*", "", said, flags=re.DOTALL)
    return sanitize(said).rstrip(".")


def _send(app: Celery, producer: Producer, job: _Checked, key: ProducerKey | None) -> str:
    """Let Celery make the message, which kombu keeps until the batch is complete."""
    task_id = str(uuid4())
    sent = app.send_task(
        job.task,
        args=[job.given],
        task_id=task_id,
        headers=None if key is None else signature(key, job.task, task_id, job.given),
        queue=str(ROUTES[job.task]),
        argsrepr=redacted_args([job.given]),
        serializer="json",
        producer=producer,
        retry=False,  # a batch is published once; the caller decides whether to try again
        declare=[],  # on Redis a queue exists as soon as it holds something
        ignore_result=True,  # else the producer's app would subscribe to each answer; the worker decides what is kept
        add_to_parent=False,
        result_cls=_Sent,  # type: ignore[arg-type]
    )
    return sent.id
