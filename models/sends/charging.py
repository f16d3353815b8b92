"""Charging: new charges are written and paid for, or refused, in the caller's transaction.

Each function does the same steps: lock the senders, so that nobody changes their owners meanwhile; write the charges,
where an id that is known already is left as it stands; post the debits last, because every charge needs the accounts;
and turn what could not be paid into refusals.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    SmallInteger,
    String,
    bindparam,
    case,
    delete,
    select,
    true,
    update,
)

from models.database.json_rows import rows_from, rows_param
from models.database.schema import UtcDateTime, accounts, charges
from models.database.statements import chained, execute_chain, insert_for, sql_literal
from models.errors import Reason
from models.messages.base import Json
from models.messages.sends import Content
from models.money import ledger
from models.money.ledger import Move
from models.sends.charges import OPEN, Charge, SendJob, State, bulk_message_id, find_charges
from models.sends.leases import insert_lease
from models.users.users import User, lock_users, unknown_user


def charge_jobs(
    connection: Connection, jobs: Sequence[SendJob], *, lease_id: str, now: datetime, lease_until: datetime
) -> list[Charge]:
    """Charge each job to its sender's credit owner, and lease it for sending until `lease_until`.

    Returns a charge for each job, in their order: new ones, which the caller must now deliver; refused ones (the sender
    is unknown, or the balance too small for them in this order); and for known ids the charge as it stands, whose
    digest tells whether it was the same job. Run again under the same `lease_id`, after a commit whose answer was lost,
    it finds what it charged then.
    """
    senders = lock_users(connection, {job.sender for job in jobs})
    first = {job.job_id: job for job in reversed(jobs)}  # of an id that comes twice in one batch, the first job counts
    drafts = {
        job_id: _draft(job, senders.get(job.sender), State.SENDING, now, lease_id) for job_id, job in first.items()
    }
    accounts_by_id = _insert(
        connection, list(drafts.values()), State.SENDING, now, lease_id=lease_id, lease_until=lease_until
    )
    in_job_order = (drafts[job_id] for job_id in dict.fromkeys(job.job_id for job in jobs) if job_id in accounts_by_id)
    debits = [_debit(charge, accounts_by_id[charge.job_id]) for charge in in_job_order if charge.payer is not None]
    insufficient = ledger.post(connection, debits, now)
    charged = {
        **drafts,
        **_refuse_unaffordable(connection, drafts, insufficient, now),
        **_find_replays(connection, drafts.keys() - accounts_by_id, lease_id),
    }
    return [
        charged[job.job_id] if job is first[job.job_id] else replace(charged[job.job_id], is_new=False) for job in jobs
    ]


def charge_bulk_job(
    connection: Connection, bulk: SendJob, messages: Sequence[Content], *, now: datetime, due_at: datetime
) -> Charge:
    """Charge all messages of a bulk job by one entry, or none. They wait, and the bulk job is due at `due_at`.

    `bulk.credits` is what the messages cost together. Returns the charge of the bulk job itself: new, refused, or as it
    stands if its id was known.
    """
    sender = lock_users(connection, {bulk.sender}).get(bulk.sender)
    draft = _draft(bulk, sender, State.BULK, now)
    number = len(messages) if sender else None
    if bulk.job_id not in _insert(connection, [draft], State.BULK, now, due_at=due_at, messages=number):
        return find_charges(connection, [bulk.job_id])[bulk.job_id]
    if sender is None:
        return draft
    account_id = ledger.account_ids(connection, {sender.owner})[sender.owner, bulk.kind]
    _insert_messages(connection, draft, messages, account_id, now)
    insufficient = ledger.post(connection, [_debit(draft, account_id)], now)
    if insufficient:
        # This is rare, so all other bulk jobs are spared the two round trips of a savepoint.
        connection.execute(delete(charges).where(charges.c.bulk_id == bulk.job_id))
        [available] = insufficient.values()
        fit = _how_many_fit([message.cost for message in messages], available)
        detail = f"{_too_little(draft, available)} {fit} of its {len(messages)} messages would fit."
        return _refuse(connection, draft, detail, now)
    return draft


def _draft(job: SendJob, sender: User | None, state: State, now: datetime, lease_id: str | None = None) -> Charge:
    """Return the charge of a new job: in `state`, or refused if the sender is unknown."""
    refusal = None if sender else unknown_user(job.sender)
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
        crashes=0,
        lease_id=lease_id,
        handover_started_at=None,
        content=job.content if sender and state in OPEN else None,
        recipients_refused=None,
        carrier_reference=None,
        bulk_id=None,
        created_at=now,
        due_at=None,
        final_at=now if refusal else None,
        sender_name=sender.name if sender else None,
        sender_address=sender.email if sender else None,
        is_new=sender is not None,
    )


def _debit(charge: Charge, account_id: int | None) -> Move:
    return Move(cast("int", account_id), -charge.credits, f"charge:{charge.job_id}")


def _find_replays(connection: Connection, job_ids: Collection[str], lease_id: str) -> dict[str, Charge]:
    """Return the charges of known ids as they stand; one that this very lease has made is new."""
    found = find_charges(connection, job_ids) if job_ids else {}
    return {
        job_id: replace(charge, is_new=charge.lease_id == lease_id and charge.state is State.SENDING)
        for job_id, charge in found.items()
    }


# -- writing charges --------------------------------------------------------------------------------------------------


def _insert(
    connection: Connection,
    drafts: Sequence[Charge],
    state: State,
    now: datetime,
    *,
    lease_id: str | None = None,
    lease_until: datetime | None = None,
    due_at: datetime | None = None,
    messages: int | None = None,
) -> dict[str, int | None]:
    """Write new charges in `state`, or refused, in id order; a known id is left as it stands.

    Returns the ids that were new, each with the account that is to pay. A bulk job has none: its messages do.
    """
    if not drafts:
        return {}
    is_leased = state is State.SENDING
    parameters = {
        **rows_param(connection, [_row(draft) for draft in drafts], "new_charges"),
        "state": state,
        "attempts": int(is_leased),
        "lease_id": lease_id,
        "lease_until": lease_until,
        "due_at": due_at,
        "messages": messages,
        "job_ids": [draft.job_id for draft in drafts] if is_leased else None,
        "now": now,
    }
    inserted = execute_chain(connection, _insert_charges(connection.dialect.name, leased=is_leased), parameters)
    return {job_id: account_id for job_id, account_id in inserted}  # noqa: C416  dict() takes a Row for an object


def _row(draft: Charge) -> Json:
    """Return what differs from one new charge to the next."""
    row = {
        "job_id": draft.job_id,
        "task": draft.task,
        "kind": draft.kind,
        "sender": draft.sender,
        "digest": draft.digest,
        "payer": None if draft.state is State.BULK else draft.payer,
        "credits": draft.credits,
        "content": draft.content,
    }
    return {**row, "reason": draft.reason, "detail": draft.detail} if draft.reason else row


@functools.cache
def _insert_charges(dialect: str, *, leased: bool) -> Sequence[Executable]:
    columns = ("job_id", "task", "kind", "sender", "digest", "credits", "content", "reason", "detail")
    types = {name: charges.c[name].type for name in columns}
    new_charges = rows_from(dialect, {**types, "payer": accounts.c.owner_id.type}, "new_charges")
    now = bindparam("now", type_=UtcDateTime)
    is_refused = new_charges.c.reason.is_not(None)
    values: dict[str, ColumnElement[Any]] = {
        **{name: new_charges.c[name] for name in columns},
        "account_id": accounts.c.id,
        "refunded": sql_literal(0),
        "state": case((is_refused, sql_literal(State.REFUSED)), else_=bindparam("state", type_=String)),
        "attempts": case((is_refused, sql_literal(0)), else_=bindparam("attempts", type_=SmallInteger)),
        "crashes": sql_literal(0),
        "lease_id": bindparam("lease_id", type_=String),
        "lease_until": case((is_refused, None), else_=bindparam("lease_until", type_=UtcDateTime)),
        "due_at": case((is_refused, None), else_=bindparam("due_at", type_=UtcDateTime)),
        "messages": bindparam("messages", type_=SmallInteger),
        "created_at": now,
        "final_at": case((is_refused, now), else_=None),
    }
    payer = (accounts.c.owner_id == new_charges.c.payer) & (accounts.c.kind == new_charges.c.kind)
    # SQLite takes ON CONFLICT for a part of the SELECT unless that has a WHERE.
    rows = select(*_labelled(values)).select_from(new_charges.outerjoin(accounts, payer)).where(true())
    insert_rows = insert_for(dialect, charges).from_select(list(values), rows.order_by(new_charges.c.job_id))
    insert_new = insert_rows.on_conflict_do_nothing().returning(charges.c.job_id, charges.c.account_id)
    return chained(dialect, insert_lease(dialect), insert_new, first_name="new_lease") if leased else [insert_new]


def _insert_messages(
    connection: Connection, bulk: Charge, messages: Sequence[Content], account_id: int, now: datetime
) -> None:
    """Write the charges of a bulk job's messages. No other job has ids like theirs, so none of them is known."""
    rows = [
        {"job_id": bulk_message_id(bulk.job_id, place), "credits": message.cost, "content": message.fields}
        for place, message in enumerate(messages)
    ]
    shared = {
        "task": bulk.task,
        "kind": bulk.kind,
        "sender": bulk.sender,
        "digest": bulk.digest,
        "bulk_id": bulk.job_id,
        "account_id": account_id,
    }
    parameters = {**rows_param(connection, rows, "new_messages"), **shared, "now": now}
    connection.execute(_insert_waiting(connection.dialect.name), parameters)


