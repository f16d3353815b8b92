"""The specification of money: who owns whose credits, every move of credits, and the state of every job.

This is plain Python without a database. A state machine tells the `Model` what it does to a real database, and compares
the two after each step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from models.messages.billing import Credits, Purchase, SaveUser, SetOwner
from models.messages.fields import KINDS, Kind
from models.sends.carrier import Outcome, Receipt
from models.sends.outcomes import CRASHES_MAX
from models.sends.retry_policy import RetryPolicy

POLICY = RetryPolicy(attempts_max=2, base_s=10, max_s=60, lease_s=300)
LOOK_AGAIN = timedelta(seconds=60)
"""After this time a sweep enqueues a due job again, if no worker has begun with it."""
PLAN = Credits(email=3, sms=2)
"""What the one plan that there is contains."""

Fate = Literal["pending", "reached", "given_up"]
"""What became of one recipient of a message."""
Answer = dict[str, Any] | str
"""What a command answers, or the reason why it refuses."""


@dataclass
class Person:
    """A user who was saved."""

    organization: str
    role: str
    owner: str
    billing: bool


@dataclass
class Message:
    """One send job: what each recipient costs, and what became of them."""

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
        return self.state

    def recipients_with(self, fate: Fate) -> list[str]:
        """The recipients who have that fate."""
        return [recipient for recipient, its_fate in self.fate.items() if its_fate == fate]

    def is_leased_to(self, lease_id: str | None) -> bool:
        """Whether the job is being sent under this lease."""
        return self.state == "sending" and self.lease_id == lease_id

    def wait(self, due_at: datetime | None) -> None:
        """Release the job; it will be tried again."""
        self.state, self.lease_until, self.due_at = "waiting", None, due_at

    def end(self, state: str, reason: str | None) -> None:
        """End the job; it is never tried again by itself."""
        self.state, self.reason, self.lease_until, self.due_at = state, reason, None, None
        self.in_doubt = state == "unknown"


class Model:
    """The users, their credit owners, all moves of credits, and the state of every job."""

    def __init__(self) -> None:
        self.people: dict[str, Person] = {}
        self.moves: dict[tuple[str, Kind], list[tuple[int, str]]] = {}
        self.messages: dict[str, Message] = {}
        self.bulks: dict[str, Message] = {}
        self.orders: dict[str, tuple[Purchase, Answer]] = {}
        self.changes: dict[str, tuple[SetOwner, Answer]] = {}
        self.is_idempotent: dict[Kind, bool] = dict.fromkeys(KINDS, False)
        """Whether the carrier of a kind recognizes the id of a job that it has had before."""
        self.policy = POLICY

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
        """The credits go to the buyer's owner. An order that was made stays as it was."""
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

    def set_owner(self, change: SetOwner) -> Answer:  # noqa: PLR0911  one return for each rule
        """Sharing is one level deep, in one organization, and needs both rights. A change is made only once."""
        if change.change_id in self.changes:
            made, answer = self.changes[change.change_id]
            return answer if made == change else "conflicting_job"
        involved = [self.people.get(name) for name in (change.actor, change.user, change.owner)]
        actor, user, owner = involved
        if actor is None or user is None or owner is None:
            return "unknown_user"
        if len({person.organization for person in involved if person}) > 1:
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
        """Charge a message to the sender's owner if its id is new. Returns whether it is to be delivered now."""
        if message.job_id in self.messages:
            return False
        self.messages[message.job_id] = message
        reason = self._refusal(message.sender, message.kind, message.credits)
        if reason:
            message.attempts = 0
            message.end("refused", reason)
            return False
        self._pay(message)
        message.lease_id, message.lease_until = lease_id, now + POLICY.lease
        return True

    def charge_bulk(self, bulk: Message, messages: Sequence[Message], now: datetime) -> bool:
        """Charge all messages of a bulk job, or none. Returns whether they are to be sent now."""
        if bulk.job_id in self.bulks:
            return False
        self.bulks[bulk.job_id] = bulk
        bulk.attempts = 0
        reason = self._refusal(bulk.sender, bulk.kind, bulk.credits)
        bulk.end("refused" if reason else "bulk", reason)
        if reason:
            return False
        bulk.due_at = now + LOOK_AGAIN
        payer = self.people[bulk.sender].owner
        self.moves[payer, bulk.kind].append((-bulk.credits, f"charge:{bulk.job_id}"))
        for message in messages:
            self.messages[message.job_id] = message
            message.attempts, message.payer = 0, payer
            message.wait(None)
        return True

    def bulk_answer(self, job_id: str) -> dict[str, Any]:
        """The answer to a bulk job, which sums up its messages."""
        bulk = self.bulks[job_id]
        parts = [self.messages[part] for part in bulk.cost if part in self.messages]
        statuses = {part.status for part in parts} or {"refused"}
        order = ("refused", "sending", "retrying", "unknown", "sent", "failed")
        status = next(candidate for candidate in order if candidate in statuses)
        return {
            "status": "sending" if status == "retrying" else status,
            "reason": bulk.reason,
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
        """Begin the next attempt of jobs that wait and have had as many attempts as `attempts` says."""
        asked = [(self.messages[job_id], attempts[job_id]) for job_id in sorted(attempts)]
        claimed = [message for message, had in asked if message.state == "waiting" and message.attempts == had]
        for message in claimed:
            message.state, message.due_at, message.lease_until = "sending", None, now + POLICY.lease
            message.attempts += 1
            message.lease_id = lease_id
        return claimed

    def hand_back(self, message: Message, now: datetime) -> None:
        """Give up an attempt for which there was no time. It does not count."""
        message.attempts -= 1
        message.wait(now)

    def settle(self, message: Message, receipt: Receipt) -> None:
        """Settle an attempt as its receipt says, but for when the next is due: the ledger draws that at random."""
        is_last = self.policy.is_exhausted(message.attempts)
        outcome = receipt.outcome
        message.fate |= dict.fromkeys(receipt.refused, "given_up")
        if outcome is Outcome.ACCEPTED:
            pending = message.recipients_with("pending")
            message.fate |= {recipient: "reached" for recipient in pending if recipient not in receipt.deferred}
        if outcome is Outcome.UNSURE and not (self.is_idempotent[message.kind] and not is_last):
            return message.end("unknown", None)
        if outcome is Outcome.NOT_NOW and is_last and message.in_doubt:
            return message.end("unknown", None)
        if not is_last and outcome is not Outcome.NEVER and message.recipients_with("pending"):
            message.in_doubt |= outcome is Outcome.UNSURE
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
        if message.refunded and message.payer:
            self.moves[message.payer, message.kind].append((message.refunded, f"refund:{message.job_id}"))

    def sweep(self, now: datetime) -> list[tuple[str, dict[str, Any]]]:
        """End attempts whose lease is over, and enqueue what is due. Returns what was enqueued, as (task, object).

        Many jobs go in one task message, but a job that a worker has crashed over goes alone.
        """
        for _, message in sorted(self.messages.items()):
            if message.lease_until and message.lease_until <= now:
                self._end_after_crash(message)
        due = [message for _, message in sorted(self.messages.items()) if message.due_at and message.due_at <= now]
        for message in due:
            message.due_at = now + LOOK_AGAIN
        alone = [[message] for kind in KINDS for message in due if message.kind == kind and message.crashes]
        grouped = [[message for message in due if message.kind == kind and not message.crashes] for kind in KINDS]
        never_begun = self._never_begun(now)
        of_bulks = [[message for message in never_begun if message.kind == kind] for kind in KINDS]
        return [
            (f"{group[0].kind}.resume", {"attempts": {message.job_id: message.attempts for message in group}})
            for group in grouped + alone + of_bulks
            if group
        ]

    def _never_begun(self, now: datetime) -> list[Message]:
        """The messages of due bulk jobs that were never begun. A bulk job that has none left is not due any more."""
        never_begun = []
        for bulk in self.bulks.values():
            if bulk.due_at and bulk.due_at <= now:
                messages = [self.messages[job_id] for job_id in bulk.cost if self.messages[job_id].never_begun]
                bulk.due_at = now + LOOK_AGAIN if messages else None
                never_begun += messages
        return sorted(never_begun, key=lambda message: message.job_id)

    def _end_after_crash(self, message: Message) -> None:
        """End an attempt whose worker crashed. The job is tried again a few times if that does no harm."""
        message.crashes += 1
        message.reason = None
        message.in_doubt |= self.is_idempotent[message.kind]
        tried_enough = message.crashes >= CRASHES_MAX or self.policy.is_exhausted(message.attempts)
        if message.in_doubt and (tried_enough or not self.is_idempotent[message.kind]):
            message.end("unknown", None)
        elif tried_enough:
            self._give_up(message, "carrier_unavailable")
        else:
            message.wait(None)

    def decide(self, message: Message, decision: str, now: datetime) -> None:
        """Carry out what a person decided about an unknown message: it is given up, or begins anew."""
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
        """What messages cost without what was refunded: of those that `payer` paid, or that `sender` sent."""
        return sum(
            message.credits - message.refunded
            for message in self.messages.values()
            if message.kind == kind and message.payer and (message.payer == payer or message.sender == sender)
        )
