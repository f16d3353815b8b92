"""Whatever happens in whatever order, the money is where a model of a page says it is.

`Model` is the specification: plain Python, no database. `Money` does things to a real one, through the use cases that
the tasks run, tells the model what it did, and compares everything after each step.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import accounts, charges, entries, users
from models.errors import Refused
from models.messages.billing import Credits, Purchase, SavePlan, SaveRole, SaveUser, SetOwner
from models.messages.bulk import EmailRecipient, SendMany, SendManyEmails, SendManySms, SmsRecipient
from models.messages.fields import KINDS, Kind
from models.messages.sends import SendEmail, SendOne, SendSms
from models.messages.views import ViewUsage
from models.reports.views import show_usage
from models.sends.answers import wire_status
from models.sends.carrier import OutboundMessage, Outcome, Receipt, Sms
from models.sends.charges import Charge, find_charges
from models.sends.charging import charge_jobs
from models.sends.leases import claim_jobs
from models.sends.outcomes import CRASHES_MAX
from models.sends.retry_policy import RetryPolicy
from models.sends.unknown import refund_unknown, resend_unknown
from tasks import billing, bulk, delivery, sending, upkeep
from tests.audits import audit_everything
from tests.factories import cost_of, messages_of
from tests.fakes import Clock, FakeBroker, FakeCarrier, make_context, send
from tests.properties.machines import fresh_postgres, fresh_sqlite, run
from tests.servers import PostgresServer

PATIENCE = RetryPolicy(attempts_max=2, base_s=10, max_s=60, lease_s=300)
SLOW = PATIENCE.lease / 2
"""A carrier that takes this long leaves no time to begin with another job of the batch."""
LOOK_AGAIN = timedelta(seconds=60)

PEOPLE = ["ann", "ben", "cas", "dee", "eve"]
RIGHTS: dict[str, list[Any]] = {"admin": ["view_user_list", "edit_user"], "clerk": ["view_user_list"], "member": []}
PLAN = Credits(email=3, sms=2)
BILLING = {"name": "Acme Ltd"}


# What the carrier is going to say.


@dataclass(frozen=True)
class Word:
    """What a carrier says to one attempt: of an email's recipients that it is given, whom it refuses and defers."""

    outcome: Outcome = Outcome.ACCEPTED
    refused: frozenset[int] = frozenset()
    deferred: frozenset[int] = frozenset()
    takes: timedelta = timedelta()

    def receipt(self, kind: Kind, recipients: Sequence[str]) -> Receipt:
        """The receipt for `recipients`: accepted only if at least one of them was, as a mail server's would be."""
        if kind == "sms":
            return Receipt(self.outcome, "So.")
        refused = {address: "No." for place, address in enumerate(recipients) if place in self.refused}
        deferred = {
            address: "Later." for place, address in enumerate(recipients) if place in self.deferred - self.refused
        }
        if len(refused) == len(recipients):
            return Receipt(Outcome.NEVER, "To nobody.", refused=refused, recipients_refused=True)
        if self.outcome is Outcome.ACCEPTED and len(refused) + len(deferred) == len(recipients):
            return Receipt(Outcome.NOT_NOW, "To nobody now.", refused=refused, deferred=deferred)
        return Receipt(self.outcome, "So.", refused=refused, deferred=deferred)

    def say(self, clock: Clock, message: OutboundMessage) -> Receipt:
        """Take one's time, and answer."""
        clock.forward(self.takes)
        return self.receipt("sms" if isinstance(message, Sms) else "email", _recipients(message))


def _recipients(message: OutboundMessage) -> list[str]:
    return [message.to] if isinstance(message, Sms) else list(message.recipients)


# The specification.

STANDING = ("job_id", "kind", "sender", "payer", "credits", "refunded", "state", "reason", "attempts", "crashes",
            "in_doubt", "lease_until", "due_at")  # fmt: skip
Fate = Literal["pending", "taken", "gone"]
Answer = dict[str, Any] | str
"""What a command answers, or the reason why it refuses."""


@dataclass
class Person:
    """Somebody who was saved."""

    organization: str
    role: str
    owner: str
    billing: bool