@functools.cache
def _insert_waiting(dialect: str) -> Executable:
    columns = ("job_id", "credits", "content")
    shared = ("task", "kind", "sender", "digest", "bulk_id", "account_id")
    new_messages = rows_from(dialect, {name: charges.c[name].type for name in columns}, "new_messages")
    values: dict[str, ColumnElement[Any]] = {
        **{name: new_messages.c[name] for name in columns},
        **{name: bindparam(name, type_=charges.c[name].type) for name in shared},
        "refunded": sql_literal(0),
        "state": sql_literal(State.WAITING),
        "attempts": sql_literal(0),
        "crashes": sql_literal(0),
        "created_at": bindparam("now", type_=UtcDateTime),
    }
    return insert_for(dialect, charges).from_select(list(values), select(*_labelled(values)))


def _labelled(values: Mapping[str, ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    return [value.label(name) for name, value in values.items()]


# -- refusing ---------------------------------------------------------------------------------------------------------


def _refuse_unaffordable(
    connection: Connection, drafts: Mapping[str, Charge], insufficient: Mapping[str, int], now: datetime
) -> dict[str, Charge]:
    """Refuse the charges whose debits were not made, given by their causes with the balance that was insufficient."""
    refused = {}
    for cause, available in insufficient.items():
        charge = drafts[cause.removeprefix("charge:")]
        refused[charge.job_id] = _refuse(connection, charge, _too_little(charge, available), now)
    return refused


def _refuse(connection: Connection, charge: Charge, detail: str, now: datetime) -> Charge:
    """Turn a charge that this transaction has written into a refusal for lack of credits."""
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
        .where(charges.c.job_id == charge.job_id)
        .values(account_id=None, lease_until=None, due_at=None, messages=None, **changes)
    )
    return replace(charge, **changes, payer=None, is_new=False)


def _too_little(charge: Charge, available: int) -> str:
    return (
        f"This costs {charge.credits} {charge.kind} credit{'s' if charge.credits > 1 else ''} and the balance of "
        f"{charge.payer} holds {available}: buy credits, then send it again under a new job_id."
    )


def _how_many_fit(costs: Sequence[int], available: int) -> int:
    fit = 0
    for cost in costs:
        available -= cost
        if available < 0:
            break
        fit += 1
    return fit
