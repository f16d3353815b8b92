"""Credit owners change while users send: every message has one payer, who was the sender's owner at that moment.

Every process notes when each of its calls began and ended; the monotonic clock is the same for all of them. A call took
effect somewhere in between. A payer is right if the sender may have had that owner at some moment of the call.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from sqlalchemy import select

from models.database.schema import owner_changes, users
from models.errors import Refused
from models.messages.billing import SetOwner
from tasks import billing
from tasks.context import Context
from tests.fakes import send
from tests.races.racing import Start, buy, email_from, findings, race, save_users, states, worker

PEOPLE = [f"user-{number}" for number in range(10)]
ADMINS = ["ada", "bob"]
CHANGES, CHANGERS = 100, 2
SENDS, SENDERS = 2_000, 4
LONGEST_PAUSE_S = 0.15
ROUNDS = 100


@dataclass(frozen=True)
class Call:
    """A call that sent a message of `user`, which `owner` paid, at some moment between `began` and `ended`."""

    began: float
    ended: float
    user: str
    owner: str | None


@dataclass(frozen=True)
class Change(Call):
    """A call that made `owner` the user's credit owner in place of `old_owner`."""

    change_id: str
    old_owner: str = ""


@dataclass(frozen=True)
class Tenure:
    """The longest time for which `owner` may have been a user's credit owner."""

    owner: str | None
    since: float
    until: float

    def may_have_met(self, call: Call) -> bool:
        """Whether the owner may have been the owner at some moment of the call."""
        return self.since <= call.ended and call.began <= self.until


@pytest.mark.timeout(600)
def test_every_message_is_paid_by_the_owner_at_that_moment(postgres_url: str) -> None:
    """Two processes try 100 changes, many of which are refused, while four processes send 2,000 messages."""
    with worker(postgres_url) as context:
        save_users(context, *ADMINS, *PEOPLE)
        for person in PEOPLE:
            buy(context, person, email=SENDS)

        ended = race(
            *((_change_at_random, postgres_url, number) for number in range(CHANGERS)),
            *((_send_at_random, postgres_url, number) for number in range(SENDERS)),
        )

        assert states(context) == {("sent", None): SENDS}
        assert findings(context) == []
        owners, old_owners = _owners(context), _old_owners(context)
    changes = [outcome for outcomes in ended[:CHANGERS] for outcome in outcomes]
    refused = Counter(outcome for outcome in changes if isinstance(outcome, str))
    made = [replace(change, old_owner=old_owners[change.change_id]) for change in changes if isinstance(change, Change)]
    assert len(changes) == CHANGES
    assert set(refused) == {"owner_is_credit_user", "user_has_credit_users"}
    assert len(made) == len(old_owners) == CHANGES - refused.total()
    assert [owner for owner in owners.values() if owners[owner] != owner] == [], "there is a chain or a cycle"
    tenures = {person: _tenures(person, [change for change in made if change.user == person]) for person in PEOPLE}
    assert {person: tenures[person][-1].owner for person in PEOPLE} == {person: owners[person] for person in PEOPLE}
    calls = [call for calls in ended[CHANGERS:] for call in calls]
    assert len(calls) == SENDS
    assert [call for call in calls if not _paid_by_an_owner(call, tenures[call.user])] == []
    assert any(call.owner != call.user for call in calls)


@pytest.mark.timeout(600)
def test_exactly_one_of_two_opposing_changes_is_made(database_url: str) -> None:
    """Two users choose each other as credit owner at the same moment, a hundred times."""
    with worker(database_url) as context:
        save_users(context, "ada", "bob")

        ada, bob = race((_choose, database_url, "ada", "bob"), (_choose, database_url, "bob", "ada"))

        assert findings(context) == []
        assert _owners(context) == {"ada": "ada", "bob": "bob"}
    assert [sorted(pair) for pair in zip(ada, bob, strict=True)] == [["done", "owner_is_credit_user"]] * ROUNDS


def _choose(start: Start, url: str, user: str, owner: str) -> list[str]:
    """Choose `owner` and undo the choice, once in every round. Returns how each choice ended."""
    with worker(url) as context:

        def change_to(owner: str, change_id: str) -> str:
            try:
                change = SetOwner(change_id=change_id, actor=user, user=user, owner=owner)
                return str(billing.set_owner(context, change)["status"])
            except Refused as refused:
                return refused.reason

        ended = []
        for number in range(ROUNDS):
            start()
            ended.append(change_to(owner, f"{user}-{number}"))
            start()
            assert change_to(user, f"{user}-{number}-back") == "done"
        return ended


def _change_at_random(start: Start, url: str, number: int) -> list[Change | str]:
    """Change owners, with pauses. Returns the changes that were made, and the reasons why others were refused."""
    draw = random.Random(number)
    ended: list[Change | str] = []
    with worker(url) as context:
        start()
        for change_number in range(CHANGES // CHANGERS):
            time.sleep(draw.uniform(0, LONGEST_PAUSE_S))
            user = draw.choice(PEOPLE)
            owner = user if draw.random() < 0.3 else draw.choice(PEOPLE)
            change_id = f"change-{number}-{change_number}"
            began = time.monotonic()
            try:
                billing.set_owner(context, SetOwner(change_id=change_id, actor=ADMINS[number], user=user, owner=owner))
            except Refused as refused:
                ended.append(str(refused.reason))
            else:
                ended.append(Change(began, time.monotonic(), user, owner, change_id))
    return ended


def _send_at_random(start: Start, url: str, number: int) -> list[Call]:
    """Send messages of any user. Returns the calls."""
    draw = random.Random(100 + number)
    emails = [email_from(f"job-{number}-{place}", draw.choice(PEOPLE)) for place in range(SENDS // SENDERS)]
    calls = []
    with worker(url) as context:
        start()
        for email in emails:
            began = time.monotonic()
            [charge] = send(context, [email])
            calls.append(Call(began, time.monotonic(), email.sender, charge.payer))
    return calls


def _owners(context: Context) -> dict[str, str]:
    with context.database.snapshot() as connection:
        return {row.id: row.credit_owner_id for row in connection.execute(select(users))}


def _old_owners(context: Context) -> dict[str, str]:
    """Give the owner whom each change has replaced."""
    with context.database.snapshot() as connection:
        return {row.change_id: row.old_owner_id for row in connection.execute(select(owner_changes))}


def _tenures(user: str, changes: Sequence[Change]) -> list[Tenure]:
    """Give the owners of the credits that `user` spent, one after the other."""
    in_order = _in_order(user, changes)
    assert in_order is not None, f"the changes of {user} do not follow from one another: {changes}"
    start = Call(-math.inf, -math.inf, user, user)
    end = Call(math.inf, math.inf, user, None)
    return [Tenure(call.owner, call.began, later.ended) for call, later in pairwise([start, *in_order, end])]


def _in_order(owner: str | None, changes: Sequence[Change]) -> list[Change] | None:
    """Give the changes in an order in which they may have been made while `owner` was the owner; None if there is none.

    Each change replaces the owner that the change before it has set. No change ended before an earlier one began.
    """
    if not changes:
        return []
    first_to_end = min(change.ended for change in changes)
    for change in changes:
        if change.old_owner == owner and change.began <= first_to_end:
            later = _in_order(change.owner, [other for other in changes if other is not change])
            if later is not None:
                return [change, *later]
    return None


def _paid_by_an_owner(call: Call, tenures: Sequence[Tenure]) -> bool:
    return any(tenure.owner == call.owner and tenure.may_have_met(call) for tenure in tenures)
