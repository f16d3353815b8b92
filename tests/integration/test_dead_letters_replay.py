"""Replays of dead letters: under which id a job is enqueued again, and how it ends then."""

import pytest

from models.database.engine import Database
from models.sends.charges import State
from models.sends.dead_letters import find_letter, mark_replayed
from tasks.base import FAULT_RETRIES, FaultError
from tasks.context import Context
from tasks.operating import replay_letter
from tests.factories import BILLING, balance, buy, email_job, purchase_order
from tests.fakes import NEVER, NOON, answer, run_enqueued
from tests.integration.sending import LATER, answer_after_retries, context_with_a_bug, pass_time, scripted_context
from tests.integration.stored import charge_of, findings, letters_of, only_letter_of


def replay(context: Context, letter_id: int | None = None) -> str:
    """Replay a letter, the only one if none is named. Returns the id under which its job is enqueued."""
    letter_id = only_letter_of(context.database).id if letter_id is None else letter_id
    key: str = replay_letter(context, letter_id)["replayed_as"]
    return key


def test_a_refused_job_is_sent_when_it_is_replayed_with_enough_credits(stocked: Database) -> None:
    context = scripted_context(stocked)
    answer(context, "email.send", email_job(to=[f"a{n}@example.test" for n in range(11)]))
    buy(stocked, "john", email=10)

    first, second = replay(context), replay(context)
    run_enqueued(context)

    assert (first, second) == ("job-1:r1", "job-1:r1")
    assert charge_of(stocked, "job-1:r1").state is State.SENT
    assert charge_of(stocked, "job-1").state is State.REFUSED
    assert balance(stocked, "john") == 20 - 11
    assert (only_letter_of(stocked).replayed_as, only_letter_of(stocked).replayed_at) == ("job-1:r1", NOON)
    assert findings(stocked) == []


def test_a_refused_replay_becomes_a_letter_of_its_own(stocked: Database) -> None:
    context = scripted_context(stocked)
    answer(context, "email.send", email_job(sender="anna"))
    replay(context)
    run_enqueued(context)

    [_, second] = letters_of(stocked)

    assert second.key == "job-1:r1"
    assert replay(context, second.id) == "job-1:r2"


def test_a_purchase_is_replayed_under_its_own_id_and_credited_once(stocked: Database) -> None:
    context = scripted_context(stocked)
    order = purchase_order(buyer="mary", email=7)
    del order["billing"]
    answer(context, "credits.purchase", order)
    user = {"user_id": "mary", "organization": "acme", "name": "Mary", "email": "mary@acme.test", "role": "member"}
    answer(context, "users.save", {**user, "billing": BILLING})

    replay(context)
    replay(context)
    answers = run_enqueued(context)

    assert [answered["status"] for answered in answers] == ["done", "done"]
    assert balance(stocked, "mary") == 7
    assert findings(stocked) == []


def test_a_failed_bulk_message_is_kept_and_replayed_on_its_own(stocked: Database) -> None:
    context = scripted_context(stocked, NEVER)
    bulk = {"job_id": "b", "sender": "peter", "subject": "Dear {{name}}", "text": "Hello", "bcc": "eve@example.test"}
    recipients = [{"to": f"{name}@example.test", "values": {"name": name}} for name in ("ada", "bob")]
    answer(context, "email.send_many", {**bulk, "recipients": recipients})
    run_enqueued(context)

    letter = only_letter_of(stocked)
    key = replay(context)
    run_enqueued(context)

    assert (letter.task, letter.key, letter.person, letter.job["subject"]) == ("email.send", "b/0", "peter", "Dear ada")
    assert letter.job["bcc"] == ["eve@example.test"]
    assert key.startswith("b.0.")
    assert charge_of(stocked, key).state is State.SENT
    assert balance(stocked, "john") == 10 - 2 - 2
    assert findings(stocked) == []


def test_a_job_that_was_given_up_is_replayed_under_its_own_id(stocked: Database) -> None:
    """It may have been charged, and is not charged again."""
    context = context_with_a_bug(stocked)
    with pytest.raises(FaultError, match="ZeroDivisionError"):
        answer_after_retries(context, "email.send", email_job(), FAULT_RETRIES)

    assert replay(context) == "job-1"
    run_enqueued(context)

    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


def test_a_letter_can_be_replayed_again_if_its_job_is_refused_again(stocked: Database) -> None:
    context = scripted_context(stocked)
    answer(context, "credits.purchase", purchase_order(buyer="anna", email=3))
    assert replay(context) == "order-1"
    assert only_letter_of(stocked).replayed_as == "order-1"

    pass_time(context)
    run_enqueued(context)

    assert (only_letter_of(stocked).replayed_as, only_letter_of(stocked).at) == (None, NOON + LATER)


def test_a_letter_is_not_marked_if_its_job_was_refused_again_meanwhile(stocked: Database) -> None:
    context = scripted_context(stocked)
    answer(context, "credits.purchase", purchase_order(buyer="anna", email=3))
    letter = stocked.read(lambda connection: find_letter(connection, only_letter_of(stocked).id))
    assert letter is not None
    pass_time(context)
    answer(context, "credits.purchase", purchase_order(buyer="anna", email=3))

    stocked.write(lambda connection: mark_replayed(connection, letter, "order-1", context.now()))

    assert only_letter_of(stocked).replayed_at is None
