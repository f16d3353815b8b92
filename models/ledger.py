"""The ledger: the only writer of a balance. Every move of credits is an entry, written with the balance it leaves.

Each function takes a sequence (one job is a batch of one), runs inside the caller's transaction, and neither commits,
logs nor calls out. Lock order everywhere: order, users by id, charges by job id, accounts by id. The accounts, which
everybody wants, come last and are held shortest.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Executable,
    String,
    Update,
    bindparam,
    case,
    func,
    select,
    true,
    update,
)

from models import charges as charging
from models.charges import Charge, Job, State
from models.database import insert_in
from models.errors import Reason
from models.fields import Kind
from models.rows import packed, unpacked
from models.tables import accounts, charges, entries
from models.users import Person, fence, unknown


@dataclass(frozen=True, slots=True)
class Move:
    """Credits into (positive) or out of (negative) an account. `cause` is unique for ever."""

    account_id: int
    amount: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How one attempt ended. `refund` goes back to who paid; `due_at` and `content` are for another attempt."""

    charge: Charge
    state: State
    reason: Reason | None = None
    detail: str | None = None
    refund: int = 0
    recipients_refused: dict[str, str] | None = None
    carrier_reference: str | None = None
    due_at: datetime | None = None
    content: dict[str, Any] | None = None
    in_doubt: bool = False
    """Whether the carrier may have the message all the same."""
    death: bool = False
    """Whether the attempt ended because its worker died."""


def charge(
    connection: Connection, jobs: Sequence[Job], *, holder: str, now: datetime, lease_until: datetime
) -> list[Charge]:
    """Charge each job to its sender's credit owner, and hold it for sending until `lease_until`.

    What comes back, in the order of `jobs`: fresh charges, which the caller must now deliver; refused ones (sender
    unknown, balance too small, in job order); and, for ids that were known, the charge as it stands, whose digest
    tells whether it was the same job. Run again under the same `holder`, after a commit whose answer was lost, it finds
    what it charged then.
    """
    people = fence(connection, {job.sender for job in jobs})
    account_ids = _account_ids(connection, {person.owner for person in people.values()})
    first = {job.job_id: job for job in reversed(jobs)}  # an id twice in one batch: the first is the job
    made = {job_id: _made(job, people.get(job.sender), State.SENDING, now, holder) for job_id, job in first.items()}
    new = _insert(connection, list(made.values()), account_ids, lease_until=lease_until)
    debits = [
        Move(account_ids[one.payer, one.kind], -one.credits, f"charge:{one.job_id}")
        for one in (made[job_id] for job_id in dict.fromkeys(job.job_id for job in jobs) if job_id in new)
        if one.payer is not None
    ]
    short = _post(connection, debits, now)
    stand = {
        **made,
        **_refuse_unaffordable(connection, made, short, now),
        **{job_id: _mine(known, holder) for job_id, known in _known(connection, made.keys() - new).items()},
    }
    return [stand[job.job_id] if job is first[job.job_id] else replace(stand[job.job_id], fresh=False) for job in jobs]


def charge_bulk(
    connection: Connection, bulk: Job, messages: Sequence[Job], *, now: datetime, due_at: datetime
) -> Charge:
    """Charge all messages of a bulk job, or none: they wait, due at `due_at`. `bulk.credits` is what they cost.

    Returns the charge of the bulk job itself: fresh, refused, or as it stands when its id was known.
    """
    people = fence(connection, {bulk.sender})
    sender = people.get(bulk.sender)
    made = _made(bulk, sender, State.BULK, now)
    if bulk.job_id not in _insert(connection, [made], {}):
        return charging.read(connection, [bulk.job_id])[bulk.job_id]
    if sender is None:
        return made
    account_ids = _account_ids(connection, {sender.owner})
    waiting = [_made(job, sender, State.WAITING, now) for job in messages]
    with connection.begin_nested() as savepoint:
        _insert(connection, waiting, account_ids, due_at=due_at)
        account_id = account_ids[sender.owner, bulk.kind]
        debits = [Move(account_id, -one.credits, f"charge:{one.job_id}") for one in waiting]
        short = _post(connection, debits, now)
        if short:
            savepoint.rollback()
    if short:
        available = connection.execute(select(accounts.c.available).where(accounts.c.id == account_id)).scalar_one()
        fit = _how_many_fit([job.credits for job in messages], available)
        return _refuse(connection, made, _too_small(made, sender.owner, available) + f" {fit} of its {len(messages)} "
                       "messages would fit.", now)  # fmt: skip
    return made


def settle(
    connection: Connection, settlements: Sequence[Settlement], now: datetime, *, before: State = State.SENDING
) -> list[Settlement]:
    """Write how attempts ended, and give back what is to be given back, to the account that paid.

    Returns the settlements that counted: an attempt whose lease was lost to another has no say any more. `before` is
    the state that ends: `unknown` where a person has decided.
    """
    by_id = {one.charge.job_id: one for one in settlements}
    rows = [_end_of(one, now) for _, one in sorted(by_id.items())]
    paid = connection.execute(_end_attempts(connection.dialect.name), {**packed(connection, rows), "before": before})
    accounts_of = {row.job_id: row.account_id for row in paid}
    counted = [one for job_id, one in sorted(by_id.items()) if job_id in accounts_of]
    refunds = [
        Move(accounts_of[one.charge.job_id], one.refund, f"refund:{one.charge.job_id}") for one in counted if one.refund
    ]
    _post(connection, refunds, now)
    return counted


