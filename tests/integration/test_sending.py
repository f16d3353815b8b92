"""The use cases of sending, from the charge to the last settlement, on both databases and without a broker."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import structlog
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import charges, dead_letters, entries, refusals
from models.messages.sends import SendEmail
from models.sends.carrier import Email, OutboundMessage, Outcome, Receipt, Sms
from models.sends.outcomes import CRASHES_MAX
from models.sends.retry_policy import RetryPolicy
from tasks import upkeep
from tasks.context import Context, Json
from tests.audits import audit_everything
from tests.factories import balance, buy, email_job, share, sms_job, stock
from tests.fakes import (
    ACCEPTED,
    NEVER,
    NOBODY,
    NOON,
    NOT_NOW,
    UNSURE,
    Clock,
    FakeCarrier,
    answer,
    later,
    make_context,
    run_enqueued,
    send,
)

THREE = ["ada@example.test", "bob@example.test", "eve@example.test"]
LATER = timedelta(hours=1)
DEAD = ZeroDivisionError("the worker is dead")
"""Scripted, it is raised before anything is handed over."""


def dead_after_handing_over(_: OutboundMessage) -> Receipt:
    """Take the message, and let nobody know."""
    raise DEAD


class SlowCarrier(FakeCarrier):
    """A carrier that is kept waiting before anything is handed over."""

    def __init__(self, wait: Callable[[], object], **options: Any) -> None:
        super().__init__(**options)
        self.wait = wait
        self.taken: list[str] = []

    def deliver(self, message: OutboundMessage, before_handover: Callable[[], None]) -> Receipt:
        """Wait, then keep the job's id only if it may be handed over."""
        self.wait()
        receipt = super().deliver(message, before_handover)
        self.taken.append(message.job_id)
        return receipt


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Print no tracebacks: with all their variables, they take longer than the tests."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def stocked(database: Database) -> Database:
    """Give a database in which john owns 10 email and 10 SMS credits, peter uses them, and olga is a stranger."""
    return stock(database, email=10, sms=10)


def die(context: Context, task: str, given: Json) -> None:
    """Answer a job in a worker that does not survive it."""
    with pytest.raises(ZeroDivisionError):
        answer(context, task, given)


def die_later(context: Context) -> None:
    """Let time pass, sweep, and let a worker do what was enqueued, which it does not survive."""
    with pytest.raises(ZeroDivisionError):
        later(context)


def message(context: Context, job_id: str = "job-1", viewer: str = "john") -> Json:
    """Give the answer as it can be read back at any time."""
    return answer(context, "views.message", {"viewer": viewer, "job_id": job_id})


def row(database: Database, job_id: str = "job-1") -> Any:
    with database.snapshot() as connection:
        return connection.execute(select(charges).where(charges.c.job_id == job_id)).one_or_none()


def findings(database: Database) -> list[Any]:
    with database.snapshot() as connection:
        return audit_everything(connection, NOON)


def test_an_email_is_handed_over_and_costs_its_owner_one_credit_a_recipient(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)

    said = answer(context, "email.send", email_job(sender="peter", to=THREE[:1], cc=THREE[1:2], bcc=THREE[2:]))

    assert said["status"] == "sent"
    assert (said["paid_by"], said["credits"], said["attempts"]) == ("john", 3, 1)
    assert (said["reason"], said["detail"]) == (None, None)
    assert said["carrier_reference"] == "ref-1"
    assert balance(stocked, "john") == 7
    assert findings(stocked) == []


