"""The state machine of money without its rules: how one step is done to the database and the model, and compared."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, invariant
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import accounts, charges, entries, users
from models.errors import Refused
from models.messages.billing import Purchase, SetOwner
from models.messages.bulk import SendMany
from models.messages.fields import KINDS, Kind
from models.messages.sends import SendOne
from models.messages.views import ViewUsage
from models.reports.rollup import same_account
from models.reports.story import show_story_to_operator
from models.reports.views import show_usage
from models.sends.answers import wire_status
from models.sends.carrier import Outcome
from models.sends.charges import Charge, JobKey, find_charges
from models.sends.leases import claim_jobs
from models.sends.unknown import refund_unknown, resend_unknown
from tasks import billing, bulk, upkeep
from tests.audits import audit_everything
from tests.chains import broken_hashes, parts_of_charges
from tests.factories import messages_of
from tests.fakes import Clock, FakeBroker, FakeCarrier, make_context, send
from tests.properties.inputs import PEOPLE, CarrierAnswer, in_model, kind_of, recipients_of, send_job
from tests.properties.model import NOBODYS, ORGANIZATIONS, POLICY, Answer, Message, Model, Move

COMPARED_COLUMNS = ("org_id", "job_id", "kind", "sender", "payer", "owner_version", "credits", "refunded", "state",
                    "reason", "attempts", "crashes", "in_doubt", "lease_until", "due_at")  # fmt: skip
STORIES = 3
"""Jobs whose stories are read after each step."""


class MoneyMachine(RuleBasedStateMachine):
    """A database and a model of it, and what must be true after each step."""

    def __init__(self, open_database: Callable[[], Any]) -> None:
        super().__init__()
        self._opened = open_database()
        self.clock = Clock()
        self.swept_at = self.clock.now
        self.carriers: dict[Kind, FakeCarrier] = {kind: FakeCarrier() for kind in KINDS}
        self.database: Database = self._opened.__enter__()
        self.context = make_context(
            self.database, self.carriers["email"], self.carriers["sms"], clock=self.clock, policy=POLICY
        )
        self.broker: Any = self.context.enqueue
        assert isinstance(self.broker, FakeBroker)
        self.model = Model()
        self.numbers = itertools.count(1)
        self.audits = itertools.count(1)
        self.views = itertools.count(1)
        self.stories = itertools.count(1)
        self.viewers = itertools.cycle([*PEOPLE, "zoe"])
        self.silent: list[Charge] = []
        """Charges of workers that are not heard of: each may have crashed, or may go on later."""
        self.handed_over: list[tuple[JobKey, str]] = []
        """Each (job, recipient) to whom a carrier may have delivered."""

    def teardown(self) -> None:
        self._opened.__exit__(None, None, None)

    # -- what must be true after each step ----------------------------------------------------------------------------

    @invariant()
    def every_account_holds_what_the_model_says(self) -> None:
        """Each move agrees in amount, cause, jobs and order, so a refund went to who paid. No balance is below zero."""
        with self.database.snapshot() as connection:
            found = connection.execute(select(accounts.c.owner_id, accounts.c.kind, accounts.c.available)).all()
            moves = connection.execute(
                select(entries, accounts.c.owner_id, accounts.c.kind)
                .join(accounts, same_account(entries))
                .order_by(entries.c.org_id, entries.c.account_id, entries.c.seq)
            ).all()
            parts = parts_of_charges(connection.execute(select(charges)))
        written: dict[tuple[str, Kind], list[Move]] = {(owner, kind): [] for owner, kind, _ in found}
        for move in moves:
            made_for = {move.cause_id: move.amount} if move.cause_kind == "purchase" else {}
            of_jobs = parts.pop((move.org_id, move.account_id, move.cause_kind, move.cause_id), made_for)
            written[move.owner_id, move.kind].append(Move(move.amount, move.cause_kind, of_jobs))
        assert written == self.model.moves
        assert parts == {}, "there are charges without an entry"
        balances = {(owner, kind): available for owner, kind, available in found}
        assert balances == {account: self.model.balance(*account) for account in self.model.moves}
        assert min(balances.values()) >= 0

    @invariant()
    def every_job_is_in_the_state_that_the_model_says(self) -> None:
        """Payer, credits, attempts and crashes agree, and so do the end of the lease and when the job is due."""
        columns = [charges.c[name] for name in COMPARED_COLUMNS if name not in ("payer", "in_doubt")]
        payer, in_doubt = (
            accounts.c.owner_id.label("payer"),
            charges.c.handover_started_at.is_not(None).label("in_doubt"),
        )
        with self.database.snapshot() as connection:
            query = select(*columns, payer, in_doubt).outerjoin_from(charges, accounts, same_account(charges))
            found = {JobKey(row.org_id, row.job_id): row._asdict() for row in connection.execute(query)}
        assert found == {
            key: {name: getattr(message, name) for name in COMPARED_COLUMNS}
            for key, message in (self.model.messages | self.model.bulks).items()
        }

    @invariant()
    def nobody_gets_a_message_twice(self) -> None:
        """This holds whenever workers crash or go on late; but a person may decide to resend what is unknown."""
        assert len(self.handed_over) == len(set(self.handed_over))

    @invariant()
    def everybody_has_the_owner_that_the_model_says(self) -> None:
        """There are no other users either."""
        with self.database.snapshot() as connection:
            found = {row.id: (row.org_id, row.credit_owner_id, row.owner_version)
                     for row in connection.execute(select(users))}  # fmt: skip
        assert found == {
            name: (person.org_id, person.owner, person.owner_version) for name, person in self.model.people.items()
        }

    @invariant()
    def an_audit_finds_nothing(self) -> None:
        """It runs every third time, for it is slow. The sweep ran when it was due, so no lease is stale either."""
        if next(self.audits) % 3 == 0:
            with self.database.snapshot() as connection:
                assert audit_everything(connection, self.swept_at) == []
                assert broken_hashes(connection) == []

    @invariant()
    def a_viewer_sees_what_is_charged_now(self) -> None:
        """Every third time another viewer looks: at the pool that they spend from, and at their own messages."""
        if next(self.views) % 3:
            return
        viewer = next(self.viewers)
        with self.database.snapshot() as connection:
            pool = answer_of(partial(show_usage, connection, ViewUsage(viewer=viewer)))
            own = answer_of(partial(show_usage, connection, ViewUsage(viewer=viewer, of="self")))
        if viewer not in self.model.people:
            assert pool == own == "unknown_user"
            return
        owner = self.model.people[viewer].owner
        paid = {kind: self.model.charged_now(kind, payer=owner) for kind in KINDS}
        assert_same_answer(pool, {"owner": owner, "total": paid})
        assert_same_answer(own, {"total": {kind: self.model.charged_now(kind, sender=viewer) for kind in KINDS}})

    @invariant()
    def a_story_tells_what_was_charged_and_given_back(self) -> None:
        """Of some jobs in turn, as operators see it: to whom, and by entries that moved no less."""
        jobs = [message for message in self.model.messages.values() if message.org_id != NOBODYS]
        for _ in range(min(STORIES, len(jobs))):
            message = jobs[next(self.stories) % len(jobs)]
            [organization] = [name for name, org_id in ORGANIZATIONS.items() if org_id == message.org_id]
            with self.database.snapshot() as connection:
                story = show_story_to_operator(connection, message.job_id, organization)["story"]
            moves = [event for event in story if event["kind"] in ("charged", "refunded")]
            paid = [("charged", message.credits)] if message.payer else []
            back = [("refunded", message.refunded)] if message.refunded else []
            assert [(event["kind"], event["credits"]) for event in moves] == paid + back
            assert {event["paid_by"] for event in moves} <= {message.payer}
            assert all(abs(event["entry_amount"]) >= event["credits"] for event in moves)

    # -- how a step is done to both -----------------------------------------------------------------------------------

    def _new_jobs(self, kind: Kind, drafts: list[tuple[str, int]]) -> list[SendOne]:
        """New jobs of these senders and sizes. Those of another organization have the same ids as the others."""
        number, counted = next(self.numbers), Counter[int]()
        jobs = []
        for sender, size in drafts:
            person = self.model.people.get(sender)
            org_id = person.org_id if person else NOBODYS
            jobs.append(send_job(f"job-{number}.{counted[org_id]}", kind, sender, size))
            counted[org_id] += 1
        return jobs

    def _send(self, jobs: Sequence[SendOne], answers: Sequence[CarrierAnswer]) -> None:
        """Charge and deliver jobs, as a worker does that takes them in one batch."""
        began = self.clock.now
        self._script(jobs[0].kind, answers)
        charged = send(self.context, jobs)
        messages = [in_model(job) for job in jobs]
        self._deliver_in_model(self.model.charge(messages, began), answers, began)
        expected = [self.model.stands(message) for message in messages]
        assert [
            (charge.job_id, wire_status(charge.state, charge.attempts, charge.reason), charge.payer)
            for charge in charged
        ] == [(message.job_id, message.status, message.payer) for message in expected]

    def _purchase(self, order: Purchase) -> None:
        assert_same_answer(answer_of(partial(billing.purchase, self.context, order)), self.model.purchase(order))

    def _set_owner(self, change: SetOwner) -> None:
        assert_same_answer(answer_of(partial(billing.set_owner, self.context, change)), self.model.set_owner(change))

    def _send_many(self, bulk_job: SendMany) -> None:
        already_enqueued = list(self.broker.sent)
        answer = bulk.send_many(self.context, bulk_job)
        messages = [in_model(job, f"{bulk_job.job_id}/{place}") for place, job in enumerate(messages_of(bulk_job))]
        cost = {message.job_id: message.credits for message in messages}
        bulk_message = Message(bulk_job.job_id or "", kind_of(bulk_job), bulk_job.sender, cost)
        is_new = self.model.charge_bulk(bulk_message, messages, self.clock.now)
        enqueued = (
            f"{bulk_message.kind}.resume",
            {"org_id": bulk_message.org_id, "attempts": dict.fromkeys(cost, 0)},
        )
        assert self.broker.sent == already_enqueued + ([enqueued] if is_new else [])
        assert {name: answer[name] for name in ("status", "reason", "paid_by", "credits")} == self.model.bulk_answer(
            bulk_message
        )

    def _sweep(self) -> list[tuple[str, dict[str, Any]]]:
        """Sweep. Returns what was enqueued."""
        already_enqueued = list(self.broker.sent)
        upkeep.sweep(self.context)
        self.swept_at = self.clock.now
        enqueued = self.model.sweep(self.clock.now)
        for message in self.model.messages.values():
            if message.state == "waiting" and not message.due_at and not message.never_begun:
                message.due_at = self._drawn_due_at(message, self.clock.now)
        assert self.broker.sent == already_enqueued + enqueued
        return enqueued

    def _claim(self, org_id: int, attempts: Mapping[str, int], times: int = 1) -> None:
        """Begin the next attempt of jobs for a worker that is not heard of for a while."""
        lease_until, lease_id = self.clock.now + POLICY.lease, f"worker-{next(self.numbers)}"
        for _ in range(times):
            claimed = self.database.write(
                lambda connection: claim_jobs(connection, org_id, attempts, lease_id=lease_id, lease_until=lease_until)
            )
        expected = self.model.claim(org_id, attempts, self.clock.now, lease_id)
        assert [charge.key for charge in claimed] == [message.key for message in expected]
        self.silent += claimed

    def _decide(self, message: Message, decision: str) -> None:
        """Refund or resend an unknown message; a second time nothing happens."""
        act = refund_unknown if decision == "refund" else resend_unknown
        for count in (1, 0):
            decided = self.database.write(
                lambda connection: act(connection, [message.key], operator="ops", now=self.clock.now)
            )
            assert len(decided) == count
        self.model.decide(message, decision, self.clock.now)
        self.handed_over = [
            (key, recipient)
            for key, recipient in self.handed_over
            if key != message.key or message.fate[recipient] == "reached"
        ]

    def _unknown(self) -> list[Message]:
        return [message for message in self.model.messages.values() if message.state == "unknown"]

    def _take_enqueued(self, place: int, *, again: bool) -> tuple[Kind, int, dict[str, int]]:
        """Take one of the resume messages that were enqueued. It stays there if it is delivered `again`."""
        place %= len(self.broker.sent)
        task, given = self.broker.sent[place]
        if not again:
            del self.broker.sent[place]
        return task.removesuffix(".resume"), given["org_id"], given["attempts"]

    def _script(self, kind: Kind, answers: Sequence[CarrierAnswer]) -> None:
        self.carriers[kind].script = [answer.give for answer in answers]

    def _note_handover(self, message: Message, recipients: Sequence[str]) -> None:
        """Note who may have the message now. An idempotent carrier delivers it once, however often it is asked."""
        if not self.model.is_idempotent[message.kind]:
            self.handed_over += [(message.key, recipient) for recipient in recipients]

    def _deliver_in_model(self, claimed: Sequence[Message], answers: Sequence[CarrierAnswer], began: datetime) -> None:
        """Make the attempts in the model that one worker has made, and compare what the carriers got."""
        attempted = []
        for place, message in enumerate(claimed):
            answer = answers[place] if place < len(answers) else CarrierAnswer()
            pending = message.recipients_with("pending")
            attempted.append((message.job_id, pending))
            receipt = answer.receipt(message.kind, pending)
            if receipt.outcome in (Outcome.ACCEPTED, Outcome.UNSURE):
                not_reached = [*receipt.refused, *receipt.deferred]
                self._note_handover(message, [recipient for recipient in pending if recipient not in not_reached])
            self.model.settle(message, receipt)
        for message in claimed:  # they are settled together, after the last attempt
            if message.state == "waiting":
                message.due_at = self._drawn_due_at(message, began)
        self.model.give_back(claimed)
        self._compare_outbound(attempted)

    def _drawn_due_at(self, message: Message, now: datetime) -> datetime | None:
        """When the next attempt of a job is due: drawn at random by the ledger, between two limits."""
        with self.database.snapshot() as connection:
            due_at = find_charges(connection, [message.key])[message.key].due_at
        shortest, longest = (POLICY.delay(message.attempts, draw) for draw in (0, 1))
        assert due_at
        assert now + shortest <= due_at <= now + longest
        return due_at

    def _compare_outbound(self, expected: list[tuple[str, list[str]]]) -> None:
        """The carriers got these messages in this step, and no others."""
        for carrier in self.carriers.values():
            carrier.script.clear()
        messages = [message for carrier in self.carriers.values() for message in carrier.messages]
        assert [(message.job_id, recipients_of(message)) for message in messages] == expected
        for carrier in self.carriers.values():
            carrier.messages.clear()


def answer_of(command: Callable[[], dict[str, Any]]) -> Answer:
    """What a command answers, or the reason why it refuses."""
    try:
        return command()
    except Refused as refused:
        return refused.reason


def assert_same_answer(answer: Answer, expected: Answer) -> None:
    """Compare with a reason for refusal, or with the fields that an answer must have."""
    assert isinstance(answer, dict) == isinstance(expected, dict), f"{answer} instead of {expected}"
    if isinstance(answer, dict):
        answer = {name: answer[name] for name in expected}
    assert answer == expected
