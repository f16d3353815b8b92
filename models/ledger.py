"""The ledger: the only writer of a balance. Every move of credits is an entry, written with the balance it leaves.

Each function takes a sequence (one job is a batch of one), runs inside the caller's transaction, and neither commits,
logs nor calls out. Lock order everywhere: order, users by id, charges by job id, accounts by id. The accounts, which
everybody wants, come last and are held shortest.
"""

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    CursorResult,
    Executable,
    SmallInteger,
    String,
    bindparam,
    case,
    delete,
    func,
    null,
    select,
    true,
    update,
)
from sqlalchemy.types import TypeEngine

from models import charges as charging
from models import holding
from models.charges import Charge, Job, State
from models.database import insert_in
from models.errors import Reason
from models.fields import Kind
from models.messages import Content
from models.rows import among, fixed, listed, packed, together, unpacked
from models.tables import Instant, accounts, charges, entries
from models.users import Person, fence, unknown


class Move(NamedTuple):
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
    first = {job.job_id: job for job in reversed(jobs)}  # an id twice in one batch: the first is the job
    made = {job_id: _made(job, people.get(job.sender), State.SENDING, now, holder) for job_id, job in first.items()}
    rows = [_row(one) for one in made.values()]
    new = _insert(connection, rows, State.SENDING, now, holder=holder, lease_until=lease_until)
    in_job_order = (made[job_id] for job_id in dict.fromkeys(job.job_id for job in jobs) if job_id in new)
    short = _post(connection, [_debit(one, new[one.job_id]) for one in in_job_order if one.payer is not None], now)
    stand = {
        **made,
        **_refuse_unaffordable(connection, made, short, now),
        **{job_id: _mine(known, holder) for job_id, known in _known(connection, made.keys() - new).items()},
    }
    return [stand[job.job_id] if job is first[job.job_id] else replace(stand[job.job_id], fresh=False) for job in jobs]


def charge_bulk(
    connection: Connection, bulk: Job, messages: Sequence[Content], *, now: datetime, due_at: datetime
) -> Charge:
    """Charge all messages of a bulk job by one entry, or none: they wait, and the bulk job is due at `due_at`.

    `bulk.credits` is what the messages cost together. Returns the charge of the bulk job itself: fresh, refused, or as
    it stands when its id was known.
    """
    people = fence(connection, {bulk.sender})
    sender = people.get(bulk.sender)
    made = _made(bulk, sender, State.BULK, now)
    row = {**_row(made), "payer": None, "messages": len(messages) if sender else None}
    if bulk.job_id not in _insert(connection, [row], State.BULK, now, due_at=due_at):
        return charging.read(connection, [bulk.job_id])[bulk.job_id]
    if sender is None:
        return made
    account_id = _account_ids(connection, {sender.owner})[sender.owner, bulk.kind]
    _insert_messages(connection, made, messages, account_id, now)
    short = _post(connection, [_debit(made, account_id)], now)
    if short:
        # Rare enough that all others are spared the two round trips of a savepoint.
        connection.execute(delete(charges).where(charges.c.bulk_id == bulk.job_id))
        [available] = short.values()
        fit = _how_many_fit([message.cost for message in messages], available)
        return _refuse(connection, made, _too_small(made, sender.owner, available) + f" {fit} of its {len(messages)} "
                       "messages would fit.", now)  # fmt: skip
    return made


def message_id(bulk_id: str, place: int) -> str:
    """The id of the message for the recipient at `place` (from 0) of a bulk job. No producer can make one like it."""
    return f"{bulk_id}/{place}"