def test_the_carrier_gets_all_that_the_job_said_and_who_sent_it(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    job = email_job(
        sender="peter",
        to=THREE[:1],
        cc=THREE[1:2],
        bcc=THREE[2:],
        html="<p>Hello</p>",
        reply_to="desk@example.test",
        headers={"X-Campaign": "spring"},
    )

    answer(context, "email.send", job)

    expected = Email(
        job_id="job-1",
        from_name="Peter",
        from_address="peter@acme.test",
        to=("ada@example.test",),
        cc=("bob@example.test",),
        recipients=tuple(THREE),
        subject="Hello",
        text="Hello Ada",
        html="<p>Hello</p>",
        reply_to="desk@example.test",
        headers={"X-Campaign": "spring"},
    )
    assert carrier.messages == [expected]


def test_a_text_message_costs_one_credit_a_segment(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, sms=carrier)

    said = answer(context, "sms.send", sms_job(text="x" * 161, **{"from": "Acme"}))

    assert carrier.messages == [Sms("job-1", "+31612345678", "Acme", "x" * 161, 2)]
    assert (said["status"], said["credits"], said["kind"]) == ("sent", 2, "sms")
    assert (balance(stocked, "john", "sms"), balance(stocked, "john", "email")) == (8, 10)


@pytest.mark.parametrize("is_idempotent", [False, True])
def test_no_connection_is_held_and_what_a_crash_would_leave_is_committed_while_the_carrier_is_called(
    stocked: Database, *, is_idempotent: bool
) -> None:
    """That the carrier may have the message needs no note where it may be asked again."""
    seen: list[tuple[int, str, bool]] = []

    def look(_: OutboundMessage) -> Receipt:
        pool: Any = stocked.engine.pool
        seen.append((pool.checkedout(), row(stocked).state, row(stocked).handover_started_at == NOON))
        return ACCEPTED

    answer(make_context(stocked, email=FakeCarrier(look, is_idempotent=is_idempotent)), "email.send", email_job())

    assert seen == [(0, "sending", not is_idempotent)]
    assert row(stocked).handover_started_at is None


def test_what_the_carrier_says_never_to_fails_and_the_credits_go_back(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(NEVER))

    said = answer(context, "email.send", email_job(to=THREE))

    assert (said["status"], said["reason"]) == ("failed", "carrier_refused")
    assert said["detail"] == "The carrier will not take it."
    assert (said["credits"], said["cost"], said["paid_by"]) == (0, 3, "john")
    assert balance(stocked, "john") == 10
    assert findings(stocked) == []


def test_an_email_that_all_recipients_are_refused_for_fails(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(NOBODY))

    said = answer(context, "email.send", email_job(to=THREE))

    assert (said["status"], said["reason"], said["credits"]) == ("failed", "recipient_refused", 0)
    assert balance(stocked, "john") == 10


def test_a_refund_goes_to_who_paid_even_if_the_owner_changed_while_the_carrier_was_asked(stocked: Database) -> None:
    def move_peter_away(_: OutboundMessage) -> Receipt:
        share(stocked, "peter", "mary")
        return NEVER

    context = make_context(stocked, email=FakeCarrier(move_peter_away))

    said = answer(context, "email.send", email_job(sender="peter"))

    assert (said["status"], said["paid_by"]) == ("failed", "john")
    assert (balance(stocked, "john"), balance(stocked, "mary")) == (10, 0)


def test_a_job_that_waits_is_settled_where_it_was_charged(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(NOT_NOW, NEVER))
    answer(context, "email.send", email_job(sender="peter"))
    share(stocked, "peter", "peter")

    later(context)

    assert (balance(stocked, "john"), balance(stocked, "peter")) == (10, 0)
    assert message(context)["paid_by"] == "john"


def test_recipients_that_are_refused_for_good_get_their_credits_back_and_are_named(stocked: Database) -> None:
    partial = Receipt(Outcome.ACCEPTED, reference="ref-2", refused={THREE[1]: "550 no such user"})
    context = make_context(stocked, email=FakeCarrier(partial))

    said = answer(context, "email.send", email_job(to=THREE))

    assert (said["status"], said["reason"], said["credits"]) == ("sent", "recipient_refused", 2)
    assert said["recipients_refused"] == {THREE[1]: "550 no such user"}
    assert balance(stocked, "john") == 8
    assert findings(stocked) == []


def test_recipients_that_are_put_off_alone_are_asked_again(stocked: Database) -> None:
    partial = Receipt(Outcome.ACCEPTED, deferred={THREE[2]: "451 later"}, refused={THREE[1]: "550 never"})
    carrier = FakeCarrier(partial, Receipt(Outcome.ACCEPTED, reference="ref-2"))
    context = make_context(stocked, email=carrier)

    first = answer(context, "email.send", email_job(to=THREE))
    later(context)

    assert (first["status"], first["credits"]) == ("retrying", 3)
    emails = [message for message in carrier.messages if isinstance(message, Email)]
    assert [email.recipients for email in emails] == [tuple(THREE), (THREE[2],)]
    assert [email.to for email in emails] == [tuple(THREE)] * 2
    final = message(context)
    assert (final["status"], final["credits"], final["attempts"]) == ("sent", 2, 2)
    assert final["recipients_refused"] == {THREE[1]: "550 never"}
    assert balance(stocked, "john") == 8


def test_a_recipient_put_off_until_the_attempts_are_used_up_gets_the_credit_back(stocked: Database) -> None:
    partial = Receipt(Outcome.ACCEPTED, deferred={THREE[2]: "451 later"})
    context = make_context(stocked, email=FakeCarrier(partial, NOT_NOW), policy=RetryPolicy(attempts_max=2))
    answer(context, "email.send", email_job(to=THREE))

    later(context)

    final = message(context)
    assert (final["status"], final["credits"], final["attempts"]) == ("sent", 2, 2)
    assert list(final["recipients_refused"]) == [THREE[2]]
    assert balance(stocked, "john") == 8
    assert findings(stocked) == []


def test_a_message_the_carrier_takes_at_the_second_attempt_is_charged_once(stocked: Database) -> None:
    carrier = FakeCarrier(NOT_NOW)
    context = make_context(stocked, sms=carrier)

    first = answer(context, "sms.send", sms_job())

    assert (first["status"], first["reason"], first["attempts"]) == ("retrying", "carrier_unavailable", 1)
    assert first["next_attempt_at"] is not None
    assert balance(stocked, "john", "sms") == 9

    later(context)

    final = message(context)
    assert (final["status"], final["reason"], final["detail"], final["attempts"]) == ("sent", None, None, 2)
    assert final["next_attempt_at"] is None
    assert balance(stocked, "john", "sms") == 9
    assert carrier.job_ids == ["job-1", "job-1"]


def test_nothing_is_tried_again_before_it_is_due(stocked: Database) -> None:
    carrier = FakeCarrier(NOT_NOW)
    context = make_context(stocked, sms=carrier)
    answer(context, "sms.send", sms_job())

    later(context, timedelta(seconds=1))

    assert carrier.job_ids == ["job-1"]


def test_a_job_whose_attempts_are_used_up_fails_and_gives_the_credits_back(stocked: Database) -> None:
    carrier = FakeCarrier(*[NOT_NOW] * 5)
    context = make_context(stocked, sms=carrier, policy=RetryPolicy(attempts_max=3))
    answer(context, "sms.send", sms_job())

    for _ in range(5):
        later(context)

    final = message(context)
    assert (final["status"], final["reason"], final["attempts"]) == ("failed", "carrier_unavailable", 3)
    assert final["credits"] == 0
    assert len(carrier.messages) == 3
    assert balance(stocked, "john", "sms") == 10
    assert findings(stocked) == []


def test_an_unsure_outcome_is_parked_still_charged_and_never_sent_again(stocked: Database) -> None:
    carrier = FakeCarrier(UNSURE)
    context = make_context(stocked, email=carrier)

    said = answer(context, "email.send", email_job())
    later(context)

    assert (said["status"], said["credits"], said["detail"]) == ("unknown", 1, "The line went dead.")
    assert message(context)["status"] == "unknown"
    assert len(carrier.messages) == 1
    assert balance(stocked, "john") == 9
    assert row(stocked).content is not None


def test_a_carrier_that_honours_the_job_id_is_asked_again_after_an_unsure_outcome(stocked: Database) -> None:
    carrier = FakeCarrier(UNSURE, is_idempotent=True)
    context = make_context(stocked, sms=carrier)

    first = answer(context, "sms.send", sms_job())
    later(context)

    assert first["status"] == "retrying"
    assert message(context)["status"] == "sent"
    assert carrier.job_ids == ["job-1", "job-1"]


def test_what_was_once_unsure_is_not_refunded_when_the_attempts_are_used_up(stocked: Database) -> None:
    carrier = FakeCarrier(UNSURE, NOT_NOW, is_idempotent=True)
    context = make_context(stocked, sms=carrier, policy=RetryPolicy(attempts_max=2))
    answer(context, "sms.send", sms_job())

    later(context)

    assert (message(context)["status"], message(context)["credits"]) == ("unknown", 1)
    assert balance(stocked, "john", "sms") == 9


def test_a_carrier_that_raises_leaves_the_charge_held_and_the_fault_loud(stocked: Database) -> None:
    carrier = FakeCarrier(DEAD)
    context = make_context(stocked, email=carrier)

    die(context, "email.send", email_job())

    assert row(stocked).state == "sending"
    assert balance(stocked, "john") == 9
    again = answer(context, "email.send", email_job())
    assert (again["status"], again["credits"]) == ("sending", 1)
    assert len(carrier.messages) == 1


def test_an_attempt_whose_holder_died_ends_with_its_lease_and_is_made_again(stocked: Database) -> None:
    """Nothing was handed over, so nothing can be sent twice."""
    carrier, clock = FakeCarrier(DEAD), Clock()
    context = make_context(stocked, email=carrier, clock=clock)
    die(context, "email.send", email_job())

    clock.forward(context.retry_policy.lease - timedelta(seconds=1))
    early = upkeep.sweep(context)
    clock.forward(timedelta(seconds=2))
    late = upkeep.sweep(context)

    assert (early["ended"], late["ended"], late["resumed"]) == (0, 1, 0)
    waiting = message(context)
    assert (waiting["status"], waiting["reason"], waiting["credits"]) == ("retrying", None, 1)
    assert "The worker died" in waiting["detail"]
    assert (row(stocked).crashes, row(stocked).handover_started_at) == (1, None)

    later(context)

    final = message(context)
    assert (final["status"], final["detail"], final["attempts"]) == ("sent", None, 2)
    assert carrier.job_ids == ["job-1", "job-1"]
    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


def test_the_next_attempt_after_a_death_waits_as_long_as_after_a_refusal(stocked: Database) -> None:
    """What killed the worker may pass, if it is given time."""
    context = make_context(stocked, email=FakeCarrier(DEAD))
    die(context, "email.send", email_job())

    clock: Any = context.now
    clock.forward(LATER)
    upkeep.sweep(context)

    assert timedelta() < row(stocked).due_at - clock.now <= context.retry_policy.delay(1, draw=1)


def test_an_email_whose_holder_died_after_handing_it_over_is_unknown_and_never_sent_again(stocked: Database) -> None:
    carrier = FakeCarrier(dead_after_handing_over)
    context = make_context(stocked, email=carrier)
    die(context, "email.send", email_job())

    for _ in range(3):
        later(context)

    final = message(context)
    assert (final["status"], final["reason"], final["credits"]) == ("unknown", None, 1)
    assert "may have taken the message" in final["detail"]
    assert (row(stocked).crashes, row(stocked).handover_started_at) == (1, NOON)
    assert len(carrier.messages) == 1
    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


@pytest.mark.parametrize(("last", "status"), [(DEAD, "retrying"), (dead_after_handing_over, "unknown")])
def test_a_later_attempt_whose_holder_died_gives_no_reason_of_an_earlier_one(
    stocked: Database, last: Any, status: str
) -> None:
    context = make_context(stocked, email=FakeCarrier(NOT_NOW, last))
    answer(context, "email.send", email_job())
    die_later(context)

    later(context)

    final = message(context)
    assert (final["status"], final["reason"], final["attempts"]) == (status, None, 2)
    assert "died" in final["detail"]


def test_an_earlier_handing_over_that_was_answered_is_no_doubt_when_a_later_worker_dies(stocked: Database) -> None:
    """The carrier said that it did not take it, so it is certain that nobody has it."""
    context = make_context(stocked, email=FakeCarrier(NOT_NOW, DEAD))
    answer(context, "email.send", email_job())
    die_later(context)
    later(context)

    later(context)

    assert (message(context)["status"], message(context)["attempts"]) == ("sent", 3)


def test_recipients_that_were_reached_are_not_asked_again_after_a_death(stocked: Database) -> None:
    partial = Receipt(Outcome.ACCEPTED, deferred={THREE[2]: "451 later"}, refused={THREE[1]: "550 never"})
    carrier = FakeCarrier(partial, DEAD)
    context = make_context(stocked, email=carrier)
    answer(context, "email.send", email_job(to=THREE))
    die_later(context)

    later(context)
    later(context)

    emails = [message for message in carrier.messages if isinstance(message, Email)]
    assert [email.recipients for email in emails] == [tuple(THREE), (THREE[2],), (THREE[2],)]
    final = message(context)
    assert (final["status"], final["credits"], list(final["recipients_refused"])) == ("sent", 2, [THREE[1]])
    assert findings(stocked) == []


@pytest.mark.parametrize("dies", [DEAD, dead_after_handing_over])
def test_an_attempt_whose_holder_died_is_made_again_with_a_carrier_that_honours_the_job_id(
    stocked: Database, dies: Any
) -> None:
    carrier = FakeCarrier(dies, is_idempotent=True)
    context = make_context(stocked, sms=carrier)
    die(context, "sms.send", sms_job())

    later(context)
    while_waiting = row(stocked)
    later(context)

    assert (while_waiting.state, while_waiting.crashes) == ("waiting", 1)
    assert while_waiting.handover_started_at is not None
    assert (message(context)["status"], message(context)["attempts"]) == ("sent", 2)
    assert carrier.job_ids == ["job-1", "job-1"]
    assert balance(stocked, "john", "sms") == 9


def test_dead_attempts_end_unknown_when_no_attempt_is_left_and_the_carrier_may_have_it(stocked: Database) -> None:
    carrier = FakeCarrier(DEAD, is_idempotent=True)
    context = make_context(stocked, sms=carrier, policy=RetryPolicy(attempts_max=1))
    die(context, "sms.send", sms_job())

    later(context)

    assert message(context)["status"] == "unknown"
    assert balance(stocked, "john", "sms") == 9


def test_dead_attempts_fail_when_no_attempt_is_left_and_nothing_was_handed_over(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(DEAD), policy=RetryPolicy(attempts_max=1))
    die(context, "email.send", email_job())

    later(context)

    assert (message(context)["status"], message(context)["reason"]) == ("failed", "carrier_unavailable")
    assert balance(stocked, "john") == 10
    assert findings(stocked) == []


def test_a_job_over_which_too_many_workers_died_is_set_aside_and_its_credits_go_back(stocked: Database) -> None:
    """It may be what kills them: it is kept, so that it can be sent again when that is mended."""
    carrier = FakeCarrier(*[DEAD] * (CRASHES_MAX + 1))
    context = make_context(stocked, email=carrier)
    die(context, "email.send", email_job(to=THREE))
    for _ in range(CRASHES_MAX - 1):
        later(context)
        die_later(context)

    for _ in range(3):
        later(context)

    final = message(context)
    assert (final["status"], final["reason"], final["credits"]) == ("failed", "carrier_unavailable", 0)
    assert f"{CRASHES_MAX} workers died" in final["detail"]
    assert (row(stocked).crashes, row(stocked).content) == (CRASHES_MAX, None)
    assert len(carrier.messages) == CRASHES_MAX
    assert balance(stocked, "john") == 10
    with stocked.snapshot() as connection:
        [letter] = connection.execute(select(dead_letters)).all()
    assert (letter.key, letter.status, letter.job["to"]) == ("job-1", "failed", THREE)
    assert findings(stocked) == []


def test_a_carrier_that_honours_the_job_id_may_have_what_too_many_workers_died_over(stocked: Database) -> None:
    carrier = FakeCarrier(*[DEAD] * (CRASHES_MAX + 1), is_idempotent=True)
    context = make_context(stocked, sms=carrier)
    die(context, "sms.send", sms_job())
    for _ in range(CRASHES_MAX - 1):
        later(context)
        die_later(context)

    for _ in range(3):
        later(context)

    assert (message(context)["status"], row(stocked).crashes) == ("unknown", CRASHES_MAX)
    assert len(carrier.messages) == CRASHES_MAX
    assert balance(stocked, "john", "sms") == 9
    with stocked.snapshot() as connection:
        assert connection.execute(select(dead_letters)).all() == []


@pytest.mark.parametrize(
    ("dies", "state", "level"), [(DEAD, "waiting", "warning"), (dead_after_handing_over, "unknown", "error")]
)
def test_a_death_is_said_louder_where_a_person_must_look(stocked: Database, dies: Any, state: str, level: str) -> None:
    context = make_context(stocked, email=FakeCarrier(dies))
    die(context, "email.send", email_job(sender="peter"))

    with structlog.testing.capture_logs() as said:
        later(context)

    [line] = [line for line in said if line["event"] == "worker crashed during an attempt"]
    assert (line["log_level"], line["state"]) == (level, state)
    assert (line["job"], line["sender"], line["payer"]) == ("job-1", "peter", "john")


def test_a_job_over_which_a_worker_died_is_resumed_alone_from_then_on(stocked: Database) -> None:
    """It would take those along that are resumed with it. They go together all the while."""
    context = make_context(stocked, email=FakeCarrier(DEAD, *[NOT_NOW] * 3))
    broker: Any = context.enqueue
    clock: Any = context.now
    answer(context, "email.send_many", bulk())
    with pytest.raises(ZeroDivisionError):
        run_enqueued(context)

    groups = []
    for _ in range(2):
        clock.forward(LATER)
        upkeep.sweep(context)  # the first time it ends the dead attempt, which so is not due before the second
        groups.append([sorted(given["attempts"]) for _, given in broker.take()])

    assert groups == [[["bulk-1/1", "bulk-1/2"]], [["bulk-1/1", "bulk-1/2"], ["bulk-1/0"]]]


def test_a_worker_that_was_too_slow_to_hand_an_email_over_does_not_do_it_any_more(stocked: Database) -> None:
    """Somebody else has the job, and would hand it over too."""
    clock = Clock()
    quick = FakeCarrier()
    next_worker = make_context(stocked, email=quick, clock=clock)

    def sleep_while_another_takes_over() -> None:
        later(next_worker)
        later(next_worker)

    slow = SlowCarrier(sleep_while_another_takes_over)
    context = make_context(stocked, email=slow, clock=clock)

    said = answer(context, "email.send", email_job())

    assert (said["status"], said["attempts"]) == ("sent", 2)
    assert (slow.taken, quick.job_ids) == ([], ["job-1"])
    assert (row(stocked).crashes, row(stocked).handover_started_at) == (1, None)
    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


def test_a_worker_that_was_too_slow_does_not_hand_over_what_waits_for_its_next_attempt(stocked: Database) -> None:
    clock = Clock()
    slow = SlowCarrier(lambda: later(make_context(stocked, clock=clock)))
    context = make_context(stocked, email=slow, clock=clock)

    said = answer(context, "email.send", email_job())

    assert (said["status"], slow.taken) == ("retrying", [])
    assert row(stocked).handover_started_at is None


def test_a_lease_that_is_over_but_not_ended_is_still_held(stocked: Database) -> None:
    """What counts is whether somebody has ended it, not what the clock says."""
    clock = Clock()
    slow = SlowCarrier(lambda: clock.forward(LATER))

    said = answer(make_context(stocked, email=slow, clock=clock), "email.send", email_job())

    assert (said["status"], slow.taken) == ("sent", ["job-1"])


def test_an_attempt_that_ends_after_its_lease_has_no_say_any_more(stocked: Database) -> None:
    clock = Clock()

    def sleep_through_the_sweep(_: OutboundMessage) -> Receipt:
        clock.forward(LATER)
        upkeep.sweep(make_context(stocked, clock=clock))
        return NEVER

    context = make_context(stocked, email=FakeCarrier(sleep_through_the_sweep), clock=clock)

    said = answer(context, "email.send", email_job())

    assert (said["status"], said["credits"]) == ("unknown", 1)
    assert row(stocked).handover_started_at == NOON
    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


def test_a_replay_gets_the_first_answer_and_changes_nothing(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    first = answer(context, "email.send", email_job(), "task-1")

    again = answer(context, "email.send", dict(reversed(email_job().items())), "task-2")

    assert again == first
    assert len(carrier.messages) == 1
    assert balance(stocked, "john") == 9


def test_a_replay_after_the_sender_changed_owner_still_gets_the_first_answer(stocked: Database) -> None:
    context = make_context(stocked)
    first = answer(context, "email.send", email_job(sender="peter"))
    share(stocked, "peter", "mary")

    again = answer(context, "email.send", email_job(sender="peter"))

    assert again == first
    assert balance(stocked, "john") == 9


def test_the_same_id_with_other_content_is_a_conflicting_job(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    first = answer(context, "email.send", email_job())

    said = answer(context, "email.send", email_job(subject="Other"))

    assert (said["job_id"], said["status"], said["reason"]) == ("job-1", "refused", "conflicting_job")
    assert (said["credits"], said["paid_by"]) == (0, None)
    assert message(context) == first
    assert len(carrier.messages) == 1
    assert balance(stocked, "john") == 9


def test_the_same_id_for_another_kind_of_message_is_a_conflicting_job(stocked: Database) -> None:
    context = make_context(stocked)
    answer(context, "email.send", email_job())

    said = answer(context, "sms.send", sms_job())

    assert said["reason"] == "conflicting_job"
    assert balance(stocked, "john", "sms") == 10


def test_a_job_too_dear_is_refused_for_ever_under_its_id_and_costs_nothing(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    job = email_job(to=[f"user{number}@example.test" for number in range(11)])

    first = answer(context, "email.send", job)
    buy(stocked, "john", email=100)
    again = answer(context, "email.send", job)
    under_another_id = answer(context, "email.send", {**job, "job_id": "job-2"})

    assert (first["status"], first["reason"]) == ("refused", "insufficient_credits")
    assert (first["credits"], first["paid_by"], first["attempts"]) == (0, None, 0)
    assert "costs 11 email credits" in first["detail"]
    assert "john holds 10" in first["detail"]
    assert again == first
    assert under_another_id["status"] == "sent"
    assert carrier.job_ids == ["job-2"]
    assert balance(stocked, "john") == 99


def test_a_credit_user_cannot_fall_back_on_credits_of_their_own(stocked: Database) -> None:
    """Credits a user had before sharing stay theirs, untouched."""
    buy(stocked, "mary", email=5)
    share(stocked, "mary", "john")
    context = make_context(stocked)
    job = email_job(sender="mary", to=[f"user{number}@example.test" for number in range(11)])

    said = answer(context, "email.send", job)

    assert said["reason"] == "insufficient_credits"
    assert (balance(stocked, "john"), balance(stocked, "mary")) == (10, 5)


def test_an_unknown_sender_is_refused_for_ever_under_its_id(stocked: Database) -> None:
    context = make_context(stocked)

    first = answer(context, "email.send", email_job(sender="nobody"))
    again = answer(context, "email.send", email_job(sender="nobody"))

    assert (first["status"], first["reason"], first["credits"]) == ("refused", "unknown_user", 0)
    assert "nobody" in first["detail"]
    assert again == first


def test_a_job_without_an_id_goes_by_its_task_id(stocked: Database) -> None:
    context = make_context(stocked)

    first = answer(context, "email.send", email_job(job_id=None), "celery-task-1")
    again = answer(context, "email.send", email_job(job_id=None), "celery-task-1")

    assert first["job_id"] == "celery-task-1"
    assert again == first
    assert balance(stocked, "john") == 9


def test_an_invalid_job_takes_no_key_and_leaves_its_record(stocked: Database) -> None:
    context = make_context(stocked)

    refused = answer(context, "email.send", email_job(subject="Hello\r\nBcc: eve@example.test"))
    mended = answer(context, "email.send", email_job())

    assert (refused["job_id"], refused["status"], refused["reason"]) == ("job-1", "refused", "invalid_job")
    assert mended["status"] == "sent"
    with stocked.snapshot() as connection:
        [record] = connection.execute(select(refusals)).all()
    assert (record.task, record.task_id, record.key) == ("email.send", "task-1", "job-1")
    assert (record.person, record.reason) == ("john", "invalid_job")
    assert "eve" not in record.detail


@pytest.mark.parametrize("given", [None, [], "x", 7, {"\x00": "\ud800"}, {"job_id": "a b"}, {"job_id": "\x00"}])
def test_garbage_is_refused_and_recorded(stocked: Database, given: object) -> None:
    context = make_context(stocked)

    said = answer(context, "email.send", given)

    assert (said["job_id"], said["status"], said["reason"]) == ("task-1", "refused", "invalid_job")
    with stocked.snapshot() as connection:
        assert connection.execute(select(refusals.c.reason)).scalars().all() == ["invalid_job"]


@pytest.mark.parametrize(
    "task_id", ["x" * 300, "x\x00", "x\ud800", "a/0"], ids=["long", "NUL", "surrogate", "of a bulk message"]
)
def test_a_refusal_is_recorded_whatever_the_producer_named_its_task(stocked: Database, task_id: str) -> None:
    said = answer(make_context(stocked), "email.send", {"wrong": 1}, task_id)

    assert (said["status"], said["reason"]) == ("refused", "invalid_job")
    with stocked.snapshot() as connection:
        assert connection.execute(select(refusals.c.reason)).scalars().all() == ["invalid_job"]


@pytest.mark.parametrize(
    "receipt",
    [
        Receipt(Outcome.ACCEPTED, reference="r" * 400),
        Receipt(Outcome.ACCEPTED, reference="r\x00"),
        Receipt(Outcome.ACCEPTED, reference="r\udcff"),
        Receipt(Outcome.ACCEPTED, refused={THREE[0]: "550 \x00\udcff"}),
        Receipt(Outcome.NEVER, "550 \x00"),
        Receipt(Outcome.NEVER, "550 \udcff"),
    ],
    ids=["long reference", "NUL", "surrogate", "refused with NUL", "detail with NUL", "detail with surrogate"],
)
def test_a_settlement_is_written_whatever_words_the_carrier_uses(stocked: Database, receipt: Receipt) -> None:
    """An outcome that cannot be stored would leave a delivered message unknown."""
    context = make_context(stocked, email=FakeCarrier(receipt))

    said = answer(context, "email.send", email_job(to=THREE[:2]))

    assert said["status"] == ("failed" if receipt.outcome is Outcome.NEVER else "sent")


def test_the_content_is_kept_only_while_the_job_is_not_final(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(NOT_NOW, ACCEPTED, NEVER))
    answer(context, "email.send", email_job())
    while_waiting = row(stocked).content
    later(context)
    answer(context, "email.send", email_job("job-2"))
    answer(context, "email.send", email_job("job-3", sender="nobody"))

    assert while_waiting["subject"] == "Hello"
    assert [row(stocked, job_id).content for job_id in ("job-1", "job-2", "job-3")] == [None, None, None]


def test_a_batch_comes_back_in_order_with_each_id_sent_once(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    answer(context, "email.send", email_job("old"))
    jobs = [email_job("b"), email_job("a"), email_job("b"), email_job("old"), email_job("z", sender="nobody")]

    settled = send(context, "email.send", [SendEmail.model_validate(job) for job in jobs])

    assert [charge.job_id for charge in settled] == ["b", "a", "b", "old", "z"]
    assert [str(charge.state) for charge in settled] == ["sent", "sent", "sent", "sent", "refused"]
    assert carrier.job_ids == ["old", "b", "a"]
    assert balance(stocked, "john") == 7


def test_an_empty_batch_does_nothing(stocked: Database) -> None:
    assert send(make_context(stocked), "email.send", []) == []


def test_what_the_lease_gives_no_time_for_is_handed_back_and_the_attempt_does_not_count(stocked: Database) -> None:
    clock = Clock()
    waiting = FakeCarrier(NOT_NOW, NOT_NOW)
    context = make_context(stocked, sms=waiting, clock=clock)
    for job_id in ("a", "b"):
        answer(context, "sms.send", sms_job(job_id))
    clock.forward(LATER)
    upkeep.sweep(context)

    def take_long(_: OutboundMessage) -> Receipt:
        clock.forward(context.retry_policy.lease / 2 + timedelta(seconds=1))
        return ACCEPTED

    waiting.script = [take_long]
    run_enqueued(context)

    assert (row(stocked, "a").state, row(stocked, "a").attempts) == ("sent", 2)
    assert (row(stocked, "b").state, row(stocked, "b").attempts) == ("waiting", 1)

    later(context)

    assert (row(stocked, "b").state, row(stocked, "b").attempts) == ("sent", 2)


def test_a_job_that_is_resumed_twice_is_sent_once(stocked: Database) -> None:
    carrier, clock = FakeCarrier(NOT_NOW), Clock()
    context = make_context(stocked, sms=carrier, clock=clock)
    answer(context, "sms.send", sms_job())
    clock.forward(LATER)
    upkeep.sweep(context)
    broker: Any = context.enqueue
    [enqueued] = broker.take()

    first, second = (answer(context, *enqueued) for _ in range(2))

    assert first == {"status": "done", "sent": 1}
    assert second == {"status": "done"}
    assert len(carrier.messages) == 2


def test_a_due_job_is_enqueued_again_only_when_nobody_took_it_up_for_a_while(stocked: Database) -> None:
    clock = Clock()
    context = make_context(stocked, sms=FakeCarrier(NOT_NOW), clock=clock)
    answer(context, "sms.send", sms_job())
    broker: Any = context.enqueue

    clock.forward(LATER)
    rounds = []
    for _ in range(3):
        upkeep.sweep(context)
        rounds.append(broker.take())
        clock.forward(timedelta(seconds=31))

    assert [[task for task, _ in enqueued] for enqueued in rounds] == [["sms.resume"], [], ["sms.resume"]]


def test_a_job_enqueued_twice_while_the_queue_was_long_is_tried_once_when_its_turn_comes(stocked: Database) -> None:
    """Else a backlog would use up the attempts of a job in a moment, with no wait between them."""
    clock = Clock()
    carrier = FakeCarrier(*[NOT_NOW] * 9)
    context = make_context(stocked, sms=carrier, clock=clock)
    answer(context, "sms.send", sms_job())
    for _ in range(5):
        clock.forward(timedelta(seconds=61))
        upkeep.sweep(context)

    run_enqueued(context)

    assert len(carrier.messages) == 2


@pytest.mark.parametrize(
    ("bug", "ends"), [(DEAD, ("sent", 2, 1)), (dead_after_handing_over, ("unknown", 1, 1))], ids=["before", "after"]
)
def test_a_bug_with_one_message_does_not_strand_those_behind_it(
    stocked: Database, bug: Any, ends: tuple[str, int, int]
) -> None:
    """They certainly did not reach the carrier, and nobody died over them."""
    context = make_context(stocked, email=FakeCarrier(bug))
    answer(context, "email.send_many", bulk())
    with pytest.raises(ZeroDivisionError):
        run_enqueued(context)

    for _ in range(3):
        later(context)

    rows = [row(stocked, f"bulk-1/{number}") for number in range(3)]
    assert [(one.state, one.attempts, one.crashes) for one in rows] == [ends, ("sent", 1, 0), ("sent", 1, 0)]


def bulk(job_id: str = "bulk-1", count: int = 3, **fields: Any) -> Json:
    recipients = [{"to": f"user{number}@example.test", "values": {"name": f"N{number}"}} for number in range(count)]
    job = {"sender": "peter", "subject": "Hello {{name}}", "text": "Dear {{ name }}", "recipients": recipients}
    return {"job_id": job_id, **job, **fields}


def test_a_bulk_job_is_charged_at_once_and_its_messages_are_sent_by_resume(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)

    first = answer(context, "email.send_many", bulk())

    assert (first["job_id"], first["status"], first["paid_by"], first["credits"]) == ("bulk-1", "sending", "john", 3)
    assert balance(stocked, "john") == 7
    assert carrier.messages == []

    run_enqueued(context)

    assert carrier.job_ids == ["bulk-1/0", "bulk-1/1", "bulk-1/2"]
    texts = [(message.subject, message.text) for message in carrier.messages if isinstance(message, Email)]
    assert texts == [("Hello N0", "Dear N0"), ("Hello N1", "Dear N1"), ("Hello N2", "Dear N2")]
    final = message(context, "bulk-1")
    assert (final["status"], final["messages"], final["credits"]) == ("sent", {"sent": 3}, 3)
    assert message(context, "bulk-1/1", viewer="peter")["status"] == "sent"
    assert balance(stocked, "john") == 7
    assert findings(stocked) == []


def test_a_bulk_job_is_charged_as_a_whole_or_not_at_all_and_says_how_many_would_fit(stocked: Database) -> None:
    context = make_context(stocked)

    first = answer(context, "email.send_many", bulk(count=12))
    again = answer(context, "email.send_many", bulk(count=12))

    assert (first["status"], first["reason"], first["credits"]) == ("refused", "insufficient_credits", 0)
    assert first["paid_by"] is None
    assert "10 of its 12 messages would fit" in first["detail"]
    assert again == first
    assert balance(stocked, "john") == 10
    assert run_enqueued(context) == []
    with stocked.snapshot() as connection:
        assert connection.execute(select(charges.c.job_id)).scalars().all() == ["bulk-1"]
        assert len(connection.execute(select(entries)).all()) == 2
    assert findings(stocked) == []


def test_how_many_would_fit_counts_what_each_message_costs(stocked: Database) -> None:
    context = make_context(stocked)
    recipients = [{"to": "+31612345678", "values": {"x": "y" * (161 if number < 4 else 1)}} for number in range(12)]

    said = answer(context, "sms.send_many", {"sender": "john", "text": "{{x}}", "recipients": recipients})

    assert "costs 16 sms credits" in said["detail"]
    assert "6 of its 12 messages would fit" in said["detail"]


def test_a_bulk_job_of_an_unknown_sender_is_refused(stocked: Database) -> None:
    said = answer(make_context(stocked), "email.send_many", bulk(sender="nobody"))

    assert (said["status"], said["reason"], said["credits"]) == ("refused", "unknown_user", 0)


def test_a_bulk_job_with_an_open_placeholder_names_the_recipient_and_takes_no_key(stocked: Database) -> None:
    context = make_context(stocked)
    job = bulk()
    job["recipients"][1]["values"] = {}

    refused = answer(context, "email.send_many", job)
    mended = answer(context, "email.send_many", bulk())

    assert (refused["reason"], mended["status"]) == ("invalid_job", "sending")
    assert "recipients.1" in refused["detail"]


def test_a_bulk_job_that_is_replayed_gets_its_answer_and_enqueues_nothing(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    first = answer(context, "email.send_many", bulk())
    run_enqueued(context)

    again = answer(context, "email.send_many", bulk())

    assert (first["job_id"], first["cost"]) == (again["job_id"], again["cost"])
    assert (again["status"], again["paid_by"], again["credits"]) == ("sent", "john", 3)
    assert run_enqueued(context) == []
    assert balance(stocked, "john") == 7


def test_a_bulk_job_with_other_content_under_a_known_id_is_conflicting(stocked: Database) -> None:
    context = make_context(stocked)
    answer(context, "email.send_many", bulk())

    said = answer(context, "email.send_many", bulk(count=2))

    assert said["reason"] == "conflicting_job"
    assert balance(stocked, "john") == 7


def test_bulk_messages_that_nobody_took_up_are_enqueued_by_the_sweeper(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    broker: Any = context.enqueue
    answer(context, "email.send_many", bulk())
    broker.take()

    later(context)

    assert len(carrier.messages) == 3
    assert message(context, "bulk-1")["status"] == "sent"


def test_a_bulk_job_gives_back_what_its_failed_messages_cost(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(ACCEPTED, NEVER, NOBODY))
    answer(context, "email.send_many", bulk())

    run_enqueued(context)

    final = message(context, "bulk-1")
    assert (final["status"], final["messages"], final["credits"]) == ("sent", {"failed": 2, "sent": 1}, 1)
    assert balance(stocked, "john") == 9
    assert findings(stocked) == []


def test_every_copy_of_a_bulk_email_is_paid_for(stocked: Database) -> None:
    """Each message of a bulk job goes to its recipient and to everybody in cc."""
    context = make_context(stocked)

    said = answer(context, "email.send_many", bulk(cc="copy@example.test"))

    assert said["cost"] == 6
    assert balance(stocked, "john") == 4


def test_a_large_bulk_job_is_enqueued_in_parts(stocked: Database) -> None:
    buy(stocked, "john", email=240)
    context = make_context(stocked)
    answer(context, "email.send_many", bulk(count=250))
    broker: Any = context.enqueue
    enqueued = broker.take()

    done = [answer(context, task, given) for task, given in enqueued]

    assert [task for task, _ in enqueued] == ["email.resume"] * len(enqueued)
    assert len(enqueued) > 1
    assert sum(said["sent"] for said in done) == 250
    assert message(context, "bulk-1")["messages"] == {"sent": 250}


def test_the_largest_bulk_job_is_charged_at_once(stocked: Database) -> None:
    buy(stocked, "john", email=500)

    said = answer(make_context(stocked), "email.send_many", bulk(count=500))

    assert (said["status"], said["credits"], said["messages"]) == ("sending", 500, {"waiting": 500})
    assert balance(stocked, "john") == 10
    assert findings(stocked) == []