def ended(one: Settlement, now: datetime) -> Charge:
    """The charge as it stands after a settlement that counted."""
    end = _end_of(one, now)
    fields = {name: end[name] for name in _ENDED if name not in ("lease_until", "content")}
    content = one.charge.content if end["keeps_content"] else one.content
    return replace(one.charge, **fields, content=content, fresh=False)


def credit(connection: Connection, owner: str, bought: dict[Kind, int], order_id: str, now: datetime) -> None:
    """Add what an order bought to the owner's accounts."""
    account_ids = _account_ids(connection, {owner})
    moves = [
        Move(account_ids[owner, kind], amount, f"purchase:{order_id}:{kind}")
        for kind, amount in bought.items()
        if amount
    ]
    _post(connection, moves, now)


def _post(connection: Connection, moves: Sequence[Move], now: datetime) -> dict[str, int]:
    """Make the moves, in their order, each as far as its account can bear it: a balance never goes below zero.

    Returns the causes of the moves that were not made, with the balance that was too small.
    """
    if not moves:
        return {}
    locked = connection.execute(
        select(accounts.c.id, accounts.c.available, accounts.c.seq)
        .where(accounts.c.id.in_({move.account_id for move in moves}))
        .order_by(accounts.c.id)
        .with_for_update(key_share=True)
    )
    balances = {row.id: (row.available, row.seq) for row in locked}
    short: dict[str, int] = {}
    written = []
    for move in moves:
        available, seq = balances[move.account_id]
        if available + move.amount < 0:
            short[move.cause] = available
            continue
        balances[move.account_id] = available, seq = available + move.amount, seq + 1
        written.append(
            {
                "account_id": move.account_id,
                "seq": seq,
                "amount": move.amount,
                "balance_after": available,
                "cause": move.cause,
                "at": now,
            }
        )
    if written:
        dialect = connection.dialect.name
        moved = [
            {"id": i, "available": balances[i][0], "seq": balances[i][1]}
            for i in sorted({m["account_id"] for m in written})
        ]
        connection.execute(_update_accounts(dialect), packed(connection, moved))
        connection.execute(_insert_entries(dialect), packed(connection, written))
    return short


@functools.cache
def _update_accounts(dialect: str) -> Update:
    given = unpacked(dialect, {"id": BigInteger(), "available": BigInteger(), "seq": BigInteger()})
    return update(accounts).where(accounts.c.id == given.c.id).values(available=given.c.available, seq=given.c.seq)


@functools.cache
def _insert_entries(dialect: str) -> Executable:
    given = unpacked(dialect, {entry.name: entry.type for entry in entries.c})
    return insert_in(dialect, entries).from_select([entry.name for entry in entries.c], select(given))


def _known(connection: Connection, job_ids: Collection[str]) -> dict[str, Charge]:
    return charging.read(connection, job_ids) if job_ids else {}


def _mine(known: Charge, holder: str) -> Charge:
    return replace(known, fresh=known.holder == holder and known.state is State.SENDING)


def _account_ids(connection: Connection, owners: set[str]) -> dict[tuple[str, str], int]:
    found = connection.execute(
        select(accounts.c.owner_id, accounts.c.kind, accounts.c.id).where(accounts.c.owner_id.in_(owners))
    )
    return {(row.owner_id, row.kind): row.id for row in found}


def _made(job: Job, sender: Person | None, state: State, now: datetime, holder: str | None = None) -> Charge:
    """The charge of a new job in `state`, or refused where the sender is unknown."""
    refusal = None if sender else unknown(job.sender)
    return Charge(
        job_id=job.job_id,
        task=job.task,
        kind=job.kind,
        sender=job.sender,
        digest=job.digest,
        payer=sender.owner if sender else None,
        credits=job.credits,
        refunded=0,
        state=State.REFUSED if refusal else state,
        reason=refusal.reason if refusal else None,
        detail=refusal.detail if refusal else None,
        attempts=1 if sender and state is State.SENDING else 0,
        deaths=0,
        holder=holder,
        handed_at=None,
        content=job.content if sender and state in charging.OPEN else None,
        recipients_refused=None,
        carrier_reference=None,
        bulk_id=job.bulk_id,
        created_at=now,
        due_at=None,
        final_at=now if refusal else None,
        sender_name=sender.name if sender else None,
        sender_address=sender.email if sender else None,
        fresh=sender is not None,
    )


