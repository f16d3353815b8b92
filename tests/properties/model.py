"""The specification of money: who owns whose credits, every move of credits, and the state of every job.

This is plain Python without a database. A state machine tells the `Model` what it does to a real database, and compares
the two after each step.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from models.messages.billing import Credits, Purchase, SaveUser, SetOwner
from models.messages.fields import KINDS, Kind
from models.sends.carrier import Outcome, Receipt
from models.sends.charges import JobKey
from models.sends.outcomes import CRASHES_MAX
from models.sends.retry_policy import RetryPolicy

POLICY = RetryPolicy(attempts_max=2, base_s=10, max_s=60, lease_s=300)
LOOK_AGAIN = timedelta(seconds=60)
"""After this time a sweep enqueues a due job again, if no worker has begun with it."""
PLAN = Credits(email=3, sms=2)
"""What the one plan that there is contains."""
NOBODYS, ORGANIZATIONS = 0, {"north": 1, "south": 2}
"""The numbers of the organizations, in the order in which they are saved. Jobs of strangers are nobody's."""

Fate = Literal["pending", "reached", "given_up"]
"""What became of one recipient of a message."""
Answer = dict[str, Any] | str
"""What a command answers, or the reason why it refuses."""


class Move(NamedTuple):
    """What one transaction does to one account for one cause, and the part of each job or order in it."""

    amount: int
    cause_kind: str
    parts: dict[str, int]


class Part(NamedTuple):
    """Credits into or out of an account for one job or order."""

    owner: str
    kind: Kind
    job_id: str
    amount: int


@dataclass
class Person:
    """A user who was saved."""

    organization: str
    role: str
    owner: str
    billing: bool
    owner_version: int = 0

    @property
    def org_id(self) -> int:
        """The number of their organization."""
        return ORGANIZATIONS[self.organization]


