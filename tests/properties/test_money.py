"""Whatever happens in whatever order, every credit is where the model says.

The rules do things to a real database through the use cases that the tasks run, and to the model. After each step the
machine compares the two.
"""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, multiple, precondition, rule

from models.errors import Refused
from models.messages.billing import CancelMessages, Credits, Purchase, SavePlan, SaveRole, SaveUser, SetOwner
from models.messages.bulk import EmailRecipient, SendMany, SendManyEmails, SendManySms, SmsRecipient
from models.messages.fields import KINDS, Kind
from models.messages.sends import SendEmail, SendOne, SendSms
from models.sends.carrier import OutboundMessage, Receipt
from models.sends.charging import charge_jobs
from tasks import batch, billing, bulk, cancelling, delivery, sending, upkeep
from tasks.outbound import outbound_message
from tests.fakes import send
from tests.properties.inputs import (
    PEOPLE,
    CarrierAnswer,
    carrier_answers,
    drafts,
    in_model,
    kinds,
    people,
    recipients_of,
    sizes,
    text_of,
)
from tests.properties.machines import fresh_postgres, fresh_sqlite, run
from tests.properties.model import PLAN, POLICY, Message
from tests.properties.money_machine import MoneyMachine, answer_of, assert_same_answer
from tests.servers import PostgresServer

RIGHTS: dict[str, list[Any]] = {"admin": ["view_user_list", "edit_user"], "clerk": ["view_user_list"], "member": []}
BILLING = {"name": "Acme Ltd"}
EnqueuedBefore = SendOne | SendMany | Purchase | SetOwner


class CrashError(Exception):
    """The worker crashes here."""


def _fail_on_handover(message: OutboundMessage) -> Receipt:
    raise AssertionError(f"{message.job_id} was handed over by a worker that had lost its lease")