def _insert(
    connection: Connection,
    made: Sequence[Charge],
    account_ids: dict[tuple[str, str], int],
    *,
    lease_until: datetime | None = None,
    due_at: datetime | None = None,
) -> set[str]:
    """Write new charges, in id order; returns the ids that were new. A known id is left as it stands."""
    rows = [
        {
            "job_id": one.job_id,
            "task": one.task,
            "kind": one.kind,
            "sender": one.sender,
            "digest": one.digest,
            "account_id": account_ids.get((one.payer or "", one.kind)) if one.state in charging.OPEN else None,
            "credits": one.credits,
            "refunded": 0,
            "state": one.state,
            "reason": one.reason,
            "detail": one.detail,
            "attempts": one.attempts,
            "lease_until": lease_until if one.state is State.SENDING else None,
            "due_at": due_at if one.state is State.WAITING else None,
            "deaths": 0,
            "holder": one.holder,
            "content": one.content,
            "bulk_id": one.bulk_id,
            "created_at": one.created_at,
            "final_at": one.final_at,
        }
        for one in made
    ]
    if not rows:
        return set()
    return set(connection.execute(_insert_charges(connection.dialect.name), packed(connection, rows)).scalars())


_MADE = ("job_id", "task", "kind", "sender", "digest", "account_id", "credits", "refunded", "state", "reason", "detail",
         "attempts", "lease_until", "due_at", "deaths", "holder", "content", "bulk_id", "created_at",
         "final_at")  # fmt: skip
"""The columns of a charge that is made."""


@functools.cache
def _insert_charges(dialect: str) -> Executable:
    given = unpacked(dialect, {name: charges.c[name].type for name in _MADE})
    # SQLite takes ON CONFLICT for a part of the SELECT unless that has a WHERE.
    rows = select(given).where(true()).order_by(given.c.job_id)
    return (
        insert_in(dialect, charges).from_select(list(_MADE), rows).on_conflict_do_nothing().returning(charges.c.job_id)
    )


def _refuse_unaffordable(
    connection: Connection, made: dict[str, Charge], short: dict[str, int], now: datetime
) -> dict[str, Charge]:
    refused = {}
    for cause, available in short.items():
        one = made[cause.removeprefix("charge:")]
        refused[one.job_id] = _refuse(connection, one, _too_small(one, one.payer or "", available), now)
    return refused


def _refuse(connection: Connection, one: Charge, detail: str, now: datetime) -> Charge:
    """Turn a charge made in this transaction into a refusal for want of credits."""
    changes: dict[str, Any] = {
        "state": State.REFUSED,
        "reason": Reason.INSUFFICIENT_CREDITS,
        "detail": detail,
        "attempts": 0,
        "content": None,
        "final_at": now,
    }
    connection.execute(
        update(charges)
        .where(charges.c.job_id == one.job_id)
        .values(account_id=None, lease_until=None, due_at=None, **changes)
    )
    return replace(one, **changes, payer=None, fresh=False)


def _too_small(one: Charge, owner: str, available: int) -> str:
    return (
        f"This costs {one.credits} {one.kind} credit{'s' if one.credits > 1 else ''} and the balance of {owner} holds "
        f"{available}: buy credits, then send it again under a new job_id."
    )


def _how_many_fit(costs: Sequence[int], available: int) -> int:
    fit = 0
    for cost in costs:
        available -= cost
        if available < 0:
            break
        fit += 1
    return fit


_ENDED = ("state", "reason", "detail", "refunded", "lease_until", "due_at", "recipients_refused", "carrier_reference",
          "deaths", "handed_at", "final_at", "content")  # fmt: skip
"""The columns of a charge that the end of an attempt writes."""


def _end_of(one: Settlement, now: datetime) -> dict[str, Any]:
    """What the end of one attempt writes, and the attempt that it ends."""
    final = one.state in charging.FINAL
    return {
        "job_id": one.charge.job_id,
        "attempts": one.charge.attempts,
        "holder": one.charge.holder,
        "state": one.state,
        "reason": one.reason,
        "detail": one.detail,
        "refunded": one.refund,
        "lease_until": None,
        "due_at": one.due_at,
        "recipients_refused": one.recipients_refused,
        "carrier_reference": one.carrier_reference,
        "deaths": one.charge.deaths + one.death,
        "handed_at": (one.charge.handed_at or now) if one.in_doubt else None,
        "final_at": now if final else None,
        "content": None if final else one.content,
        "keeps_content": not final and one.content is None,
    }


@functools.cache
def _end_attempts(dialect: str) -> Update:
    """Write the ends of attempts that are still the last ones; gives their jobs, and the accounts that paid."""
    names = ("job_id", "attempts", "holder", *_ENDED)
    given = unpacked(dialect, {name: charges.c[name].type for name in names} | {"keeps_content": Boolean()})
    values: dict[str, ColumnElement[Any]] = {name: given.c[name] for name in _ENDED}
    # Since when there is a doubt was noted by the attempt itself, after it was claimed.
    values["handed_at"] = case(
        (given.c.handed_at.is_not(None), func.coalesce(charges.c.handed_at, given.c.handed_at)), else_=None
    )
    values["content"] = case((given.c.keeps_content, charges.c.content), else_=given.c.content)
    return (
        update(charges)
        .where(charging.is_held(given, bindparam("before", type_=String)))
        .values(**values)
        .returning(charges.c.job_id, charges.c.account_id)
    )