@dataclass
class Message:
    """One send job: the credits for each recipient, and what became of them."""

    job_id: str
    kind: Kind
    sender: str
    cost: dict[str, int]
    state: str = "sending"
    reason: str | None = None
    payer: str | None = None
    attempts: int = 1
    crashes: int = 0
    lease_id: str | None = None
    in_doubt: bool = False
    lease_until: datetime | None = None
    due_at: datetime | None = None
    fate: dict[str, Fate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fate = dict.fromkeys(self.cost, "pending")

    @property
    def credits(self) -> int:
        """What it costs."""
        return sum(self.cost.values())

    @property
    def refunded(self) -> int:
        """What went back: the cost of recipients who will never get it, once the message is final."""
        final = self.state in ("sent", "failed")
        return sum(self.cost[recipient] for recipient in self.having("gone")) if final else 0

    @property
    def never_begun(self) -> bool:
        """Whether it waits for its first attempt, as messages of a bulk job do: not it is due, but that job."""
        return self.state == "waiting" and not self.attempts and not self.due_at

    @property
    def status(self) -> str:
        """The word for it on the wire."""
        if self.state == "waiting":
            return "retrying" if self.attempts else "sending"
        return self.state

    def having(self, fate: Fate) -> list[str]:
        """The recipients with that fate."""
        return [recipient for recipient, its in self.fate.items() if its == fate]

    def is_held(self, lease_id: str | None) -> bool:
        """Whether `lease_id` is still the one that has it."""
        return self.state == "sending" and self.lease_id == lease_id

    def wait(self, due_at: datetime | None) -> None:
        """Nobody holds it any more; it is tried again."""
        self.state, self.lease_until, self.due_at = "waiting", None, due_at

    def end(self, state: str, reason: str | None) -> None:
        """It is never tried again by itself."""
        self.state, self.reason, self.lease_until, self.due_at = state, reason, None, None
        self.in_doubt = state == "unknown"


class Model:
    """Who there is, who owns whose credits, all moves of credits, and how every job stands."""

    def __init__(self) -> None:
        self.people: dict[str, Person] = {}
        self.moves: dict[tuple[str, Kind], list[tuple[int, str]]] = {}
        self.messages: dict[str, Message] = {}
        self.bulks: dict[str, Message] = {}
        self.orders: dict[str, tuple[Purchase, Answer]] = {}
        self.changes: dict[str, tuple[SetOwner, Answer]] = {}
        self.honours: dict[Kind, bool] = dict.fromkeys(KINDS, False)
        self.patience = PATIENCE

    def balance(self, owner: str, kind: Kind) -> int:
        """What is left in an account: the sum of its moves."""
        return sum(amount for amount, _ in self.moves[owner, kind])

    def save_user(self, user: SaveUser) -> str | None:
        """A new user is their own owner. Nobody changes their organization."""
        known = self.people.get(user.user_id)
        if known is None:
            self.people[user.user_id] = Person(user.organization, user.role, user.user_id, bool(user.billing))
            self.moves |= {(user.user_id, kind): [] for kind in KINDS}
            return None
        if known.organization != user.organization:
            return "other_organization"
        known.role, known.billing = user.role, known.billing or bool(user.billing)
        return None

    def purchase(self, order: Purchase) -> Answer:
        """The credits go to the buyer's owner; an order that was made stays as it was."""
        if order.order_id in self.orders:
            made, answer = self.orders[order.order_id]
            return answer if made == order else "conflicting_job"
        buyer = self.people.get(order.buyer)
        if buyer is None:
            return "unknown_user"
        if order.credit_to == "self" and buyer.owner != order.buyer:
            return "purchase_for_self_while_sharing"
        if order.plan == "none":
            return "unknown_plan"
        if not (order.billing or buyer.billing):
            return "billing_information_missing"
        bought = order.credits or PLAN
        for kind in KINDS:
            if bought.of(kind):
                self.moves[buyer.owner, kind].append((bought.of(kind), f"purchase:{order.order_id}:{kind}"))
        answer = {
            "status": "done",
            "buyer": order.buyer,
            "owner": buyer.owner,
            "credits": {kind: bought.of(kind) for kind in KINDS},
        }
        self.orders[order.order_id] = order, answer
        return answer

    def set_owner(self, change: SetOwner) -> Answer:  # noqa: PLR0911  one rule, one answer
        """One level, one organization, both rights; a change that was made is not made again."""
        if change.change_id in self.changes:
            made, answer = self.changes[change.change_id]
            return answer if made == change else "conflicting_job"
        involved = [self.people.get(one) for one in (change.actor, change.user, change.owner)]
        actor, user, owner = involved
        if actor is None or user is None or owner is None:
            return "unknown_user"
        if len({one.organization for one in involved if one}) > 1:
            return "other_organization"
        if actor.role != "admin":
            return "not_permitted"
        if change.user != change.owner:
            if owner.owner != change.owner:
                return "owner_is_credit_user"
            if any(other.owner == change.user for name, other in self.people.items() if name != change.user):
                return "user_has_credit_users"
        user.owner = change.owner
        answer = {"status": "done", "user": change.user, "owner": change.owner}
        self.changes[change.change_id] = change, answer
        return answer

    def charge(self, message: Message, now: datetime, lease_id: str | None = None) -> bool:
        """Charge a message to the sender's owner if its id is new; whether it is to be delivered now."""
        if message.job_id in self.messages:
            return False
        self.messages[message.job_id] = message
        reason = self._refusal(message.sender, message.kind, message.credits)
        if reason:
            message.attempts = 0
            message.end("refused", reason)
            return False
        self._pay(message)
        message.lease_id, message.lease_until = lease_id, now + PATIENCE.lease
        return True

    def charge_bulk(self, whole: Message, messages: Sequence[Message], now: datetime) -> bool:
        """Charge all messages of a bulk job, or none; whether they are to be sent now."""
        if whole.job_id in self.bulks:
            return False
        self.bulks[whole.job_id] = whole
        whole.attempts = 0
        reason = self._refusal(whole.sender, whole.kind, whole.credits)
        whole.end("refused" if reason else "bulk", reason)
        if reason:
            return False
        whole.due_at = now + LOOK_AGAIN
        payer = self.people[whole.sender].owner
        self.moves[payer, whole.kind].append((-whole.credits, f"charge:{whole.job_id}"))
        for message in messages:
            self.messages[message.job_id] = message
            message.attempts, message.payer = 0, payer
            message.wait(None)
        return True

    def bulk_answer(self, job_id: str) -> dict[str, Any]:
        """How a bulk job stands: its messages together."""
        whole = self.bulks[job_id]
        parts = [self.messages[part] for part in whole.cost if part in self.messages]
        statuses = {part.status for part in parts} or {"refused"}
        order = ("refused", "sending", "retrying", "unknown", "sent", "failed")
        status = next(one for one in order if one in statuses)
        return {
            "status": "sending" if status == "retrying" else status,
            "reason": whole.reason,
            "paid_by": parts[0].payer if parts else None,
            "credits": sum(part.credits - part.refunded for part in parts),
        }

    def _refusal(self, sender: str, kind: Kind, credits_: int) -> str | None:
        if sender not in self.people:
            return "unknown_user"
        return "insufficient_credits" if self.balance(self.people[sender].owner, kind) < credits_ else None

    def _pay(self, message: Message) -> None:
        message.payer = self.people[message.sender].owner
        self.moves[message.payer, message.kind].append((-message.credits, f"charge:{message.job_id}"))

    def claim(self, attempts: Mapping[str, int], now: datetime, lease_id: str | None = None) -> list[Message]:
        """Begin the next attempt of those that wait, and have had no more attempts than they were asked for with."""
        asked = [(self.messages[job_id], attempts[job_id]) for job_id in sorted(attempts)]
        held = [message for message, had in asked if message.state == "waiting" and message.attempts == had]
        for message in held:
            message.state, message.due_at, message.lease_until = "sending", None, now + PATIENCE.lease
            message.attempts += 1
            message.lease_id = lease_id
        return held

    def hand_back(self, message: Message, now: datetime) -> None:
        """There was no time for it: the attempt does not count."""
        message.attempts -= 1
        message.wait(now)

    def settle(self, message: Message, receipt: Receipt) -> None:
        """What the carrier's answer means. The time of the next attempt is drawn, so it is not said here."""
        last = self.patience.is_exhausted(message.attempts)
        outcome = receipt.outcome
        message.fate |= dict.fromkeys(receipt.refused, "gone")
        if outcome is Outcome.ACCEPTED:
            message.fate |= {one: "taken" for one in message.having("pending") if one not in receipt.deferred}
        if outcome is Outcome.UNSURE and not (self.honours[message.kind] and not last):
            return message.end("unknown", None)
        if outcome is Outcome.NOT_NOW and last and message.in_doubt:
            return message.end("unknown", None)
        if not last and outcome is not Outcome.NEVER and message.having("pending"):
            message.in_doubt |= outcome is Outcome.UNSURE
            message.reason = "carrier_unavailable"
            return message.wait(None)
        refused = "recipient_refused" if receipt.recipients_refused else "carrier_refused"
        return self._give_up(message, "carrier_unavailable" if outcome is Outcome.NOT_NOW else refused)

    def _give_up(self, message: Message, reason: str) -> None:
        """Nobody more will get it. Who got it stays charged."""
        message.fate |= dict.fromkeys(message.having("pending"), "gone")
        if message.having("taken"):
            message.end("sent", "recipient_refused" if message.having("gone") else None)
        else:
            message.fate = dict.fromkeys(message.fate, "gone")
            message.end("failed", reason)
        if message.refunded and message.payer:
            self.moves[message.payer, message.kind].append((message.refunded, f"refund:{message.job_id}"))

    def sweep(self, now: datetime) -> list[tuple[str, dict[str, Any]]]:
        """End attempts whose lease is over, and enqueue what is due; what is enqueued, as (task, object).

        Many go in one message, but alone those over which a worker has died.
        """
        for _, message in sorted(self.messages.items()):
            if message.lease_until and message.lease_until <= now:
                self._end_dead(message)
        due = [message for _, message in sorted(self.messages.items()) if message.due_at and message.due_at <= now]
        for message in due:
            message.due_at = now + LOOK_AGAIN
        alone = [[message] for kind in KINDS for message in due if message.kind == kind and message.crashes]
        together = [[message for message in due if message.kind == kind and not message.crashes] for kind in KINDS]
        left = self._never_begun(now)
        of_bulks = [[message for message in left if message.kind == kind] for kind in KINDS]
        return [
            (f"{group[0].kind}.resume", {"attempts": {message.job_id: message.attempts for message in group}})
            for group in together + alone + of_bulks
            if group
        ]

    def _never_begun(self, now: datetime) -> list[Message]:
        """The messages of due bulk jobs that were never begun. A job that has none left is not due any more."""
        left = []
        for whole in self.bulks.values():
            if whole.due_at and whole.due_at <= now:
                messages = [self.messages[job_id] for job_id in whole.cost if self.messages[job_id].never_begun]
                whole.due_at = now + LOOK_AGAIN if messages else None
                left += messages
        return sorted(left, key=lambda message: message.job_id)

    def _end_dead(self, message: Message) -> None:
        """A worker died. Where that leaves no doubt, or the doubt does no harm, the job is tried again a few times."""
        message.crashes += 1
        message.reason = None
        message.in_doubt |= self.honours[message.kind]
        tried_enough = message.crashes >= CRASHES_MAX or self.patience.is_exhausted(message.attempts)
        if message.in_doubt and (tried_enough or not self.honours[message.kind]):
            message.end("unknown", None)
        elif tried_enough:
            self._give_up(message, "carrier_unavailable")
        else:
            message.wait(None)

    def decide(self, message: Message, decision: str, now: datetime) -> None:
        """A person looked at what is unknown: it is given up, or begins anew."""
        if decision == "refund":
            self._give_up(message, "carrier_unavailable")
            message.reason = "carrier_unavailable"
            return
        message.attempts, message.crashes, message.lease_id, message.in_doubt = 0, 0, None, False
        message.reason = None
        message.wait(now)

    def next_at(self) -> datetime | None:
        """When the next job is due, or the next lease ends."""
        jobs = [*self.messages.values(), *self.bulks.values()]
        moments = (moment for job in jobs for moment in (job.due_at, job.lease_until))
        return min((moment for moment in moments if moment), default=None)

    def charged_now(self, kind: Kind, *, payer: str | None = None, sender: str | None = None) -> int:
        """What messages cost, refunds taken out: of those that `payer` paid, or that `sender` sent."""
        return sum(
            message.credits - message.refunded
            for message in self.messages.values()
            if message.kind == kind and message.payer and (message.payer == payer or message.sender == sender)
        )


# What can happen.


class DeadError(Exception):
    """The worker was killed."""


def _hand_over_too_late(message: OutboundMessage) -> Receipt:
    raise AssertionError(f"{message.job_id} was handed over by a worker that had lost it")


people = st.sampled_from([*PEOPLE[:4] * 2, *PEOPLE, "zoe"])
"""The first four are there from the start; zoe is never saved."""
kinds = st.sampled_from(KINDS)
times = st.sampled_from([timedelta(), timedelta(), timedelta(), SLOW])
sizes = st.sampled_from([2, 3, 1])
small_sets = st.frozensets(st.integers(0, 2), max_size=2)
outcomes = st.sampled_from([Outcome.ACCEPTED, Outcome.NOT_NOW, Outcome.UNSURE, Outcome.NEVER, Outcome.ACCEPTED])
words = st.builds(Word, outcomes, small_sets, small_sets, times)
Known = SendOne | SendMany | Purchase | SetOwner
drafts = st.lists(st.tuples(people, sizes), min_size=1, max_size=3)
"""Jobs that come in together: who sends each, and how much of it."""


class Money(RuleBasedStateMachine):
    """Does things to a database, and compares it with the model."""

    known = Bundle("known")
    """Everything that came in under an id."""

    def __init__(self, open_database: Callable[[], Any]) -> None:
        super().__init__()
        self._opened = open_database()
        self.clock = Clock()
        self.swept_at = self.clock.now
        self.carriers: dict[Kind, FakeCarrier] = {kind: FakeCarrier() for kind in KINDS}
        self.database: Database = self._opened.__enter__()
        self.context = make_context(
            self.database, self.carriers["email"], self.carriers["sms"], clock=self.clock, policy=PATIENCE
        )
        self.broker: Any = self.context.enqueue
        assert isinstance(self.broker, FakeBroker)
        self.model = Model()
        self.numbers = itertools.count(1)
        self.steps = itertools.count(1)
        self.looks = itertools.count(1)
        self.viewers = itertools.cycle([*PEOPLE, "zoe"])
        self.lost: list[Charge] = []
        self.reached: list[tuple[str, str]] = []

    def teardown(self) -> None:
        self._opened.__exit__(None, None, None)

    @initialize(
        honours=st.fixed_dictionaries(dict.fromkeys(KINDS, st.booleans())), attempts_max=st.sampled_from([2, 5])
    )
    def found(self, honours: dict[Kind, bool], attempts_max: int) -> None:
        """Two organizations, a plan, four people of whom one spends another's credits; carriers of either sort."""
        self.model.honours = honours
        self.model.patience = replace(PATIENCE, attempts_max=attempts_max)
        self.context = replace(self.context, retry_policy=self.model.patience)
        for kind in KINDS:
            self.carriers[kind].is_idempotent = honours[kind]
        for organization, (role, rights) in itertools.product(("north", "south"), RIGHTS.items()):
            billing.save_role(self.context, SaveRole(organization=organization, role=role, rights=rights))
        billing.save_plan(self.context, SavePlan(plan="small", name="Small", credits=PLAN, price=100, currency="EUR"))
        for person, role in (("ann", "admin"), ("ben", "admin"), ("cas", "clerk"), ("dee", "member")):
            self.save_user(person, "north", role, has_billing=person != "cas")
            self.purchase(f"first-order-of-{person}", person, Credits(email=9, sms=6), "owner", has_billing=True)
        self.set_owner("first-change", "ann", "cas", "ben")

    @rule(
        user=st.sampled_from(PEOPLE),
        organization=st.sampled_from(["north", "north", "north", "south"]),
        role=st.sampled_from(list(RIGHTS)),
        has_billing=st.booleans(),
    )
    def save_user(self, user: str, organization: str, role: str, *, has_billing: bool) -> None:
        """Make or change somebody."""
        saved = SaveUser(
            user_id=user,
            organization=organization,
            name=user.title(),
            email=f"{user}@example.org",
            role=role,
            billing=BILLING if has_billing else None,
        )
        refusal = self.model.save_user(saved)
        answer = _answer(partial(billing.save_user, self.context, saved))
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
        """Buy a plan or credits, under an id that may have been used."""
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
        """Change a credit owner, under an id that may have been used."""
        change = SetOwner(change_id=change_id, actor=actor, user=user, owner=owner)
        self._set_owner(change)
        return change

    @rule(target=known, kind=kinds, drafts=drafts, twice=st.booleans(), said=st.lists(words, max_size=3))
    def send(self, kind: Kind, drafts: list[tuple[str, int]], *, twice: bool, said: list[Word]) -> Any:
        """Send one or several jobs together, the first perhaps twice among them."""
        jobs = self._write(kind, drafts)
        self._send([*jobs, jobs[0]] if twice else jobs, said)
        return multiple(*jobs)

    @rule(what=known)
    def come_in_again(self, what: Known) -> None:
        """Something comes in again. It is answered as before if it was done; a refused order or change may be now."""
        match what:
            case SendEmail() | SendSms():
                self._send([what], [])
            case SendManyEmails() | SendManySms():
                self._send_many(what)
            case Purchase():
                self._purchase(what)
            case SetOwner():
                self._set_owner(what)

    @rule(what=known)
    def come_in_as_something_else(self, what: Known) -> None:
        """The id of a send job comes in with other content: it is refused, and nothing else happens."""
        match what:
            case SendEmail() | SendSms():
                other = what.model_copy(update={"text": "Something else."})
                [charge] = send(self.context, _task(other), [other])
                refusal = sending.conflict(charge, other.digest(_task(other)))
                assert refusal is not None
                assert refusal.reason == "conflicting_job"
            case SendManyEmails() | SendManySms():
                others = what.model_copy(update={"text": "Something else."})
                with pytest.raises(Refused, match="conflicting_job"):
                    bulk.send_many(self.context, f"{_kind(others)}.send_many", others)
        self._compare_parcels([])

    @rule(target=known, kind=kinds, drafts=drafts, twice=st.booleans())
    def die(self, kind: Kind, drafts: list[tuple[str, int]], *, twice: bool) -> Any:
        """A worker charges jobs, perhaps twice as its connection is lost, and is not heard of for a while."""
        jobs = self._write(kind, drafts)
        now, lease_id = self.clock.now, f"worker-{next(self.numbers)}"
        for _ in range(1 + twice):
            charged = self.database.write(
                lambda connection: charge_jobs(
                    connection,
                    [sending.as_send_job(_task(job), job) for job in jobs],
                    lease_id=lease_id,
                    now=now,
                    lease_until=now + PATIENCE.lease,
                )
            )
        assert [charge.is_new for charge in charged] == [
            self.model.charge(_message(job), now, lease_id) for job in jobs
        ]
        self.lost += [charge for charge in charged if charge.is_new]
        return multiple(*jobs)

    @precondition(lambda self: self.broker.sent)
    @rule(place=st.integers(0, 9), again=st.booleans(), twice=st.booleans())
    def die_at_another_attempt(self, place: int, *, again: bool, twice: bool) -> None:
        """A worker begins the next attempt of jobs, perhaps twice, and is not heard of for a while."""
        _, attempts = self._take(place, again=again)
        self._claim(attempts, times=1 + twice)

    @precondition(lambda self: self.lost)
    @rule(place=st.integers(0, 9), said=words, then=st.sampled_from(["answer", "die", "sleep", "lose"]))
    def come_back(self, place: int, said: Word, then: str) -> None:
        """A worker that was thought dead goes on: it hands the message over, and gets an answer, dies or sleeps on.

        If somebody has ended its attempt it hands nothing over, unless that does no harm, and its outcome counts not.
        """
        charge = self.lost.pop(place % len(self.lost))
        message = self.model.messages[charge.job_id]
        held, began = message.is_held(charge.lease_id), self.clock.now
        if held and then == "answer":
            self._script(message.kind, [said])
            list(delivery.deliver(self.context, [charge]))
            self._deliver([message], [said], began)
            return
        may_ask = held or self.model.honours[message.kind]
        silence = partial(self._fall_silent, message, said, then) if may_ask else _hand_over_too_late
        self.carriers[message.kind].script = [silence]
        with suppress(DeadError):
            list(delivery.deliver(self.context, [charge]))
        self._compare_parcels([(charge.job_id, _recipients(delivery.outbound_message(charge)))])

    def _fall_silent(self, message: Message, said: Word, then: str, outbound: OutboundMessage) -> Receipt:
        """Take the message; its worker dies, or sleeps through the end of its lease, or until another has the job."""
        message.in_doubt |= not self.model.honours[message.kind]
        self._note_whom_it_reaches(message, _recipients(outbound))
        if then == "die":
            raise DeadError
        if then != "answer":
            self.clock.forward(PATIENCE.lease)
            self._sweep()
        if then == "lose" and message.state == "unknown":
            self._decide(message, "resend")
            self._claim({message.job_id: 0})
        return said.receipt(message.kind, _recipients(outbound))

    @precondition(lambda self: self._unknown())
    @rule(place=st.integers(0, 9), decision=st.sampled_from(["refund", "resend"]))
    def decide(self, place: int, decision: str) -> None:
        """A person decides about an unknown job. That the message may be sent twice then is known to them."""
        self._decide(self._unknown()[place % len(self._unknown())], decision)

    @precondition(lambda self: self.broker.sent)
    @rule(place=st.integers(0, 9), again=st.booleans(), said=st.lists(words, max_size=3))
    def resume(self, place: int, said: list[Word], *, again: bool) -> None:
        """A worker makes the next attempt of jobs that it was told of; perhaps it is told of them again."""
        kind, attempts = self._take(place, again=again)
        began = self.clock.now
        self._script(kind, said)
        sending.resume(self.context, attempts)
        self._deliver(self.model.claim(attempts, began), said, began)

    @rule(seconds=st.sampled_from([1, 10, 60, 300, 1000]))
    def let_time_pass(self, seconds: int) -> None:
        """Time passes, and then beat has the sweeper look."""
        self.clock.forward(timedelta(seconds=seconds))
        self._sweep()

    @precondition(lambda self: self.model.next_at())
    @rule(
        moments=st.sampled_from([1, 1, 6]),
        then=st.sampled_from(["work", "work", "die", "rest"]),
        said=st.lists(words, min_size=1, max_size=3),
    )
    def wait_for_the_next_moment(self, moments: int, then: str, said: list[Word]) -> None:
        """Time passes until a job is due or a lease ends; what is enqueued is perhaps taken up at once."""
        for _ in range(moments):
            self.clock.now = max(self.clock.now, self.model.next_at() or self.clock.now)
            for _ in self._sweep():
                if then == "work":
                    self.resume(-1, said, again=False)
                elif then == "die":
                    self.die_at_another_attempt(-1, again=False, twice=False)

    @rule(target=known, kind=kinds, sender=people, parts=st.lists(sizes, min_size=1, max_size=4))
    def send_many(self, kind: Kind, sender: str, parts: list[int]) -> SendMany:
        """Send a bulk job: an email to each, or a text to each that takes so many segments."""
        job_id = f"bulk-{next(self.numbers)}"
        bulk_job: SendMany
        if kind == "email":
            readers = [EmailRecipient(to=f"reader-{place}@example.org") for place, _ in enumerate(parts)]
            bulk_job = SendManyEmails(job_id=job_id, sender=sender, recipients=readers, subject="News", text="None.")
        else:
            callers = [SmsRecipient(to="+31612345678", values={"text": _text(size)}) for size in parts]
            bulk_job = SendManySms(job_id=job_id, sender=sender, recipients=callers, text="{{text}}")
        self._send_many(bulk_job)
        return bulk_job

    # What must be true after each step.

    @invariant()
    def every_account_holds_what_the_model_says(self) -> None:
        """To the single move: amount, cause and order; refunds so went to who paid. No balance is below zero."""
        with self.database.snapshot() as connection:
            found = connection.execute(
                select(accounts.c.owner_id, accounts.c.kind, accounts.c.available).order_by(accounts.c.id)
            ).all()
            moves = connection.execute(
                select(accounts.c.owner_id, accounts.c.kind, entries.c.amount, entries.c.cause)
                .join(entries, entries.c.account_id == accounts.c.id)
                .order_by(entries.c.account_id, entries.c.seq)
            ).all()
        written: dict[tuple[str, Kind], list[tuple[int, str]]] = {(owner, kind): [] for owner, kind, _ in found}
        for owner, kind, amount, cause in moves:
            written[owner, kind].append((amount, cause))
        assert written == self.model.moves
        balances = {(owner, kind): available for owner, kind, available in found}
        assert balances == {account: self.model.balance(*account) for account in self.model.moves}
        assert min(balances.values()) >= 0

    @invariant()
    def every_job_stands_where_the_model_says(self) -> None:
        """Who paid, how much, how often it was tried, and until when it is left alone."""
        columns = [charges.c[name] for name in STANDING if name not in ("payer", "in_doubt")]
        payer, in_doubt = (
            accounts.c.owner_id.label("payer"),
            charges.c.handover_started_at.is_not(None).label("in_doubt"),
        )
        with self.database.snapshot() as connection:
            query = select(*columns, payer, in_doubt).outerjoin_from(charges, accounts)
            found = {row.job_id: row._asdict() for row in connection.execute(query)}
        assert found == {
            job_id: {name: getattr(message, name) for name in STANDING}
            for job_id, message in (self.model.messages | self.model.bulks).items()
        }

    @invariant()
    def nobody_gets_a_message_twice(self) -> None:
        """Whoever died when, and whoever came back; but those in doubt may, if a person decides so."""
        assert len(self.reached) == len(set(self.reached))

    @invariant()
    def everybody_has_the_owner_that_the_model_says(self) -> None:
        """And nobody else is there."""
        with self.database.snapshot() as connection:
            found = {row.id: row.credit_owner_id for row in connection.execute(select(users))}
        assert found == {name: person.owner for name, person in self.model.people.items()}

    @invariant()
    def an_audit_finds_nothing(self) -> None:
        """Every third time, for it is slow. The sweeper ran when it was due, so no lease is stale either."""
        if next(self.steps) % 3 == 0:
            with self.database.snapshot() as connection:
                assert audit_everything(connection, self.swept_at) == []

    @invariant()
    def a_viewer_sees_what_is_charged_now(self) -> None:
        """Every third time another viewer: in the pool that they spend from, and of their own messages."""
        if next(self.looks) % 3:
            return
        viewer = next(self.viewers)
        with self.database.snapshot() as connection:
            pool = _answer(partial(show_usage, connection, ViewUsage(viewer=viewer)))
            own = _answer(partial(show_usage, connection, ViewUsage(viewer=viewer, of="self")))
        if viewer not in self.model.people:
            assert pool == own == "unknown_user"
            return
        owner = self.model.people[viewer].owner
        paid = {kind: self.model.charged_now(kind, payer=owner) for kind in KINDS}
        _same(pool, {"owner": owner, "total": paid})
        _same(own, {"total": {kind: self.model.charged_now(kind, sender=viewer) for kind in KINDS}})

    # How it is done.

    def _write(self, kind: Kind, drafts: list[tuple[str, int]]) -> list[SendOne]:
        """New jobs of these senders and sizes."""
        return [_job(f"job-{next(self.numbers)}", kind, sender, size) for sender, size in drafts]

    def _send(self, jobs: Sequence[SendOne], said: Sequence[Word]) -> None:
        began = self.clock.now
        kind = jobs[0].kind
        self._script(kind, said)
        answered = send(self.context, _task(jobs[0]), jobs)
        self._deliver([message for message in map(_message, jobs) if self.model.charge(message, began)], said, began)
        stand = [self.model.messages[job.job_id or ""] for job in jobs]
        assert [(charge.job_id, wire_status(charge.state, charge.attempts), charge.payer) for charge in answered] == [
            (message.job_id, message.status, message.payer) for message in stand
        ]

    def _purchase(self, order: Purchase) -> None:
        _same(_answer(partial(billing.purchase, self.context, order)), self.model.purchase(order))

    def _set_owner(self, change: SetOwner) -> None:
        _same(_answer(partial(billing.set_owner, self.context, change)), self.model.set_owner(change))

    def _send_many(self, bulk_job: SendMany) -> None:
        known = list(self.broker.sent)
        answer = bulk.send_many(self.context, f"{_kind(bulk_job)}.send_many", bulk_job)
        messages = [_message(one, f"{bulk_job.job_id}/{place}") for place, one in enumerate(messages_of(bulk_job))]
        cost = {message.job_id: message.credits for message in messages}
        whole = Message(bulk_job.job_id or "", _kind(bulk_job), bulk_job.sender, cost)
        is_new = self.model.charge_bulk(whole, messages, self.clock.now)
        enqueued = [(f"{whole.kind}.resume", {"attempts": dict.fromkeys(cost, 0)})]
        assert self.broker.sent == known + (enqueued if is_new else [])
        assert {name: answer[name] for name in ("status", "reason", "paid_by", "credits")} == self.model.bulk_answer(
            whole.job_id
        )

    def _sweep(self) -> list[tuple[str, dict[str, Any]]]:
        """Have the sweeper look; what it enqueues."""
        known = list(self.broker.sent)
        upkeep.sweep(self.context)
        self.swept_at = self.clock.now
        enqueued = self.model.sweep(self.clock.now)
        for message in self.model.messages.values():
            if message.state == "waiting" and not message.due_at and not message.never_begun:
                message.due_at = self._drawn_due_at(message, self.clock.now)
        assert self.broker.sent == known + enqueued
        return enqueued

    def _claim(self, attempts: Mapping[str, int], times: int = 1) -> None:
        """Begin the next attempt of jobs for a worker that is not heard of for a while."""
        lease_until, lease_id = self.clock.now + PATIENCE.lease, f"worker-{next(self.numbers)}"
        for _ in range(times):
            claimed = self.database.write(
                lambda connection: claim_jobs(connection, attempts, lease_id=lease_id, lease_until=lease_until)
            )
        expected = self.model.claim(attempts, self.clock.now, lease_id)
        assert [charge.job_id for charge in claimed] == [message.job_id for message in expected]
        self.lost += claimed

    def _decide(self, message: Message, decision: str) -> None:
        """Refund or resend what is unknown; a second time nothing happens."""
        act = refund_unknown if decision == "refund" else resend_unknown
        for count in (1, 0):
            decided = self.database.write(
                lambda connection: act(connection, [message.job_id], operator="ops", now=self.clock.now)
            )
            assert len(decided) == count
        self.model.decide(message, decision, self.clock.now)
        self.reached = [one for one in self.reached if one[0] != message.job_id or message.fate[one[1]] == "taken"]

    def _unknown(self) -> list[Message]:
        return [message for message in self.model.messages.values() if message.state == "unknown"]

    def _take(self, place: int, *, again: bool) -> tuple[Kind, dict[str, int]]:
        """One of the resume messages that wait, which stays there if it will come `again`."""
        place %= len(self.broker.sent)
        task, given = self.broker.sent[place]
        if not again:
            del self.broker.sent[place]
        return task.removesuffix(".resume"), given["attempts"]

    def _script(self, kind: Kind, said: Sequence[Word]) -> None:
        self.carriers[kind].script = [partial(word.say, self.clock) for word in said]

    def _note_whom_it_reaches(self, message: Message, recipients: Sequence[str]) -> None:
        """Count who may have it now; not where the carrier knows by the job's id what it has had."""
        if not self.model.honours[message.kind]:
            self.reached += [(message.job_id, recipient) for recipient in recipients]

    def _deliver(self, held: Sequence[Message], said: Sequence[Word], began: datetime) -> None:
        """Let the model go through the attempts that one worker has made."""
        now, messages = began, []
        for place, message in enumerate(held):
            if place and now > began + PATIENCE.start_window:
                for rest in held[place:]:
                    self.model.hand_back(rest, now)
                break
            word = said[place] if place < len(said) else Word()
            now += word.takes
            pending = message.having("pending")
            messages.append((message.job_id, pending))
            receipt = word.receipt(message.kind, pending)
            if receipt.outcome in (Outcome.ACCEPTED, Outcome.UNSURE):
                got_it = [one for one in pending if one not in receipt.refused and one not in receipt.deferred]
                self._note_whom_it_reaches(message, got_it)
            self.model.settle(message, receipt)
            if message.state == "waiting":
                message.due_at = self._drawn_due_at(message, now)
        assert self.clock.now == now
        self._compare_parcels(messages)

    def _drawn_due_at(self, message: Message, now: datetime) -> datetime | None:
        with self.database.snapshot() as connection:
            due_at = find_charges(connection, [message.job_id])[message.job_id].due_at
        shortest, longest = (PATIENCE.delay(message.attempts, draw) for draw in (0, 1))
        assert due_at
        assert now + shortest <= due_at <= now + longest
        return due_at

    def _compare_parcels(self, expected: list[tuple[str, list[str]]]) -> None:
        """The carriers got these messages in this step, and no other."""
        for carrier in self.carriers.values():
            carrier.script.clear()
        messages = [message for carrier in self.carriers.values() for message in carrier.messages]
        assert [(message.job_id, _recipients(message)) for message in messages] == expected
        for carrier in self.carriers.values():
            carrier.messages.clear()


def _answer(command: Callable[[], dict[str, Any]]) -> Answer:
    try:
        return command()
    except Refused as why:
        return why.reason


def _same(answer: Answer, expected: Answer) -> None:
    """A refusal for this reason, or an answer with these fields."""
    assert isinstance(answer, dict) == isinstance(expected, dict), f"{answer} instead of {expected}"
    if isinstance(answer, dict):
        answer = {name: answer[name] for name in expected}
    assert answer == expected


def _text(segments: int) -> str:
    return "a" * (160 if segments == 1 else 153 * segments)


def _job(job_id: str, kind: Kind, sender: str, size: int) -> SendOne:
    """An email to so many recipients, or a text of so many segments."""
    if kind == "sms":
        return SendSms(job_id=job_id, sender=sender, to="+31612345678", text=_text(size))
    to = [f"reader-{place}@example.org" for place in range(size)]
    return SendEmail(job_id=job_id, sender=sender, to=to, subject="News", text="There is none.")


def _message(job: SendOne, job_id: str | None = None) -> Message:
    cost = {job.to: cost_of(job)} if isinstance(job, SendSms) else dict.fromkeys(job.recipients(), 1)
    return Message(job_id or job.job_id or "", job.kind, job.sender, cost)


def _kind(bulk_job: SendMany) -> Kind:
    return "sms" if isinstance(bulk_job, SendManySms) else "email"


def _task(job: SendOne) -> str:
    return f"{job.kind}.send"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield
    structlog.contextvars.clear_contextvars()


@pytest.mark.timeout(600)
def test_any_history_leaves_the_money_where_the_model_says_on_sqlite(migrated_sqlite: Path, tmp_path: Path) -> None:
    run(Money, lambda: fresh_sqlite(migrated_sqlite, tmp_path / "money.db", pool_size=1), 10)


@pytest.mark.timeout(600)
def test_any_history_leaves_the_money_where_the_model_says_on_postgresql(migrated_postgres: PostgresServer) -> None:
    run(Money, lambda: fresh_postgres(migrated_postgres, pool_size=1), 3)