class Money(MoneyMachine):
    """Everything that can happen to credits."""

    known = Bundle("known")
    """Every job that was enqueued under an id."""

    @initialize(
        is_idempotent=st.fixed_dictionaries(dict.fromkeys(KINDS, st.booleans())), attempts_max=st.sampled_from([2, 5])
    )
    def set_up(self, is_idempotent: dict[Kind, bool], attempts_max: int) -> None:
        """Make two organizations, a plan, four people of whom one spends another's credits, and any carriers."""
        self.model.is_idempotent = is_idempotent
        self.model.policy = replace(POLICY, attempts_max=attempts_max)
        self.context = replace(self.context, retry_policy=self.model.policy)
        for kind in KINDS:
            self.carriers[kind].key_window = timedelta(days=1000) if is_idempotent[kind] else timedelta()
        for organization, (role, rights) in itertools.product(("north", "south"), RIGHTS.items()):
            billing.save_role(self.context, SaveRole(organization=organization, role=role, rights=rights))
        billing.save_plan(self.context, SavePlan(plan="small", name="Small", credits=PLAN, price=100, currency="EUR"))
        for person, role in (("ann", "admin"), ("ben", "admin"), ("cas", "clerk"), ("dee", "member")):
            self.save_user(person, "north", role, has_billing=person != "cas")
            self.purchase(f"first-order-of-{person}", person, Credits(email=9, sms=6), "owner", has_billing=True)
        self.set_owner("first-change", "ann", "cas", "ben")

    # -- people and orders --------------------------------------------------------------------------------------------

    @rule(
        user=st.sampled_from(PEOPLE),
        organization=st.sampled_from(["north", "north", "north", "south"]),
        role=st.sampled_from(list(RIGHTS)),
        has_billing=st.booleans(),
    )
    def save_user(self, user: str, organization: str, role: str, *, has_billing: bool) -> None:
        """Make or change a user."""
        saved = SaveUser(
            user_id=user,
            organization=organization,
            name=user.title(),
            email=f"{user}@example.org",
            role=role,
            billing=BILLING if has_billing else None,
        )
        refusal = self.model.save_user(saved)
        answer = answer_of(partial(billing.save_user, self.context, saved))
        assert answer == (refusal or {"status": "done", "reason": None, "detail": None, "user_id": user})

    @rule(
        target=known,
        order_id=st.sampled_from([f"order-{number}" for number in range(8)]),
        buyer=people,
        what=st.one_of(st.builds(Credits, email=st.integers(1, 5), sms=st.integers(0, 3)),
                       st.sampled_from(["small", "small", "none"])),
        credit_to=st.sampled_from(["owner", "owner", "self"]),
        has_billing=st.booleans(),
    )  # fmt: skip
    def purchase(
        self, order_id: str, buyer: str, what: Credits | str, credit_to: Any, *, has_billing: bool
    ) -> Purchase:
        """Buy a plan or credits, under an id that may have been used before."""
        terms: dict[str, Any] = {"plan": what}
        if isinstance(what, Credits):
            terms = {"credits": what, "amount": 100, "currency": "EUR"}
        order = Purchase(
            order_id=order_id, buyer=buyer, credit_to=credit_to, billing=BILLING if has_billing else None, **terms
        )
        self._purchase(order)
        return order

    @rule(
        target=known,
        change_id=st.sampled_from([f"change-{number}" for number in range(30)]),
        actor=st.one_of(st.just("ann"), people),
        user=people,
        owner=people,
    )
    def set_owner(self, change_id: str, actor: str, user: str, owner: str) -> SetOwner:
        """Change a credit owner, under an id that may have been used before."""
        change = SetOwner(change_id=change_id, actor=actor, user=user, owner=owner)
        self._set_owner(change)
        return change

    # -- sends --------------------------------------------------------------------------------------------------------

    @rule(target=known, kind=kinds, drafts=drafts, twice=st.booleans(), answers=st.lists(carrier_answers, max_size=3))
    def send(self, kind: Kind, drafts: list[tuple[str, int]], *, twice: bool, answers: list[CarrierAnswer]) -> Any:
        """Send one or several jobs in a batch, the first perhaps twice."""
        jobs = self._new_jobs(kind, drafts)
        self._send([*jobs, jobs[0]] if twice else jobs, answers)
        return multiple(*jobs)

    @rule(target=known, kind=kinds, sender=people, parts=st.lists(sizes, min_size=1, max_size=4))
    def send_many(self, kind: Kind, sender: str, parts: list[int]) -> SendMany:
        """Send a bulk job: an email to each recipient, or a text message of so many segments to each."""
        job_id = f"bulk-{next(self.numbers)}"
        bulk_job: SendMany
        if kind == "email":
            readers = [EmailRecipient(to=f"reader-{place}@example.org") for place, _ in enumerate(parts)]
            bulk_job = SendManyEmails(job_id=job_id, sender=sender, recipients=readers, subject="News", text="None.")
        else:
            callers = [SmsRecipient(to="+31612345678", values={"text": text_of(size)}) for size in parts]
            bulk_job = SendManySms(job_id=job_id, sender=sender, recipients=callers, text="{{text}}")
        self._send_many(bulk_job)
        return bulk_job

    @rule(job=known)
    def enqueue_again(self, job: EnqueuedBefore) -> None:
        """Enqueue a job again. It is answered as before if it was done; a refused order or change may be done now.

        A stranger's bulk job was refused. Once its sender is known, its id may be another job's in the organization.
        """
        match job:
            case SendEmail() | SendSms():
                self._send([job], [])
            case SendManyEmails() | SendManySms() if self.model.is_taken(self.model.bulks, job.sender, job.job_id):
                with pytest.raises(Refused, match="conflicting_job"):
                    bulk.send_many(self.context, job)
            case SendManyEmails() | SendManySms():
                self._send_many(job)
            case Purchase():
                self._purchase(job)
            case SetOwner():
                self._set_owner(job)

    @rule(job=known, sender=people)
    def use_the_id_of_another_job(self, job: EnqueuedBefore, sender: str) -> None:
        """Another sender uses the id of a job. In another organization this is another job."""
        match job:
            case SendEmail() | SendSms():
                self._send([job.model_copy(update={"sender": sender})], [])
            case SendManyEmails() | SendManySms() if not self.model.knows(self.model.bulks, sender, job.job_id):
                self._send_many(job.model_copy(update={"sender": sender}))
            case Purchase():
                self._purchase(job.model_copy(update={"buyer": sender}))
            case SetOwner():
                self._set_owner(job.model_copy(update={"actor": sender}))

    @rule(job=known)
    def enqueue_with_other_content(self, job: EnqueuedBefore) -> None:
        """Enqueue other content under the id of a send job. It is refused, and nothing else happens."""
        match job:
            case SendEmail() | SendSms() if self.model.knows(self.model.messages, job.sender, job.job_id):
                other = job.model_copy(update={"text": "Something else."})
                [charge] = send(self.context, [other])
                refusal = sending.conflict(charge, other, other.digest())
                assert refusal is not None
                assert refusal.reason == "conflicting_job"
            case SendManyEmails() | SendManySms() if self.model.knows(self.model.bulks, job.sender, job.job_id):
                others = job.model_copy(update={"text": "Something else."})
                with pytest.raises(Refused, match="conflicting_job"):
                    bulk.send_many(self.context, others)
        self._compare_outbound([])

    @precondition(lambda self: self.broker.sent)
    @rule(place=st.integers(0, 9), again=st.booleans(), answers=st.lists(carrier_answers, max_size=3))
    def resume(self, place: int, answers: list[CarrierAnswer], *, again: bool) -> None:
        """Make the next attempt of jobs that a resume message names; perhaps it is delivered again later."""
        kind, org_id, attempts = self._take_enqueued(place, again=again)
        began = self.clock.now
        self._script(kind, answers)
        sending.resume(self.context, org_id, attempts)
        self._deliver_in_model(self.model.claim(org_id, attempts, began), answers, began)

    @rule(sender=people)
    def cancel(self, sender: str) -> None:
        """A sender stops everything that waits. A worker that is told of it later finds nothing to do."""
        stop = CancelMessages(cancel_id=f"cancel-{next(self.numbers)}", actor=sender, sender=sender)
        assert_same_answer(answer_of(partial(cancelling.cancel, self.context, stop)), self.model.cancel(sender))

    @precondition(lambda self: self._unknown())
    @rule(place=st.integers(0, 9), decision=st.sampled_from(["refund", "resend"]))
    def decide(self, place: int, decision: str) -> None:
        """A person decides about an unknown job, and knows that a resend may reach somebody twice."""
        self._decide(self._unknown()[place % len(self._unknown())], decision)

    # -- crashes and workers that go on late --------------------------------------------------------------------------

    @rule(target=known, kind=kinds, drafts=drafts, twice=st.booleans())
    def crash_after_charging(self, kind: Kind, drafts: list[tuple[str, int]], *, twice: bool) -> Any:
        """A worker charges jobs, perhaps twice as it loses its connection, and is not heard of for a while."""
        jobs = self._new_jobs(kind, drafts)
        now, lease_id = self.clock.now, f"worker-{next(self.numbers)}"
        for _ in range(1 + twice):
            charged = self.database.write(
                lambda connection: charge_jobs(
                    connection,
                    [sending.as_send_job(job) for job in jobs],
                    lease_id=lease_id,
                    now=now,
                    lease_until=now + POLICY.lease,
                )
            )
        expected = self.model.charge([in_model(job) for job in jobs], now, lease_id)
        assert [charge.key for charge in charged if charge.is_new] == [message.key for message in expected]
        self.silent += [charge for charge in charged if charge.is_new]
        return multiple(*jobs)

    @precondition(lambda self: self.broker.sent)
    @rule(place=st.integers(0, 9), again=st.booleans(), twice=st.booleans())
    def crash_in_a_later_attempt(self, place: int, *, again: bool, twice: bool) -> None:
        """A worker begins the next attempt of jobs, perhaps twice, and is not heard of for a while."""
        _, org_id, attempts = self._take_enqueued(place, again=again)
        self._claim(org_id, attempts, times=1 + twice)

    @precondition(lambda self: self.silent)
    @rule(place=st.integers(0, 9), answer=carrier_answers, then=st.sampled_from(["answer", "crash", "sleep", "lose"]))
    def go_on_late(self, place: int, answer: CarrierAnswer, then: str) -> None:
        """A worker that seemed to have crashed goes on: it hands the message over, and is answered, crashes or sleeps.

        If its lease has ended, it hands nothing over, and its outcome does not count.
        """
        charge = self.silent.pop(place % len(self.silent))
        message = self.model.messages[charge.key]
        has_lease, began = message.is_leased_to(charge.lease_id), self.clock.now
        if has_lease and then == "answer":
            self._script(message.kind, [answer])
            list(delivery.deliver(self.context, [charge], self.clock.monotonic(), self.clock.now))
            self._deliver_in_model([message], [answer], began)
            return
        scripted = partial(self._lose_the_answer, message, answer, then) if has_lease else _fail_on_handover
        self.carriers[message.kind].script = [scripted]
        with suppress(CrashError):
            list(delivery.deliver(self.context, [charge], self.clock.monotonic(), self.clock.now))
        is_asked = has_lease or not self.model.is_idempotent[message.kind]  # otherwise the handover is noted before
        self._compare_outbound([(charge.job_id, recipients_of(outbound_message(charge)))] if is_asked else [])

    def _lose_the_answer(
        self, message: Message, answer: CarrierAnswer, then: str, outbound: OutboundMessage
    ) -> Receipt:
        """Take the message. The worker crashes, or sleeps until its lease has ended, or until another has the job."""
        message.handed_over = True
        self._note_handover(message, recipients_of(outbound))
        if then == "crash":
            raise CrashError
        if then != "answer":
            self.clock.forward(POLICY.lease)
            self._sweep()
        if then == "lose" and message.state == "unknown":
            self._decide(message, "resend")
            self._claim(message.org_id, {message.job_id: 0})
        return answer.receipt(message.kind, recipients_of(outbound))

    # -- time ---------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 10, 60, 300, 1000]))
    def let_time_pass(self, seconds: int) -> None:
        """Time passes, and then a sweep runs."""
        self.clock.forward(timedelta(seconds=seconds))
        self._sweep()

    @precondition(lambda self: self.model.next_at())
    @rule(
        moments=st.sampled_from([1, 1, 6]),
        then=st.sampled_from(["resume", "resume", "crash", "rest"]),
        answers=st.lists(carrier_answers, min_size=1, max_size=3),
    )
    def wait_until_something_is_due(self, moments: int, then: str, answers: list[CarrierAnswer]) -> None:
        """Time passes until a job is due or a lease ends; perhaps what is enqueued then is resumed at once."""
        for _ in range(moments):
            self.clock.now = max(self.clock.now, self.model.next_at() or self.clock.now)
            for _ in self._sweep():
                if then == "resume":
                    self.resume(-1, answers, again=False)
                elif then == "crash":
                    self.crash_in_a_later_attempt(-1, again=False, twice=False)


@pytest.fixture(autouse=True)
def _one_transaction_ends_all_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LEASE_BATCH", 1_000)  # the model gives back together what a sweep does
    monkeypatch.setattr(batch, "GATHER_S", 60.0)  # and what a batch does


@pytest.fixture(autouse=True)
def _no_logs() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield
    structlog.contextvars.clear_contextvars()


@pytest.mark.timeout(600)
def test_any_history_leaves_every_credit_where_the_model_says_on_sqlite(migrated_sqlite: Path, tmp_path: Path) -> None:
    run(Money, lambda: fresh_sqlite(migrated_sqlite, tmp_path / "money.db", pool_size=1), 10)


@pytest.mark.timeout(600)
def test_any_history_leaves_every_credit_where_the_model_says_on_postgresql(migrated_postgres: PostgresServer) -> None:
    run(Money, lambda: fresh_postgres(migrated_postgres, pool_size=1), 3)
