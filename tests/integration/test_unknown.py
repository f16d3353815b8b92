"""What is unknown is settled by a person: once, whoever else decides at the same time, and with a record of it."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete, select, update
from sqlalchemy.exc import DatabaseError

from models.database.engine import Database
from models.database.schema import charges, dead_letters, decisions, entries
from models.sends.carrier import Email, OutboundMessage, Outcome, Receipt, Sms
from models.sends.charges import Charge, State, find_charges
from models.sends.leases import claim_jobs
from models.sends.retry_policy import RetryPolicy
from models.sends.unknown import refund_unknown, resend_unknown
from tasks import upkeep
from tasks.context import Context, Json
from tests.audits import audit_everything
from tests.factories import balance, buy, email_job, share, sms_job, stock
from tests.fakes import NOON, NOT_NOW, UNSURE, Clock, FakeCarrier, OpenSession, answer, make_context, run_enqueued
from worker.app import create_app
from worker.cli.unknown import unknown as command
from worker.settings import Settings

THREE = ["ada@example.test", "bob@example.test", "eve@example.test"]
LATER = timedelta(hours=1)
ME: dict[str, Any] = {"operator": "ops", "now": NOON + LATER}


@pytest.fixture
def stocked(database: Database) -> Database:
    """Give a database in which john owns 20 email and 20 SMS credits, and peter uses them."""
    return stock(database, email=20, sms=20)


def context_of(database: Database, *script: Any, **options: Any) -> Context:
    return make_context(database, email=FakeCarrier(*script), sms=FakeCarrier(), **options)


def sent_into_the_dark(database: Database, *job_ids: str, **fields: Any) -> Context:
    """Send emails whose outcome stays unknown."""
    context = context_of(database, *[UNSURE for _ in job_ids])
    for job_id in job_ids:
        answer(context, "email.send", email_job(job_id, **fields), f"task-{job_id}")
    return context


def messages(context: Context) -> list[Any]:
    carrier: Any = context.carriers["email"]
    return list(carrier.messages)


def charge_of(database: Database, job_id: str = "job-1") -> Charge:
    with database.snapshot() as connection:
        return find_charges(connection, [job_id])[job_id]


def moves(database: Database, *causes: str) -> list[tuple[str, int]]:
    with database.snapshot() as connection:
        query = select(entries.c.cause, entries.c.amount).where(entries.c.cause.in_(causes)).order_by(entries.c.cause)
        return [(row.cause, row.amount) for row in connection.execute(query)]


def made_decisions(database: Database) -> list[tuple[str, str, str, str | None]]:
    with database.snapshot() as connection:
        rows = connection.execute(select(decisions).order_by(decisions.c.id))
        return [(row.job_id, row.decision, row.operator, row.note) for row in rows]


def is_in_order(database: Database) -> bool:
    with database.snapshot() as connection:
        return audit_everything(connection, NOON) == []


def refund(database: Database, *job_ids: str, **options: Any) -> list[Charge]:
    return database.write(lambda connection: refund_unknown(connection, job_ids, **{**ME, **options}))


def resend(database: Database, *job_ids: str) -> list[Charge]:
    return database.write(lambda connection: resend_unknown(connection, job_ids, **ME))


# -- refund -----------------------------------------------------------------------------------------------------------


def test_a_refund_ends_the_job_as_failed_and_gives_its_credits_back(stocked: Database) -> None:
    context = sent_into_the_dark(stocked, "job-1", to=THREE)

    [ended] = refund(stocked, "job-1", note="not in the carrier's log")

    assert (ended.state, ended.reason, ended.refunded) == (State.FAILED, "carrier_unavailable", 3)
    assert "A person decided" in (ended.detail or "")
    assert balance(stocked, "john") == 20
    assert moves(stocked, "refund:job-1") == [("refund:job-1", 3)]
    assert made_decisions(stocked) == [("job-1", "refund", "ops", "not in the carrier's log")]
    assert answer(context, "views.message", {"viewer": "john", "job_id": "job-1"})["status"] == "failed"
    assert is_in_order(stocked)


def test_a_text_message_is_refunded_as_a_whole(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(), sms=FakeCarrier(UNSURE), policy=RetryPolicy(attempts_max=1))
    answer(context, "sms.send", sms_job(text="x" * 200))

    [ended] = refund(stocked, "job-1")

    assert (ended.state, ended.refunded) == (State.FAILED, 2)
    assert balance(stocked, "john", "sms") == 20
    assert is_in_order(stocked)


def test_a_refund_goes_to_who_paid_whoever_is_the_owner_by_now(stocked: Database) -> None:
    sent_into_the_dark(stocked, "job-1", sender="peter")
    share(stocked, "peter", "peter")

    refund(stocked, "job-1")

    assert (balance(stocked, "john"), balance(stocked, "peter")) == (20, 0)
    assert is_in_order(stocked)


def test_a_second_refund_changes_nothing(stocked: Database) -> None:
    sent_into_the_dark(stocked, "job-1")
    refund(stocked, "job-1")

    assert refund(stocked, "job-1") == []
    assert resend(stocked, "job-1") == []
    assert balance(stocked, "john") == 20
    assert len(made_decisions(stocked)) == 1
    assert is_in_order(stocked)


def test_recipients_whom_an_earlier_attempt_reached_stay_charged(stocked: Database) -> None:
    """Ada was reached, bob was put off and then is in doubt, eve was refused for good."""
    first = Receipt(Outcome.ACCEPTED, deferred={"bob@example.test": "451"}, refused={"eve@example.test": "550"})
    context = context_of(stocked, first, UNSURE)
    answer(context, "email.send", email_job(to=THREE))
    clock: Any = context.now
    clock.forward(LATER)
    upkeep.sweep(context)
    run_enqueued(context)
    assert charge_of(stocked).state is State.UNKNOWN

    [ended] = refund(stocked, "job-1")

    assert (ended.state, ended.refunded, ended.reason) == (State.SENT, 2, "carrier_unavailable")
    assert set(ended.recipients_refused or {}) == {"bob@example.test", "eve@example.test"}
    assert balance(stocked, "john") == 19
    assert is_in_order(stocked)


def test_recipients_refused_in_the_unsure_attempt_itself_are_counted_once(stocked: Database) -> None:
    unsure = Receipt(Outcome.UNSURE, "The line went dead.", refused={"eve@example.test": "550"})
    answer(context_of(stocked, unsure), "email.send", email_job(to=THREE))

    [ended] = refund(stocked, "job-1")

    assert (ended.state, ended.refunded) == (State.FAILED, 3)
    assert is_in_order(stocked)


def test_what_is_not_unknown_is_left_alone(stocked: Database) -> None:
    context = context_of(stocked, NOT_NOW)
    answer(context, "email.send", email_job("waits"))
    answer(context, "email.send", email_job("sent"))

    assert refund(stocked, "waits", "sent", "nobody") == []
    assert resend(stocked, "waits", "sent", "nobody") == []
    assert [charge_of(stocked, job_id).state for job_id in ("waits", "sent")] == [State.WAITING, State.SENT]
    assert made_decisions(stocked) == []


def test_a_refunded_job_is_kept_for_a_replay_unless_nothing_is_kept(stocked: Database) -> None:
    sent_into_the_dark(stocked, "job-1", "job-2")

    refund(stocked, "job-1")
    refund(stocked, "job-2", keep_dead=False)

    with stocked.snapshot() as connection:
        assert connection.execute(select(dead_letters.c.key, dead_letters.c.status)).all() == [("job-1", "failed")]


# -- resend -----------------------------------------------------------------------------------------------------------


def test_a_resent_job_is_sent_by_the_sweeper_under_the_same_id_for_the_same_credits(stocked: Database) -> None:
    context = sent_into_the_dark(stocked, "job-1")

    [waiting] = resend(stocked, "job-1")
    clock: Any = context.now
    clock.forward(LATER)
    upkeep.sweep(context)
    run_enqueued(context)

    assert (waiting.state, waiting.attempts, waiting.crashes, waiting.handover_started_at) == (
        State.WAITING,
        0,
        0,
        None,
    )
    assert (waiting.due_at, waiting.detail) == (NOON + LATER, None)
    assert [message.job_id for message in messages(context)] == ["job-1", "job-1"]
    final = charge_of(stocked)
    assert (final.state, final.attempts, final.content) == (State.SENT, 1, None)
    assert balance(stocked, "john") == 19
    assert made_decisions(stocked) == [("job-1", "resend", "ops", None)]
    assert is_in_order(stocked)


def test_a_resent_job_does_not_go_to_who_has_refused_it(stocked: Database) -> None:
    unsure = Receipt(Outcome.UNSURE, "The line went dead.", refused={"eve@example.test": "550"})
    context = context_of(stocked, unsure)
    answer(context, "email.send", email_job(to=THREE))

    resend(stocked, "job-1")
    clock: Any = context.now
    clock.forward(LATER)
    upkeep.sweep(context)
    run_enqueued(context)

    assert messages(context)[-1].recipients == ("ada@example.test", "bob@example.test")
    final = charge_of(stocked)
    assert (final.state, final.refunded) == (State.SENT, 1)
    assert is_in_order(stocked)


def test_a_resent_job_may_become_unknown_and_be_decided_again(stocked: Database) -> None:
    context = context_of(stocked, UNSURE, UNSURE)
    answer(context, "email.send", email_job())
    resend(stocked, "job-1")
    clock: Any = context.now
    clock.forward(LATER)
    upkeep.sweep(context)
    run_enqueued(context)

    [ended] = refund(stocked, "job-1")

    assert ended.state is State.FAILED
    assert [decision for _, decision, _, _ in made_decisions(stocked)] == ["resend", "refund"]
    assert balance(stocked, "john") == 20


def test_an_attempt_from_before_the_decision_has_no_say_after_it(stocked: Database) -> None:
    """It bears the same number as the first attempt after the decision, but not its name."""
    clock = Clock()

    def sleep_through_the_decision(_: OutboundMessage) -> Receipt:
        clock.forward(LATER)
        upkeep.sweep(make_context(stocked, clock=clock))
        resend(stocked, "job-1")
        until = clock.now + LATER
        stocked.write(lambda c: claim_jobs(c, {"job-1": 0}, lease_id="another", lease_until=until))
        return Receipt(Outcome.NEVER, "Never.")

    context = make_context(stocked, email=FakeCarrier(sleep_through_the_decision), clock=clock)

    answer(context, "email.send", email_job())

    stands = charge_of(stocked)
    assert (stands.state, stands.attempts, stands.lease_id, stands.refunded) == (State.SENDING, 1, "another", 0)
    assert balance(stocked, "john") == 19


# -- several at once --------------------------------------------------------------------------------------------------


def test_of_several_who_decide_at_once_one_decides_each_job(stocked: Database) -> None:
    job_ids = [f"job-{number}" for number in range(8)]
    sent_into_the_dark(stocked, *job_ids)
    together = threading.Barrier(4)
    counted: list[tuple[str, str]] = []

    def decide(decision: Callable[..., list[Charge]]) -> None:
        together.wait()
        for job_id in job_ids:
            counted.extend((one.job_id, decision.__name__) for one in decision(stocked, job_id))

    threads = [threading.Thread(target=decide, args=(one,)) for one in (refund, resend, refund, resend)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(job_id for job_id, _ in counted) == job_ids
    given_back = [job_id for job_id, decision in counted if decision == "refund"]
    assert balance(stocked, "john") == 20 - 8 + len(given_back)
    assert sorted((job_id, decision) for job_id, decision, _, _ in made_decisions(stocked)) == sorted(counted)
    assert is_in_order(stocked)


@pytest.mark.parametrize("statement", [update(decisions).values(operator="nobody"), delete(decisions)])
def test_decisions_cannot_be_rewritten_or_removed(stocked: Database, statement: Any) -> None:
    sent_into_the_dark(stocked, "job-1")
    refund(stocked, "job-1")

    with pytest.raises(DatabaseError, match="append-only"), stocked.engine.begin() as connection:
        connection.execute(statement)


# -- the command ------------------------------------------------------------------------------------------------------

Run = Callable[..., Result]


@pytest.fixture
def run(stocked: Database, database_url: str) -> Iterator[Run]:
    """Give `postage unknown`, run in this process."""
    app = create_app(Settings(database_url=database_url, broker_url="redis://127.0.0.1:1/0"))
    obj = OpenSession(app)

    def run(*arguments: str, **variables: str) -> Result:
        return CliRunner(env={"USER": "someone", "COLUMNS": "200", **variables}).invoke(command, arguments, obj=obj)

    yield run
    app.close_context()
    app.close()


def said(result: Result) -> Json:
    answer: Json = json.loads(result.stdout)
    return answer


def test_unknown_messages_are_listed(run: Run, stocked: Database) -> None:
    sent_into_the_dark(stocked, "job-1", "job-2", to=THREE)

    listed = run("list", "--json")
    shown = run("list")

    assert [row["job_id"] for row in said(listed)["rows"]] == ["job-1", "job-2"]
    row = said(listed)["rows"][0]
    assert (row["paid_by"], row["credits"], row["attempts"]) == ("john", 3, 1)
    assert (listed.exit_code, shown.exit_code) == (0, 0)
    assert "job-2" in shown.stdout
    assert "ada@" not in listed.stdout + shown.stdout


def test_a_page_has_a_hundred_rows_and_says_that_there_is_another(run: Run, stocked: Database) -> None:
    buy(stocked, "john", email=100)
    sent_into_the_dark(stocked, *(f"job-{number:03}" for number in range(101)))

    first, second = said(run("list", "--json")), said(run("list", "--page", "2", "--json"))

    assert (len(first["rows"]), first["more"]) == (100, True)
    assert ([row["job_id"] for row in second["rows"]], second["more"]) == (["job-100"], False)


def test_a_refund_by_command_is_recorded_with_who_decided(run: Run, stocked: Database) -> None:
    sent_into_the_dark(stocked, "job-1", "job-2")

    mine = run("refund", "job-1")
    named = run("refund", "job-2", "--as", "ops:anna", "--note", "asked the carrier")

    assert (mine.exit_code, named.exit_code) == (0, 0)
    assert "job-1: 1 of 1 credits went back to john." in mine.stdout
    assert made_decisions(stocked) == [
        ("job-1", "refund", "someone", None),
        ("job-2", "refund", "ops:anna", "asked the carrier"),
    ]


def test_an_id_that_is_not_unknown_makes_the_exit_code_1_and_the_others_are_settled(
    run: Run, stocked: Database
) -> None:
    sent_into_the_dark(stocked, "job-1")

    ended = run("resend", "job-1", "nobody", "--json")
    again = run("resend", "job-1")

    assert ended.exit_code == 1
    assert [one["job_id"] for one in said(ended)["settled"]] == ["job-1"]
    assert [(one["job_id"], one["status"]) for one in said(ended)["not_unknown"]] == [("nobody", "not_found")]
    assert again.exit_code == 1
    assert "job-1: It is not unknown" in again.stdout


def test_all_settles_everything_that_is_unknown(run: Run, stocked: Database) -> None:
    buy(stocked, "john", email=100)
    sent_into_the_dark(stocked, *(f"job-{number}" for number in range(103)))

    ended = run("refund", "--all", "--json")
    again = run("refund", "--all")

    assert (ended.exit_code, again.exit_code) == (0, 0)
    assert len(said(ended)["settled"]) == 103
    assert "Nothing is unknown." in again.stdout
    assert balance(stocked, "john") == 120
    assert is_in_order(stocked)


@pytest.mark.parametrize("arguments", [(), ("job-1", "--all")])
def test_jobs_are_named_or_all_are_meant(run: Run, stocked: Database, arguments: tuple[str, ...]) -> None:
    sent_into_the_dark(stocked, "job-1")

    ended = run("refund", *arguments)

    assert ended.exit_code == 2
    assert "say --all" in ended.stderr
    assert charge_of(stocked).state is State.UNKNOWN


def test_nobody_decides_without_a_name(run: Run, stocked: Database) -> None:
    sent_into_the_dark(stocked, "job-1")

    ended = run("refund", "job-1", USER="")

    assert ended.exit_code == 2
    assert "--as" in ended.stderr
    assert charge_of(stocked).state is State.UNKNOWN


def test_the_content_of_an_unknown_message_holds_all_that_was_asked_for(stocked: Database) -> None:
    sent_into_the_dark(stocked, "job-1", bcc="eve@example.test")

    with stocked.snapshot() as connection:
        content = connection.execute(select(charges.c.content)).scalar_one()

    assert content["bcc"] == ["eve@example.test"]


def test_a_carrier_is_given_copies_that_others_do_not_see_as_recipients_only(stocked: Database) -> None:
    context = context_of(stocked)
    answer(context, "email.send", email_job(bcc="eve@example.test"))

    [message] = messages(context)

    assert isinstance(message, Email)
    assert not isinstance(message, Sms)
    assert message.recipients == ("ada@example.test", "eve@example.test")
    assert "eve@example.test" not in (*message.to, *message.cc)
