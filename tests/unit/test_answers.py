"""Docs, types and answers are one: a task answers with the fields and types that models/messages/answers.py says."""

from typing import Any

import pytest

from models.database.engine import Database
from models.errors import Reason
from models.messages.answers import ANSWERS, EntryAnswer, refusal
from models.messages.wire import MESSAGES, SEND_TASKS
from tests.fakes import answer, make_context
from tests.unit.test_docs import PRODUCERS, STORY, names, section, table

Json = dict[str, Any]

WHO = ("sender", "buyer", "actor", "viewer", "role")
OF_ANY_REFUSAL = {"reason", "detail", "credits", "paid_by"}


def documented(task: str) -> set[str]:
    if task == "views.explain":
        return documented("views.message") | set(names(table(section(task), "answer")))
    if task in SEND_TASKS or task == "views.message":
        of_sends = set(
            names(table(PRODUCERS.partition("### The answer to a send job")[2].partition("\n## ")[0], "answer"))
        )
        return of_sends if task.endswith("_many") else of_sends - {"messages"}
    return set(names(table(section(task), "answer")))


@pytest.mark.parametrize("task", MESSAGES)
def test_a_type_has_the_documented_fields(task: str) -> None:
    fields = set(ANSWERS[task].model_fields)

    is_of_sends = task in (*SEND_TASKS, "views.message", "views.explain")
    optional = {"messages"} if is_of_sends else {"reason", "detail"}
    assert fields - optional == documented(task) - optional


@pytest.mark.parametrize("given", [None, {}, {"entry": "email/1"}, {"viewer": 5, "job_id": "no id"}], ids=str)
@pytest.mark.parametrize("task", MESSAGES)
def test_a_job_that_cannot_be_read_is_answered_with_every_field(task: str, given: Any) -> None:
    refused = refusal(task, given, Reason.INVALID_JOB, "No.")

    assert (refused["status"], refused["reason"], refused["detail"]) == ("refused", "invalid_job", "No.")
    is_entry = task == "views.statement" and given is not None and "entry" in given
    answer_type = EntryAnswer if is_entry else ANSWERS[task]
    if not is_entry:
        assert set(refused) == documented(task) | OF_ANY_REFUSAL
    answer_type.model_validate(refused)


def test_every_answer_has_the_fields_and_types_of_its_task(sqlite_url: str) -> None:
    """Done, refused by a rule, and given again: real answers from a database."""
    database = Database(sqlite_url)
    context = make_context(database)
    refused = set()
    for task, job in STORY:
        stranger = {name: "nobody" if name in WHO and task != "roles.save" else value for name, value in job.items()}
        for given in (stranger, job, job):
            fields = answer(context, task, given)
            ANSWERS[task].model_validate(fields)
            extra = OF_ANY_REFUSAL if fields["status"] == "refused" else set()
            assert set(fields) | extra == documented(task) | extra, (task, fields)
            refused |= {task} if fields["status"] == "refused" else set()
        conflicting = answer(context, task, {**job, "reason": "other"}) if "reason" in job else None
        assert conflicting is None or conflicting["reason"] == Reason.CONFLICTING_JOB
    context.close()
    assert refused == {task for task, _ in STORY} - {"roles.save", "plans.save", "credits.reverse"}  # these name nobody


@pytest.mark.parametrize("task", SEND_TASKS)
def test_a_send_that_took_no_key_is_shown_with_every_field(sqlite_url: str, task: str) -> None:
    database = Database(sqlite_url)
    context = make_context(database)
    for done, job in STORY[:2]:
        answer(context, done, job)
    answer(context, task, {"job_id": "bad", "sender": "john"})

    shown = answer(context, "views.message", {"viewer": "john", "job_id": "bad"})

    assert (shown["status"], shown["reason"], shown["job_id"], shown["task"]) == ("refused", "invalid_job", "bad", task)
    assert set(shown) == documented(task)
    ANSWERS[task].model_validate(shown)
    explained = answer(context, "views.explain", {"viewer": "john", "job_id": "bad"})
    assert explained == shown | {"story": explained["story"]}
    ANSWERS["views.explain"].model_validate(explained)
    context.close()
