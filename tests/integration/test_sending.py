"""Sending: what one attempt costs, how it ends, and what is given back."""

from typing import Any

import pytest

from models.database.engine import Database
from models.messages.sends import SendEmail
from models.sends.carrier import Email, OutboundMessage, Outcome, Receipt, Sms
from models.sends.charges import State
from tests.factories import ACME, balance, email_job, share, sms_job
from tests.fakes import ACCEPTED, NEVER, NOBODY, NOT_NOW, UNSURE, FakeCarrier, answer, later, make_context, send
from tests.integration.sending import THREE
from tests.integration.stored import charge_of, findings, handovers_of


def test_an_email_costs_its_owner_one_credit_a_recipient(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)

    answered = answer(context, "email.send", email_job(sender="peter", to=THREE[:1], cc=THREE[1:2], bcc=THREE[2:]))

    assert answered["status"] == "sent"
    assert (answered["paid_by"], answered["credits"], answered["attempts"]) == ("john", 3, 1)
    assert (answered["reason"], answered["detail"]) == (None, None)
    assert answered["carrier_reference"] == "ref-1"
    assert balance(stocked, "john") == 7
    assert findings(stocked) == []


def test_the_carrier_gets_the_whole_email_and_its_sender(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    job = email_job(
        sender="peter",
        to=THREE[:1],
        cc=THREE[1:2],
        bcc=THREE[2:],
        html="<p>Hello</p>",
        reply_to="desk@example.test",
        headers={"List-Id": "spring"},
    )

    answer(context, "email.send", job)

    expected = Email(
        job_id="job-1",
        org_id=ACME,
        from_name="Peter",
        from_address="peter@acme.test",
        to=("ada@example.test",),
        cc=("bob@example.test",),
        recipients=tuple(THREE),
        subject="Hello",
        text="Hello Ada",
        html="<p>Hello</p>",
        reply_to=("desk@example.test",),
        headers={"List-Id": "spring"},
    )
    assert carrier.messages == [expected]


def test_the_carrier_gets_bcc_addresses_as_recipients_only(stocked: Database) -> None:
    carrier = FakeCarrier()
    answer(make_context(stocked, email=carrier), "email.send", email_job(bcc="eve@example.test"))

    [message] = carrier.messages

    assert isinstance(message, Email)
    assert not isinstance(message, Sms)
    assert message.recipients == ("ada@example.test", "eve@example.test")
    assert "eve@example.test" not in (*message.to, *message.cc)


def test_a_text_message_costs_one_credit_a_segment(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, sms=carrier)

    answered = answer(context, "sms.send", sms_job(text="x" * 161, **{"from": "Acme"}))

    assert carrier.messages == [Sms("job-1", ACME, "+31612345678", "Acme", "x" * 161, 2)]
    assert (answered["status"], answered["credits"], answered["kind"]) == ("sent", 2, "sms")
    assert (balance(stocked, "john", "sms"), balance(stocked, "john", "email")) == (8, 10)


@pytest.mark.parametrize("is_idempotent", [False, True])
def test_no_transaction_is_open_while_the_carrier_is_called(stocked: Database, *, is_idempotent: bool) -> None:
    """And that it may have the message is committed before."""
    seen: list[tuple[int, str, list[str]]] = []

    def look(_: OutboundMessage) -> Receipt:
        pool: Any = stocked.engine.pool
        seen.append((pool.checkedout(), charge_of(stocked).state, handovers_of(stocked)))
        return ACCEPTED

    answer(make_context(stocked, email=FakeCarrier(look, is_idempotent=is_idempotent)), "email.send", email_job())

    assert seen == [(0, "sending", ["job-1"])]
    assert handovers_of(stocked) == []
    assert charge_of(stocked).handover_started_at is None


def test_a_message_that_the_carrier_refuses_fails_and_is_refunded(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(NEVER))

    answered = answer(context, "email.send", email_job(to=THREE))

    assert (answered["status"], answered["reason"]) == ("failed", "carrier_refused")
    assert answered["detail"] == "The carrier will not take it."
    assert (answered["credits"], answered["cost"], answered["paid_by"]) == (0, 3, "john")
    assert balance(stocked, "john") == 10
    assert findings(stocked) == []


def test_an_email_fails_if_all_recipients_are_refused(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(NOBODY))

    answered = answer(context, "email.send", email_job(to=THREE))

    assert (answered["status"], answered["reason"], answered["credits"]) == ("failed", "recipient_refused", 0)
    assert balance(stocked, "john") == 10


def test_a_refund_goes_to_the_payer_even_if_the_owner_changed_meanwhile(stocked: Database) -> None:
    def change_owner(_: OutboundMessage) -> Receipt:
        share(stocked, "peter", "mary")
        return NEVER

    context = make_context(stocked, email=FakeCarrier(change_owner))

    answered = answer(context, "email.send", email_job(sender="peter"))

    assert (answered["status"], answered["paid_by"]) == ("failed", "john")
    assert (balance(stocked, "john"), balance(stocked, "mary")) == (10, 0)


def test_refused_recipients_are_named_and_refunded(stocked: Database) -> None:
    partial = Receipt(Outcome.ACCEPTED, reference="ref-2", refused={THREE[1]: "550 no such user"})
    context = make_context(stocked, email=FakeCarrier(partial))

    answered = answer(context, "email.send", email_job(to=THREE))

    assert (answered["status"], answered["reason"], answered["credits"]) == ("sent", "recipient_refused", 2)
    assert answered["recipients_refused"] == {THREE[1]: "550 no such user"}
    assert balance(stocked, "john") == 8
    assert findings(stocked) == []


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
def test_a_settlement_is_stored_whatever_the_carrier_says(stocked: Database, receipt: Receipt) -> None:
    """An outcome that cannot be stored would leave a delivered message unknown."""
    context = make_context(stocked, email=FakeCarrier(receipt))

    answered = answer(context, "email.send", email_job(to=THREE[:2]))

    assert answered["status"] == ("failed" if receipt.outcome is Outcome.NEVER else "sent")


def test_the_content_is_stored_only_until_the_job_is_final(stocked: Database) -> None:
    context = make_context(stocked, email=FakeCarrier(NOT_NOW, ACCEPTED, NEVER))
    answer(context, "email.send", email_job())
    while_waiting = charge_of(stocked).content
    later(context)
    answer(context, "email.send", email_job("job-2"))
    answer(context, "email.send", email_job("job-3", to=[f"u{number}@x.test" for number in range(11)]))

    assert while_waiting is not None
    assert while_waiting["subject"] == "Hello"
    ended = [charge_of(stocked, job_id) for job_id in ("job-1", "job-2", "job-3")]
    assert [charge.state for charge in ended] == [State.SENT, State.FAILED, State.REFUSED]
    assert [charge.content for charge in ended] == [None, None, None]


def test_the_content_of_an_unknown_message_is_stored_whole(stocked: Database) -> None:
    answer(make_context(stocked, email=FakeCarrier(UNSURE)), "email.send", email_job(bcc="eve@example.test"))

    content = charge_of(stocked).content

    assert content is not None
    assert content["bcc"] == ["eve@example.test"]


def test_a_batch_is_answered_in_order_and_each_id_is_sent_once(stocked: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(stocked, email=carrier)
    answer(context, "email.send", email_job("old"))
    jobs = [email_job("b"), email_job("a"), email_job("b"), email_job("old"), email_job("z", sender="nobody")]

    settled = send(context, [SendEmail.model_validate(job) for job in jobs])

    assert [charge.job_id for charge in settled] == ["b", "a", "b", "old", "z"]
    assert [str(charge.state) for charge in settled] == ["sent", "sent", "sent", "sent", "refused"]
    assert carrier.job_ids == ["old", "b", "a"]
    assert balance(stocked, "john") == 7


def test_an_empty_batch_does_nothing(stocked: Database) -> None:
    assert send(make_context(stocked), []) == []