def settle(
    connection: Connection,
    settlements: Sequence[Settlement],
    now: datetime,
    *,
    before: State = State.SENDING,
    ended_before: int = 0,
) -> list[Settlement]:
    """Write how attempts ended, and give back what is to be given back, to the account that paid.

    Returns the settlements that counted, in their order, which is that of the refunds too: an attempt whose lease was
    lost to another has no say any more. `before` is the state that ends: `unknown` where a person has decided. With the
    last job of a lease that lease is forgotten: `ended_before` is how many of the same one have ended earlier.
    """
    by_id = {one.charge.job_id: one for one in settlements}
    rows = [
        {"job_id": job_id, "attempts": one.charge.attempts, "holder": one.charge.holder, **_end_of(one)}
        for job_id, one in by_id.items()
    ]
    ending = Counter(one.charge.holder for one in by_id.values()) if before is State.SENDING else {}
    over = [{"holder": holder, "jobs": ended_before + jobs} for holder, jobs in ending.items()]
    parameters = {**packed(connection, rows), **packed(connection, over, "leases"), "before": before, "now": now}
    paid = _execute(connection, _end_attempts(connection.dialect.name), parameters)
    accounts_of = {row.job_id: row.account_id for row in paid}
    counted = [one for job_id, one in by_id.items() if job_id in accounts_of]
    refunds = [
        Move(accounts_of[one.charge.job_id], one.refund, f"refund:{one.charge.job_id}") for one in counted if one.refund
    ]
    _post(connection, refunds, now)
    return counted


def ended(one: Settlement, now: datetime) -> Charge:
    """The charge as it stands after a settlement that counted."""
    final = one.state in charging.FINAL
    return replace(
        one.charge,
        state=one.state,
        reason=one.reason,
        detail=one.detail,
        refunded=one.refund,
        due_at=one.due_at,
        recipients_refused=one.recipients_refused,
        carrier_reference=one.carrier_reference,
        deaths=one.charge.deaths + one.death,
        handed_at=(one.charge.handed_at or now) if one.in_doubt else None,
        final_at=now if final else None,
        content=None if final else one.content or one.charge.content,
        fresh=False,
    )


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
    moving = {"accounts": listed(connection, {move.account_id for move in moves})}
    locked = connection.execute(_lock_accounts(connection.dialect.name), moving)
    balances = {account_id: (available, seq) for account_id, available, seq in locked}
    short: dict[str, int] = {}
    written = []
    for account_id, amount, cause in moves:
        available, seq = balances[account_id]
        if available + amount < 0:
            short[cause] = available
            continue
        balances[account_id] = after, seq = available + amount, seq + 1
        written.append({"account_id": account_id, "seq": seq, "amount": amount, "balance_after": after, "cause": cause})
    if written:
        _write(connection, written, now)
    return short


@functools.cache
def _lock_accounts(dialect: str) -> Executable:
    return (
        select(accounts.c.id, accounts.c.available, accounts.c.seq)
        .where(among(dialect, accounts.c.id, "accounts"))
        .order_by(accounts.c.id)
        .with_for_update(key_share=True)
    )


