"""The digest of a message: it is equal for the same job, however that is written, and different for any other."""

from typing import Any

import pytest

from models.messages.wire import MESSAGES, parse
from tests.factories import email_job, purchase_order, sms_job
from tests.unit.wire import EXAMPLES, TASKS

Json = Any

KEYED = [task for task in TASKS if MESSAGES[task].key]
"""Tasks whose jobs have an id that the producer makes."""
OTHERS = {"owner": "self", "EUR": "USD", "+31612345678": "+31612345679"}
"""A value that is as valid, for fields that do not take any text."""


def reordered(value: Json) -> Json:
    """Give the same object with its fields, and those of objects inside it, in the opposite order."""
    if isinstance(value, dict):
        return {name: reordered(value) for name, value in reversed(value.items())}
    return [reordered(value) for value in value] if isinstance(value, list) else value


def changed(value: Json) -> Json:
    """Give another value that is as valid."""
    match value:
        case str():
            return OTHERS.get(value, f"x{value}")
        case int():
            return value + 1
        case list():
            return [*value, value[0]]
        case _:
            first = next(iter(value))
            return {**value, first: changed(value[first])}


@pytest.mark.parametrize("task", TASKS)
def test_the_order_of_fields_does_not_change_the_digest(task: str) -> None:
    assert parse(task, EXAMPLES[task]).digest(task) == parse(task, reordered(EXAMPLES[task])).digest(task)


@pytest.mark.parametrize("task", KEYED)
def test_the_id_is_no_part_of_the_digest(task: str) -> None:
    key = MESSAGES[task].key
    assert key is not None

    assert parse(task, EXAMPLES[task]).digest(task) == parse(task, {**EXAMPLES[task], key: "other"}).digest(task)


def test_the_task_is_part_of_the_digest() -> None:
    message = parse("email.send", EXAMPLES["email.send"])

    assert message.digest("email.send") != message.digest("email.send_many")


@pytest.mark.parametrize("task", KEYED)
def test_every_given_field_is_part_of_the_digest(task: str) -> None:
    whole = EXAMPLES[task]
    fields = [name for name in whole if name != MESSAGES[task].key]

    others = [{**whole, name: changed(whole[name])} for name in fields]

    digests = {parse(task, job).digest(task) for job in (whole, *others)}
    assert len(digests) == len(fields) + 1


def test_the_same_job_written_differently_has_the_same_digest() -> None:
    email = parse("email.send", email_job(to="ada@example.test", cc=None))
    same_email = parse("email.send", email_job(to=["ada@EXAMPLE.test"]))
    order = parse("credits.purchase", purchase_order(email=1))
    same_order = parse("credits.purchase", purchase_order(credits={"email": 1}, credit_to="owner"))

    assert email.digest("email.send") == same_email.digest("email.send")
    assert order.digest("credits.purchase") == same_order.digest("credits.purchase")


def test_a_digest_is_the_same_in_every_process_and_version() -> None:
    """Digests are stored: if they changed, every job that is under way would become a conflicting one."""
    message = parse("sms.send", sms_job())

    assert message.digest("sms.send") == "042b49af3c5e112000a50215e1782a95276d685ec6e2a59ecd0959adf4ad28cf"