@dataclass
class Message:
    """One send job: what each recipient costs, and what became of them."""

    job_id: str
    kind: Kind
    sender: str
    cost: dict[str, int]
    org_id: int = NOBODYS
    state: str = "sending"
    reason: str | None = None
    payer: str | None = None
    owner_version: int | None = None
    attempts: int = 1
    crashes: int = 0
    lease_id: str | None = None
    in_doubt: bool = False
    handed_over: bool = False
    """Whether a carrier may have it from the attempt that runs."""
    was_resent: bool = False
    lease_until: datetime | None = None
    due_at: datetime | None = None
    fate: dict[str, Fate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fate = dict.fromkeys(self.cost, "pending")

    @property
    def key(self) -> JobKey:
        """Its id in its sender's organization."""
        return JobKey(self.org_id, self.job_id)

    @property
    def credits(self) -> int:
        """What the message costs."""
        return sum(self.cost.values())

    @property
    def refunded(self) -> int:
        """What went back: once the message is final, the cost of the recipients who will never get it."""
        is_final = self.state in ("sent", "failed")
        return sum(self.cost[recipient] for recipient in self.recipients_with("given_up")) if is_final else 0

    @property
    def never_begun(self) -> bool:
        """Whether it waits for its first attempt, as messages of a bulk job do: their bulk job is due, not they."""
        return self.state == "waiting" and not self.attempts and not self.due_at

    @property
    def status(self) -> str:
        """The status that an answer gives."""
        if self.state == "waiting":
            return "retrying" if self.attempts else "sending"
        return "refused" if self.reason == "cancelled" else self.state

    def recipients_with(self, fate: Fate) -> list[str]:
        """The recipients who have that fate."""
        return [recipient for recipient, its_fate in self.fate.items() if its_fate == fate]

    def is_leased_to(self, lease_id: str | None) -> bool:
        """Whether the job is being sent under this lease."""
        return self.state == "sending" and self.lease_id == lease_id

    def wait(self, due_at: datetime | None) -> None:
        """Release the job; it will be tried again."""
        self.state, self.lease_until, self.due_at, self.handed_over = "waiting", None, due_at, False

    def end(self, state: str, reason: str | None) -> None:
        """End the job; it is never tried again by itself."""
        self.state, self.reason, self.lease_until, self.due_at = state, reason, None, None
        self.in_doubt, self.handed_over = state == "unknown", False


class Model:
    """The users, their credit owners, all moves of credits, and the state of every job."""

    def __init__(self) -> None:
        self.people: dict[str, Person] = {}
        self.moves: dict[tuple[str, Kind], list[Move]] = {}
        self.messages: dict[JobKey, Message] = {}
        self.bulks: dict[JobKey, Message] = {}
        self.orders: dict[JobKey, tuple[Purchase, Answer]] = {}
        self.changes: dict[JobKey, tuple[SetOwner, Answer]] = {}
        self.is_idempotent: dict[Kind, bool] = dict.fromkeys(KINDS, False)
        """Whether the carrier of a kind recognizes the id of a job that it has had before."""
        self.policy = POLICY

    def balance(self, owner: str, kind: Kind) -> int:
        """What is left in an account: the sum of its moves."""
        return sum(move.amount for move in self.moves[owner, kind])

    def _post(self, cause_kind: str, parts: Iterable[Part]) -> None:
        """Make one move an account for all its parts."""
        by_account: defaultdict[tuple[str, Kind], dict[str, int]] = defaultdict(dict)
        for part in parts:
            by_account[part.owner, part.kind][part.job_id] = part.amount
        for account, amounts in by_account.items():
            self.moves[account].append(Move(sum(amounts.values()), cause_kind, amounts))

    def save_user(self, user: SaveUser) -> str | None:
        """A new user is their own owner. Nobody changes their organization."""
        known = self.people.get(user.user_id)
        if known is None:
            made = Person(user.organization, user.role, user.user_id, bool(user.billing))
            self.people[user.user_id] = made
            self.moves |= {(user.user_id, kind): [Move(0, "opening", {})] for kind in KINDS}
            for jobs in (self.messages, self.bulks):
                self._adopt_refused(jobs, user.user_id, made.org_id)
            return None
        if known.organization != user.organization:
            return "other_organization"
        known.role, known.billing = user.role, known.billing or bool(user.billing)
        return None

    @staticmethod
    def _adopt_refused(jobs: dict[JobKey, Message], sender: str, org_id: int) -> None:
        """What was refused to a stranger stays refused in their organization, unless another job has the id there."""
        refused = [job for job in jobs.values() if job.sender == sender and job.org_id == NOBODYS]
        for job in refused:
            if JobKey(org_id, job.job_id) not in jobs:
                del jobs[job.key]
                job.org_id = org_id
                jobs[job.key] = job

    def purchase(self, order: Purchase) -> Answer:
        """The credits go to the buyer's owner. An order that was made stays as it was."""
        buyer = self.people.get(order.buyer)
        if buyer is None:
            return "unknown_user"
        key = JobKey(buyer.org_id, order.order_id)
        if key in self.orders:
            made, answer = self.orders[key]
            return answer if made == order else "conflicting_job"
        if order.credit_to == "self" and buyer.owner != order.buyer:
            return "purchase_for_self_while_sharing"
        if order.plan == "none":
            return "unknown_plan"
        if not (order.billing or buyer.billing):
            return "billing_information_missing"
        bought = order.credits or PLAN
        parts = [Part(buyer.owner, kind, order.order_id, bought.of(kind)) for kind in KINDS if bought.of(kind)]
        self._post("purchase", parts)
        answer = {
            "status": "done",
            "buyer": order.buyer,
            "owner": buyer.owner,
            "credits": {kind: bought.of(kind) for kind in KINDS},
        }
        self.orders[key] = order, answer
        return answer

    def set_owner(self, change: SetOwner) -> Answer:  # noqa: PLR0911  one return for each rule
        """Sharing is one level deep, in one organization, and needs both rights. A change is made only once.

        Somebody without the rights learns nothing: neither which ids were used, nor which users there are.
        """
        actor, user, owner = (self.people.get(name) for name in (change.actor, change.user, change.owner))
        if actor is None:
            return "unknown_user"
        key = JobKey(actor.org_id, change.change_id)
        made, answer = self.changes.get(key, (None, {}))
        if made == change:
            return answer
        if actor.role != "admin":
            return "not_permitted"
        if made is not None:
            return "conflicting_job"
        if user is None or owner is None:
            return "unknown_user"
        if not actor.organization == user.organization == owner.organization:
            return "other_organization"
        if change.user != change.owner:
            if owner.owner != change.owner:
                return "owner_is_credit_user"
            if any(other.owner == change.user for name, other in self.people.items() if name != change.user):
                return "user_has_credit_users"
        user.owner, user.owner_version = change.owner, user.owner_version + 1
        answer = {"status": "done", "user": change.user, "owner": change.owner}
        self.changes[key] = change, answer
        return answer

    def charge(self, messages: Sequence[Message], now: datetime, lease_id: str | None = None) -> list[Message]:
        """Charge a batch to the senders' owners, each message if its id is new. Returns those that are to be delivered.

        All is one transaction, which moves an account once. What a balance can pay is decided in the order of the jobs.
        """
        charged: list[Message] = []
        for message in messages:
            reason = self._refusal(message, meanwhile=charged)
            if reason:
                message.attempts = 0
                message.end("refused", reason)
            if message.key in self.messages:
                continue
            self.messages[message.key] = message
            if not reason:
                self._pay(message)
                message.lease_id, message.lease_until = lease_id, now + POLICY.lease
                charged.append(message)
        self._post("charge", map(_cost, charged))
        return charged

    def charge_bulk(self, bulk: Message, messages: Sequence[Message], now: datetime) -> bool:
        """Charge all messages of a bulk job, or none. Returns whether they are to be sent now."""
        reason = self._refusal(bulk)
        bulk.attempts = 0
        bulk.end("refused" if reason else "bulk", reason)
        if bulk.key in self.bulks:
            return False
        self.bulks[bulk.key] = bulk
        if reason:
            return False
        bulk.due_at = now + LOOK_AGAIN
        for message in messages:
            message.org_id, message.attempts = bulk.org_id, 0
            self.messages[message.key] = message
            self._pay(message)
            message.wait(None)
        self._post("charge", map(_cost, messages))
        return True

    def stands(self, message: Message) -> Message:
        """What stands under the id of a message that was to be charged. Each stranger is refused, whatever stands."""
        return self.messages[message.key] if message.org_id else message

    def knows(self, jobs: Mapping[JobKey, Message], sender: str, job_id: str | None) -> bool:
        """Whether a job stands under an id for a sender: in their organization, or their own if they are a stranger."""
        person = self.people.get(sender)
        known = jobs.get(JobKey(person.org_id if person else NOBODYS, job_id or ""))
        return known is not None and (person is not None or known.sender == sender)

    def is_taken(self, jobs: Mapping[JobKey, Message], sender: str, job_id: str | None) -> bool:
        """Whether another sender's job stands under an id in the organization of a sender."""
        person = self.people.get(sender)
        known = jobs.get(JobKey(person.org_id, job_id or "")) if person else None
        return known is not None and known.sender != sender

    def bulk_answer(self, job: Message) -> dict[str, Any]:
        """The answer to a bulk job, which sums up its messages."""
        bulk = self.bulks[job.key] if job.org_id else job
        parts = [] if bulk.state == "refused" else self._messages_of(bulk)
        statuses = {part.status for part in parts} or {"refused"}
        order = ("sending", "retrying", "unknown", "sent", "failed", "refused")
        status = next(candidate for candidate in order if candidate in statuses)
        return {
            "status": "sending" if status == "retrying" else status,
            "reason": bulk.reason,
            "paid_by": parts[0].payer if parts else None,
            "credits": sum(part.credits - part.refunded for part in parts),
        }

    def _messages_of(self, bulk: Message) -> list[Message]:
        return [self.messages[JobKey(bulk.org_id, job_id)] for job_id in bulk.cost]

    def _refusal(self, message: Message, meanwhile: Iterable[Message] = ()) -> str | None:
        """Why a message cannot be charged, after what is charged in the same transaction. Notes its organization."""
        sender = self.people.get(message.sender)
        if sender is None:
            return "unknown_user"
        message.org_id = sender.org_id
        spent = sum(other.credits for other in meanwhile if other.payer == sender.owner)
        left = self.balance(sender.owner, message.kind) - spent
        return "insufficient_credits" if left < message.credits else None

    def _pay(self, message: Message) -> None:
        sender = self.people[message.sender]
        message.payer, message.owner_version = sender.owner, sender.owner_version

    def claim(
        self, org_id: int, attempts: Mapping[str, int], now: datetime, lease_id: str | None = None
    ) -> list[Message]:
        """Begin the next attempt of jobs that wait and have had as many attempts as `attempts` says."""
        asked = [(self.messages[JobKey(org_id, job_id)], attempts[job_id]) for job_id in sorted(attempts)]
        claimed = [message for message, had in asked if message.state == "waiting" and message.attempts == had]
        for message in claimed:
            message.state, message.due_at, message.lease_until = "sending", None, now + POLICY.lease
            message.attempts += 1
            message.lease_id = lease_id
        return claimed

    def settle(self, message: Message, receipt: Receipt) -> None:
        """Settle an attempt as its receipt says, but for when the next is due: the ledger draws that at random.

        What it gives back goes back with what others of the same transaction do (`give_back`).
        """
        is_last = self.policy.is_exhausted(message.attempts)
        outcome = receipt.outcome
        if not message.in_doubt:  # otherwise they may have got it before
            message.fate |= dict.fromkeys(receipt.refused, "given_up")
        if outcome is Outcome.ACCEPTED:
            pending = message.recipients_with("pending")
            not_reached = {*receipt.refused, *receipt.deferred}
            message.fate |= {recipient: "reached" for recipient in pending if recipient not in not_reached}
            if message.in_doubt and not_reached:
                return message.end("unknown", None)
        in_doubt = outcome is not Outcome.ACCEPTED and (message.in_doubt or outcome is Outcome.UNSURE)
        if in_doubt and (is_last or not self.is_idempotent[message.kind]):
            return message.end("unknown", None)
        may_wait = in_doubt or outcome is not Outcome.NEVER
        if not is_last and may_wait and message.recipients_with("pending"):
            message.in_doubt = in_doubt
            message.reason = "carrier_unavailable"
            return message.wait(None)
        refused = "recipient_refused" if receipt.recipients_refused else "carrier_refused"
        return self._give_up(message, "carrier_unavailable" if outcome is Outcome.NOT_NOW else refused)

    def _give_up(self, message: Message, reason: str) -> None:
        """End a message for all pending recipients. Those whom it has reached stay charged."""
        message.fate |= dict.fromkeys(message.recipients_with("pending"), "given_up")
        if message.recipients_with("reached"):
            message.end("sent", "recipient_refused" if message.recipients_with("given_up") else None)
        else:
            message.fate = dict.fromkeys(message.fate, "given_up")
            message.end("failed", reason)

    def give_back(self, ended: Iterable[Message]) -> None:
        """Give back what messages do not cost now that they have ended, all in one transaction."""
        self._post("refund", [
            Part(message.payer, message.kind, message.job_id, message.refunded)
            for message in ended if message.refunded and message.payer
        ])  # fmt: skip

    def sweep(self, now: datetime) -> list[tuple[str, dict[str, Any]]]:
        """End attempts whose lease is over, and enqueue what is due. Returns what was enqueued, as (task, object).

        Many jobs go in one task message, but a job that a worker has crashed over goes alone.
        """
        orphaned = [message for message in self.messages.values() if message.lease_until and message.lease_until <= now]
        for message in orphaned:
            self._end_after_crash(message)
        self.give_back(orphaned)
        due = [message for message in self.messages.values() if message.due_at and message.due_at <= now]
        due.sort(key=lambda message: (message.kind, message.key))
        for message in due:
            message.due_at = now + LOOK_AGAIN
        return [
            *_resume_messages([message for message in due if not message.crashes]),
            *(enqueued for message in due if message.crashes for enqueued in _resume_messages([message])),
            *_resume_messages(self._never_begun(now)),
        ]

    def _never_begun(self, now: datetime) -> list[Message]:
        """The messages of due bulk jobs that were never begun. A bulk job that has none left is not due any more."""
        never_begun = []
        for bulk in self.bulks.values():
            if bulk.due_at and bulk.due_at <= now:
                messages = [message for message in self._messages_of(bulk) if message.never_begun]
                bulk.due_at = now + LOOK_AGAIN if messages else None
                never_begun += messages
        return sorted(never_begun, key=lambda message: message.key)

    def _end_after_crash(self, message: Message) -> None:
        """End an attempt whose worker crashed. The job is tried again a few times if that does no harm."""
        message.crashes += 1
        message.reason = None
        message.in_doubt |= message.handed_over
        tried_enough = message.crashes >= CRASHES_MAX or self.policy.is_exhausted(message.attempts)
        if message.in_doubt and (tried_enough or not self.is_idempotent[message.kind]):
            message.end("unknown", None)
        elif tried_enough:
            self._give_up(message, "carrier_unavailable")
        else:
            message.wait(None)

    def cancel(self, sender: str) -> Answer:
        """Give up what a sender has waiting and no carrier can have, in two transactions; the rest is too late."""
        person = self.people.get(sender)
        if person is None:
            return "unknown_user"
        its_own = [one for one in self.messages.values() if one.sender == sender and one.org_id == person.org_id]
        waiting = [one for one in its_own if one.state == "waiting" and not one.in_doubt and not one.was_resent]
        for group in ([one for one in waiting if one.due_at], [one for one in waiting if one.never_begun]):
            for message in group:
                self._give_up(message, "cancelled")
            self.give_back(group)
        cancelled = sum(one.state == "failed" for one in waiting)
        still_open = sum(one.state in ("waiting", "sending") for one in its_own)
        return {
            "status": "done",
            "cancelled": cancelled,
            "credits": sum(one.refunded for one in waiting),
            "too_late": still_open + len(waiting) - cancelled,
        }

    def decide(self, message: Message, decision: str, now: datetime) -> None:
        """Carry out what a person decided about an unknown message: it is given up, or begins anew."""
        if decision == "refund":
            self._give_up(message, "carrier_unavailable")
            message.reason = "carrier_unavailable"
            self.give_back([message])
            return
        message.attempts, message.crashes, message.lease_id, message.in_doubt = 0, 0, None, False
        message.reason, message.was_resent = None, True
        message.wait(now)

    def next_at(self) -> datetime | None:
        """When the next job is due, or the next lease ends."""
        jobs = [*self.messages.values(), *self.bulks.values()]
        moments = (moment for job in jobs for moment in (job.due_at, job.lease_until))
        return min((moment for moment in moments if moment), default=None)

    def charged_now(self, kind: Kind, *, payer: str | None = None, sender: str | None = None) -> int:
        """What messages cost without what was refunded: of those that `payer` paid, or that `sender` sent."""
        return sum(
            message.credits - message.refunded
            for message in self.messages.values()
            if message.kind == kind and message.payer and (message.payer == payer or message.sender == sender)
        )


def _cost(message: Message) -> Part:
    return Part(message.payer or "", message.kind, message.job_id, -message.credits)


def _resume_messages(messages: Sequence[Message]) -> list[tuple[str, dict[str, Any]]]:
    """What is enqueued to have jobs resumed, as (task, object): one for each kind and organization."""
    grouped: defaultdict[tuple[Kind, int], dict[str, int]] = defaultdict(dict)
    for message in messages:
        grouped[message.kind, message.org_id][message.job_id] = message.attempts
    return [
        (f"{kind}.resume", {"org_id": org_id, "attempts": attempts}) for (kind, org_id), attempts in grouped.items()
    ]