def _write(connection: Connection, written: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Write entries, and the balances that the last of each account leaves."""
    last = {entry["account_id"]: entry for entry in written}
    balances = [{"id": i, "available": last[i]["balance_after"], "seq": last[i]["seq"]} for i in sorted(last)]
    parameters = {**packed(connection, balances, "balances"), **packed(connection, written), "now": now}
    _execute(connection, _write_statements(connection.dialect.name), parameters)


@functools.cache
def _write_statements(dialect: str) -> list[Executable]:
    left = unpacked(dialect, {"id": BigInteger(), "available": BigInteger(), "seq": BigInteger()}, "balances")
    balances = update(accounts).where(accounts.c.id == left.c.id).values(available=left.c.available, seq=left.c.seq)
    names = ("account_id", "seq", "amount", "balance_after", "cause")
    given = unpacked(dialect, {name: entries.c[name].type for name in names})
    rows = select(*(given.c[name] for name in names), bindparam("now", type_=Instant))
    moved = insert_in(dialect, entries).from_select([*names, "at"], rows)
    return together(dialect, balances, moved)


def _execute(
    connection: Connection, statements: Sequence[Executable], parameters: Mapping[str, Any]
) -> CursorResult[*tuple[Any, ...]]:
    """Execute statements that share parameters; gives the result of the last one."""
    *before, last = statements
    for statement in before:
        connection.execute(statement, parameters)
    return connection.execute(last, parameters)


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
        bulk_id=None,
        created_at=now,
        due_at=None,
        final_at=now if refusal else None,
        sender_name=sender.name if sender else None,
        sender_address=sender.email if sender else None,
        fresh=sender is not None,
    )


def _debit(one: Charge, account_id: int | None) -> Move:
    return Move(cast("int", account_id), -one.credits, f"charge:{one.job_id}")


def _row(one: Charge) -> dict[str, Any]:
    """What is different from one new charge to the next."""
    row = {
        "job_id": one.job_id,
        "task": one.task,
        "kind": one.kind,
        "sender": one.sender,
        "digest": one.digest,
        "payer": one.payer,
        "credits": one.credits,
        "content": one.content,
    }
    return {**row, "reason": one.reason, "detail": one.detail} if one.reason else row


def _insert(
    connection: Connection,
    rows: Sequence[Mapping[str, Any]],
    state: State,
    now: datetime,
    *,
    holder: str | None = None,
    lease_until: datetime | None = None,
    due_at: datetime | None = None,
) -> dict[str, int | None]:
    """Write new charges in `state`, or refused where a row has a reason, in id order.

    Returns the ids that were new, each with the account that is to pay. A known id is left as it stands.
    """
    if not rows:
        return {}
    leased = state is State.SENDING
    parameters = {
        **packed(connection, rows),
        "state": state,
        "attempts": int(leased),
        "holder": holder,
        "lease_until": lease_until,
        "due_at": due_at,
        "job_ids": [row["job_id"] for row in rows] if leased else None,
        "now": now,
    }
    new = _execute(connection, _insert_charges(connection.dialect.name, leased), parameters)
    return {job_id: account_id for job_id, account_id in new}  # noqa: C416  dict() takes a Row for an object


@functools.cache
def _insert_charges(dialect: str, leased: bool) -> list[Executable]:  # noqa: FBT001  whether somebody is to hold them
    own = ("job_id", "task", "kind", "sender", "digest", "credits", "content", "reason", "detail", "messages")
    types = {name: charges.c[name].type for name in own}
    given = unpacked(dialect, {**types, "payer": accounts.c.owner_id.type})
    now = bindparam("now", type_=Instant)
    refused = given.c.reason.is_not(None)
    values: dict[str, ColumnElement[Any]] = {
        **{name: given.c[name] for name in own},
        "account_id": accounts.c.id,
        "refunded": fixed(0),
        "state": case((refused, fixed(State.REFUSED)), else_=bindparam("state", type_=String)),
        "attempts": case((refused, fixed(0)), else_=bindparam("attempts", type_=SmallInteger)),
        "deaths": fixed(0),
        "holder": bindparam("holder", type_=String),
        "lease_until": case((refused, None), else_=bindparam("lease_until", type_=Instant)),
        "due_at": case((refused, None), else_=bindparam("due_at", type_=Instant)),
        "created_at": now,
        "final_at": case((refused, now), else_=None),
    }
    payer = (accounts.c.owner_id == given.c.payer) & (accounts.c.kind == given.c.kind)
    # SQLite takes ON CONFLICT for a part of the SELECT unless that has a WHERE.
    rows = select(*values.values()).select_from(given.outerjoin(accounts, payer)).where(true())
    made = insert_in(dialect, charges).from_select(list(values), rows.order_by(given.c.job_id))
    new = made.on_conflict_do_nothing().returning(charges.c.job_id, charges.c.account_id)
    return together(dialect, holding.begin_lease(dialect), new) if leased else [new]


def _insert_messages(
    connection: Connection, bulk: Charge, messages: Sequence[Content], account_id: int, now: datetime
) -> None:
    """Write the charges of a bulk job's messages. Nothing else has ids like theirs: whoever has the job's has all."""
    rows = [
        {"job_id": message_id(bulk.job_id, place), "credits": message.cost, "content": message.fields}
        for place, message in enumerate(messages)
    ]
    same = {"task": bulk.task, "kind": bulk.kind, "sender": bulk.sender, "digest": bulk.digest, "bulk_id": bulk.job_id}
    parameters = {**packed(connection, rows), **same, "account_id": account_id, "now": now}
    connection.execute(_insert_waiting(connection.dialect.name), parameters)


@functools.cache
def _insert_waiting(dialect: str) -> Executable:
    own = ("job_id", "credits", "content")
    given = unpacked(dialect, {name: charges.c[name].type for name in own})
    same = ("task", "kind", "sender", "digest", "bulk_id", "account_id")
    values: dict[str, ColumnElement[Any]] = {
        **{name: given.c[name] for name in own},
        **{name: bindparam(name, type_=charges.c[name].type) for name in same},
        "refunded": fixed(0),
        "state": fixed(State.WAITING),
        "attempts": fixed(0),
        "deaths": fixed(0),
        "created_at": bindparam("now", type_=Instant),
    }
    return insert_in(dialect, charges).from_select(list(values), select(*values.values()))


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
        .values(account_id=None, lease_until=None, due_at=None, messages=None, **changes)
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


_ENDED = ("state", "reason", "detail", "refunded", "due_at", "recipients_refused", "carrier_reference", "deaths",
          "content", "in_doubt")  # fmt: skip
"""What is different from one end of an attempt to the next."""


def _end_of(one: Settlement) -> dict[str, Any]:
    """What the end of one attempt writes, as far as it is anything."""
    values = {
        "state": one.state,
        "reason": one.reason,
        "detail": one.detail,
        "refunded": one.refund,
        "due_at": one.due_at,
        "recipients_refused": one.recipients_refused,
        "carrier_reference": one.carrier_reference,
        "deaths": one.charge.deaths + one.death,
        "content": one.content,
        "in_doubt": one.in_doubt,
    }
    return {name: value for name, value in values.items() if value}


@functools.cache
def _end_attempts(dialect: str) -> list[Executable]:
    """Write the ends of attempts that are still the last ones; gives their jobs, and the accounts that paid."""
    names = ("job_id", "attempts", "holder", *_ENDED)
    types: dict[str, TypeEngine[Any]] = {name: charges.c[name].type for name in names if name != "in_doubt"}
    given = unpacked(dialect, {**types, "in_doubt": Boolean()})
    now = bindparam("now", type_=Instant)
    final = given.c.state.in_([fixed(state) for state in charging.FINAL])
    values: dict[str, ColumnElement[Any]] = {
        **{name: given.c[name] for name in ("state", "reason", "detail", "due_at", "recipients_refused",
                                            "carrier_reference")},
        "refunded": func.coalesce(given.c.refunded, fixed(0)),
        "refunded_at": case((given.c.refunded > fixed(0), now), else_=None),
        "deaths": func.coalesce(given.c.deaths, fixed(0)),
        "lease_until": null(),
        # Since when there is a doubt was noted by the attempt itself, after it was claimed.
        "handed_at": case((given.c.in_doubt, func.coalesce(charges.c.handed_at, now)), else_=None),
        "unknown_since": case((given.c.state == fixed(State.UNKNOWN), now), else_=None),
        "final_at": case((final, now), else_=None),
        "content": case((final, None), else_=func.coalesce(given.c.content, charges.c.content)),
    }  # fmt: skip
    end = (
        update(charges)
        .where(holding.is_held(given, bindparam("before", type_=String)))
        .values(values)
        .returning(charges.c.job_id, charges.c.account_id)
    )
    return together(dialect, holding.end_leases(dialect), end)
