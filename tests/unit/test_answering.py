"""How jobs are answered and shown: logs and Celery get ids and outcomes, and nothing else of a job's content."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu import Message as KombuMessage

from models.errors import Reason
from models.messages.answer import Answer
from tasks.job_ids import ID_FIELDS, USER_FIELDS, first_id, redacted_args
from tests.fakes import TASK_MODULES
from worker.app import create_app
from worker.broker.request import RedactedRequest
from worker.logs import QUIET, set_up_logging
from worker.settings import Settings

SECRET = "ada@example.test"
TEXTS = st.text(st.characters())
GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS | st.sampled_from(ID_FIELDS + USER_FIELDS), inner, max_size=6)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        ([{"job_id": "job-1", "sender": "john", "to": SECRET}], "(job=job-1, sender=john)"),
        (({"order_id": "order-1", "buyer": "john"},), "(job=order-1, sender=john)"),
        ([{"change_id": "c-1", "actor": "john", "user": "peter", "owner": "mary"}], "(job=c-1, sender=john)"),
        ([{"viewer": "john", "job_id": "job-1"}], "(job=job-1, sender=john)"),
        ([{"user_id": "peter", "email": SECRET}], "(job=peter, sender=-)"),
        ([{"job_id": SECRET, "sender": "a b"}], "(job=-, sender=-)"),
        ([{"job_id": "x" * 65, "sender": ""}], "(job=-, sender=-)"),
        ([{"job_id": "job\n", "sender": "john\n"}], "(job=-, sender=-)"),
        ([{"job_id": 7, "sender": ["john"]}], "(job=-, sender=-)"),
        ([SECRET], "(job=-, sender=-)"),
        (SECRET, "(job=-, sender=-)"),
        ({"job_id": "job-1"}, "(job=-, sender=-)"),
        ([], "(job=-, sender=-)"),
        (None, "(job=-, sender=-)"),
    ],
)
def test_arguments_are_shown_as_the_job_and_who_sent_it(args: object, shown: str) -> None:
    assert redacted_args(args) == shown


@given(GARBAGE | st.lists(GARBAGE, max_size=2))
def test_garbage_is_shown_as_ids_or_not_at_all(args: object) -> None:
    shown = redacted_args(args)

    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) < 160


@given(GARBAGE)
def test_the_id_of_a_job_is_a_valid_id_or_none(given_: object) -> None:
    found = first_id(given_, ID_FIELDS)

    assert found is None or (isinstance(given_, dict) and found in [given_.get(key) for key in ID_FIELDS])


def test_the_first_field_that_holds_an_id_gives_the_id_of_a_job() -> None:
    assert first_id({"job_id": None, "order_id": "order-1", "user_id": "u"}, ID_FIELDS) == "order-1"


def test_an_answer_prints_only_ids_and_outcome() -> None:
    answer = Answer(
        {
            "job_id": "job-1",
            "status": "refused",
            "reason": Reason.INVALID_JOB,
            "detail": f"Something about {SECRET}.",
            "billing": {"name": SECRET},
            "recipients_refused": {SECRET: "550"},
            "rows": [{"email": SECRET}],
        }
    )

    assert repr(answer) == str(answer) == "job_id=job-1 status=refused reason=invalid_job"
    assert SECRET not in f"{answer} {answer!r} {[answer]}"


def test_an_answer_is_its_json_object_on_the_wire() -> None:
    from kombu.utils.json import dumps  # noqa: PLC0415

    fields = {"job_id": "job-1", "status": "sent", "reason": Reason.NOT_FOUND, "credits": 1}

    assert json.loads(dumps(Answer(fields))) == {**fields, "reason": "not_found"}


@pytest.fixture(scope="module")
def app() -> Celery:
    assert TASK_MODULES
    app = Celery("answering", set_as_current=False)
    app.finalize()
    return app


def request(app: Celery, args: object, kwargs: object, **headers: Any) -> RedactedRequest:
    """Give the request that a worker makes of a task message in whose headers the producer shows the arguments."""
    message = KombuMessage(
        body=json.dumps([args, kwargs, {}]),
        headers={
            "id": "task-1",
            "task": "email.send",
            "argsrepr": repr(args),
            "kwargsrepr": repr(kwargs),
            "origin": "elsewhere",
            **headers,
        },
        content_type="application/json",
        content_encoding="utf-8",
        properties={"correlation_id": "task-1"},
        delivery_info={"exchange": "", "routing_key": "email"},
    )
    return RedactedRequest(message, app=app, hostname="here", task=app.tasks["email.send"], connection_errors=())


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ([{"job_id": "job-1", "sender": "john", "to": SECRET}], {}),
        ([{"job_id": "job-1", "sender": "john", "to": SECRET}], {"to": SECRET}),
        ([SECRET], {SECRET: SECRET}),
    ],
)
def test_a_request_shows_ids_where_celery_would_show_arguments(app: Celery, args: object, kwargs: object) -> None:
    received = request(app, args, kwargs)

    shown = f"{received!r} {received} {received.humaninfo()} {received.info()} {received.info(safe=False)}"
    assert SECRET not in shown
    assert redacted_args(args) in repr(received)


def test_a_request_still_hands_its_arguments_to_the_task(app: Celery) -> None:
    assert request(app, [{"to": SECRET}], {}).args == [{"to": SECRET}]


def test_every_task_has_requests_that_show_only_ids() -> None:
    app = create_app(Settings())

    others = [name for name, task in app.tasks.items() if task.Request != "worker.broker.request:RedactedRequest"]

    assert others == []


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Restore logging after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    quiet = {name: logging.getLogger(name).level for name in QUIET}
    saved = structlog.get_config()
    yield
    structlog.configure(**saved)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, quiet_level in quiet.items():
        logging.getLogger(name).setLevel(quiet_level)


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("library", ["structlog", "logging"])
def test_a_traceback_in_the_log_shows_no_variables(log_format: Any, library: str) -> None:
    """Local variables at a fault hold the message itself: its addresses and its text."""
    stream = io.StringIO()
    set_up_logging(Settings(log_format=log_format), stream)

    def fault(charge: dict[str, str]) -> None:
        raise ZeroDivisionError(len(charge))

    try:
        fault({"to": SECRET})
    except ZeroDivisionError:
        if library == "structlog":
            structlog.get_logger("test.of.tracebacks").exception("fault")
        else:
            logging.getLogger("test.of.tracebacks").exception("fault")

    assert "ZeroDivisionError" in stream.getvalue()
    assert SECRET not in stream.getvalue()
