"""Charging: new charges are written and paid for, or refused, in the caller's transaction.

Each function does the same steps: lock the senders, so that nobody changes their owners meanwhile; write the charges,
where an id that is known already is left as it stands; debit each account once, last, because every charge needs the
accounts; and turn what could not be paid into refusals.
"""

import functools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    FromClause,
    SmallInteger,
    String,
    and_,
    bindparam,
    case,
    delete,
    select,
    true,
    update,
)

from models.database.json_rows import array_param, in_array, rows_from, rows_param
from models.database.schema import UtcDateTime, accounts, charges, users
from models.database.statements import by_organization, chained, execute_chain, insert_for, sql_literal
from models.errors import Reason, Refused
from models.grouping import in_groups
from models.ids import new_id
from models.messages.base import Json
from models.messages.sends import Content
from models.money import ledger
from models.money.accounts import AccountKey
from models.money.chain import Paid, content_of
from models.money.ledger import Move
from models.sends.charges import Charge, JobKey, SendJob, State, bulk_message_id, find_charges
from models.sends.leases import insert_leases
from models.users.organizations import NOBODYS
from models.users.users import erased_user, take_user_locks, unknown_user

STATEMENT_MAX = 2_000_000
"""Characters of the messages that one statement inserts: on their way to it they are in memory several times."""


class Payer(NamedTuple):
    """Who pays what a sender sends, and from which account."""

    sender: str
    org_id: int
    name: str
    address: str
    owner: str
    owner_version: int
    is_erased: bool
    account: AccountKey


def charge_jobs(
    connection: Connection, jobs: Sequence[SendJob], *, lease_id: str, now: datetime, lease_until: datetime
) -> list[Charge]:
    """Charge each job to its sender's credit owner, and lease it for sending until `lease_until`.

    All are of one task. Returns a charge for each job, in their order: new ones, which the caller must now deliver;
    refused ones (for their own refusal, an unknown sender, or a balance too small for them in this order); and for
    known ids the charge as it stands, whose digest tells whether it was the same job. Run again under the same
    `lease_id`, after a commit whose answer was lost, it finds what it charged then.
    """
    if not jobs:
        return []
    payers = _lock_payers(connection, {job.sender for job in jobs}, jobs[0].kind)
    drafts = [_draft(job, payers.get(job.sender), State.SENDING, now, lease_id) for job in jobs]
    first: dict[JobKey, Charge] = {}  # of an id that comes twice in one batch, the first job counts
    for draft in drafts:
        first.setdefault(draft.key, draft)
    new = _insert(connection, first, payers, cause=lease_id, now=now, lease_id=lease_id, lease_until=lease_until)
    inserted = [charge for key, charge in first.items() if charge.is_new and key in new]
    known = _find_known(connection, first.keys() - new, lease_id)
    refused = _debit(connection, inserted, payers, cause=lease_id, now=now)
    if len(inserted) == len(drafts) and not refused:
        return drafts
    return [_answer_to(draft, first[draft.key], refused, known) for draft in drafts]


def refuse_jobs(connection: Connection, jobs: Sequence[SendJob], *, org_id: int, now: datetime) -> list[SendJob]:
    """Refuse jobs of one task that have a `refusal`, unless they are known already. Returns those that were refused.

    Jobs of senders who are not in the organization are left alone: another one may use the same ids.
    """
    if not jobs:
        return []
    payers = _lock_payers(connection, {job.sender for job in jobs}, jobs[0].kind)
    first: dict[str, SendJob] = {}  # of an id that comes twice, the first job counts
    for job in jobs:
        if job.sender in payers and payers[job.sender].org_id == org_id:
            first.setdefault(job.job_id, job)
    drafts = [_draft(job, payers[job.sender], State.REFUSED, now) for job in first.values()]
    if not drafts:
        return []
    refused = _insert(connection, {draft.key: draft for draft in drafts}, payers, cause=None, now=now)
    return [first[key.job_id] for key in refused]


def charge_bulk_job(
    connection: Connection, bulk: SendJob, messages: Sequence[Content], *, now: datetime, due_at: datetime
) -> Charge:
    """Charge all messages of a bulk job, or none. They wait, and the bulk job is due at `due_at`.

    `bulk.credits` is what the messages cost together. Returns the charge of the bulk job itself: new, refused, or as it
    stands if its id was known.
    """
    payers = _lock_payers(connection, {bulk.sender}, bulk.kind)
    draft = _draft(bulk, payers.get(bulk.sender), State.BULK, now)
    cause = new_id()
    if not _insert(connection, {draft.key: draft}, payers, cause=None, now=now, due_at=due_at):
        known = find_charges(connection, [draft.key])[draft.key]
        return draft if _is_of_another_stranger(known, draft) else known
    if draft.state is State.REFUSED:
        return draft
    payer = payers[bulk.sender]
    _insert_messages(connection, draft, messages, payer, cause=cause)
    paid = [Paid(bulk_message_id(bulk.job_id, place), bulk.digest, bulk.sender, message.cost)
            for place, message in enumerate(messages)]  # fmt: skip
    if not ledger.post(connection, [_move(payer.account, paid, cause)], now):
        # This is rare, so all other bulk jobs are spared the two round trips of a savepoint.
        connection.execute(delete(charges).where(charges.c.org_id == draft.org_id, charges.c.bulk_id == bulk.job_id))
        available = ledger.lock_accounts(connection, [payer.account])[payer.account].available
        fit = _how_many_fit([message.cost for message in messages], available)
        detail = f"{_too_little(draft, available)} {fit} of its {len(messages)} messages would fit."
        return _refuse(connection, [(draft, detail)], now)[draft.key]
    return draft


def _draft(job: SendJob, payer: Payer | None, state: State, now: datetime, lease_id: str | None = None) -> Charge:
    """Return the charge of a new job: in `state`, or refused, also if the sender is unknown or was erased."""
    if payer is None:
        return _refused_draft(job, NOBODYS, unknown_user(job.sender), now, lease_id)
    refusal = erased_user(job.sender) if payer.is_erased else job.refusal
    if refusal is not None:
        return _refused_draft(job, payer.org_id, refusal, now, lease_id)
    draft = Charge(
        org_id=payer.org_id, job_id=job.job_id, task=job.task, kind=job.kind, sender=job.sender, digest=job.digest,
        payer=payer.owner, credits=job.credits, state=state, lease_id=lease_id, created_at=now,
        sender_name=payer.name, sender_address=payer.address, is_new=True,
    )  # fmt: skip
    if state is State.SENDING:
        draft.attempts, draft.content = 1, job.content
    return draft


def _refused_draft(job: SendJob, org_id: int, refusal: Refused, now: datetime, lease_id: str | None) -> Charge:
    return Charge(
        org_id=org_id, job_id=job.job_id, task=job.task, kind=job.kind, sender=job.sender, digest=job.digest,
        credits=job.credits, state=State.REFUSED, reason=refusal.reason, detail=refusal.detail, lease_id=lease_id,
        created_at=now, final_at=now,
    )  # fmt: skip


# -- known ids --------------------------------------------------------------------------------------------------------


def _find_known(connection: Connection, keys: Collection[JobKey], lease_id: str) -> dict[JobKey, Charge]:
    """Return the charges of known ids as they stand; one that this very lease has made is new."""
    found = find_charges(connection, keys) if keys else {}
    return {
        key: replace(charge, is_new=charge.lease_id == lease_id and charge.state is State.SENDING)
        for key, charge in found.items()
    }


def _answer_to(
    draft: Charge, first: Charge, refused: Mapping[JobKey, Charge], known: Mapping[JobKey, Charge]
) -> Charge:
    """Return the charge by which a job is answered. `first` is that of the first job of the batch under its id."""
    charge = refused.get(draft.key) or known.get(draft.key) or first
    if _is_of_another_stranger(charge, draft):
        return draft
    return charge if draft is first or not charge.is_new else replace(charge, is_new=False)


def _is_of_another_stranger(charge: Charge, draft: Charge) -> bool:
    """Whether an id was used before by another user who was never saved. They share no organization, only its number.

    Each gets their own refusal.
    """
    return draft.org_id == NOBODYS and charge.sender != draft.sender


# -- writing charges --------------------------------------------------------------------------------------------------


def _lock_payers(connection: Connection, senders: Collection[str], kind: str) -> dict[str, Payer]:
    """Lock the senders until the transaction ends, and return who pays for each of them; unknown ones are left out."""
    take_user_locks(connection, senders)
    parameters = {"senders": array_param(connection, senders), "kind": kind}
    found = connection.execute(_select_payers(connection.dialect.name), parameters)
    return {
        sender: Payer(sender, org_id, name, address, owner, owner_version, is_erased, AccountKey(org_id, account_id))
        for sender, org_id, name, address, owner, owner_version, is_erased, account_id in found
    }


@functools.cache
def _select_payers(dialect: str) -> Executable:
    of_owner = and_(
        accounts.c.org_id == users.c.org_id,
        accounts.c.owner_id == users.c.credit_owner_id,
        accounts.c.kind == bindparam("kind", type_=String),
    )
    columns = (users.c.id, users.c.org_id, users.c.name, users.c.email, users.c.credit_owner_id, users.c.owner_version,
               users.c.erased_at.is_not(None).label("is_erased"), accounts.c.id.label("account_id"))  # fmt: skip
    return select(*columns).join_from(users, accounts, of_owner).where(in_array(dialect, users.c.id, "senders"))


def _insert(
    connection: Connection,
    drafts: Mapping[JobKey, Charge],
    payers: Mapping[str, Payer],
    *,
    cause: str | None,
    now: datetime,
    lease_id: str | None = None,
    lease_until: datetime | None = None,
    due_at: datetime | None = None,
) -> set[JobKey]:
    """Write new charges, in the order of their keys; a known id is left as it stands. Returns the keys that were new.

    They are paid by the entry of `cause`; without one they are bulk jobs, whose messages are paid.
    """
    some = next(iter(drafts.values()))
    rows = [_row(draft, payers.get(draft.sender), cause) for draft in drafts.values()]
    parameters = {
        **rows_param(connection, rows, "new_charges"),
        "task": some.task,
        "kind": some.kind,
        "state": State.SENDING if lease_id else State.BULK,
        "attempts": int(lease_id is not None),
        "lease_id": lease_id,
        "lease_until": lease_until,
        "due_at": due_at,
        "cause": cause,
        "now": now,
    }
    if lease_id is not None:
        begun = [
            {"org_id": org_id, "job_ids": job_ids}
            for org_id, job_ids in by_organization(key for key, draft in drafts.items() if draft.is_new).items()
        ]
        parameters |= rows_param(connection, begun, "new_leases")
    inserted = execute_chain(
        connection, _insert_charges(connection.dialect.name, leased=lease_id is not None), parameters
    )
    return {JobKey(*row) for row in inserted.all()}


def _row(draft: Charge, payer: Payer | None, cause: str | None) -> Json:
    """Return what differs from one new charge to the next."""
    row = {
        "org_id": draft.org_id,
        "job_id": draft.job_id,
        "sender": draft.sender,
        "digest": draft.digest,
        "credits": draft.credits,
    }
    if payer is None or draft.state is State.REFUSED:
        return {**row, "reason": draft.reason, "detail": draft.detail}
    if cause is None:
        return row
    row["account_id"] = payer.account.account_id
    row["owner_version"] = payer.owner_version
    row["content"] = draft.content
    return row


@functools.cache
def _insert_charges(dialect: str, *, leased: bool) -> Sequence[Executable]:
    columns = ("org_id", "job_id", "sender", "owner_version", "digest", "account_id", "credits", "content", "reason",
               "detail")  # fmt: skip
    new_charges = rows_from(dialect, {name: charges.c[name].type for name in columns}, "new_charges")
    now = bindparam("now", type_=UtcDateTime)
    is_refused = new_charges.c.reason.is_not(None)
    is_paid = new_charges.c.account_id.is_not(None)
    values: dict[str, ColumnElement[Any]] = {
        **{name: new_charges.c[name] for name in columns},
        "task": bindparam("task", type_=String),
        "kind": bindparam("kind", type_=String),
        "charged_by": case((is_paid, bindparam("cause", type_=String)), else_=None),
        "refunded": sql_literal(0),
        "state": case((is_refused, sql_literal(State.REFUSED)), else_=bindparam("state", type_=String)),
        "attempts": case((is_refused, sql_literal(0)), else_=bindparam("attempts", type_=SmallInteger)),
        "crashes": sql_literal(0),
        "lease_id": bindparam("lease_id", type_=String),
        "lease_until": case((is_refused, None), else_=bindparam("lease_until", type_=UtcDateTime)),
        "due_at": case((is_refused, None), else_=bindparam("due_at", type_=UtcDateTime)),
        "created_at": now,
        "final_at": case((is_refused, now), else_=None),
    }
    # SQLite takes ON CONFLICT for a part of the SELECT unless that has a WHERE.
    rows = select(*_labelled(values)).select_from(new_charges).where(true())
    in_key_order = rows.order_by(new_charges.c.org_id, new_charges.c.job_id)
    insert_rows = insert_for(dialect, charges).from_select(list(values), in_key_order)
    insert_new = insert_rows.on_conflict_do_nothing().returning(charges.c.org_id, charges.c.job_id)
    return chained(dialect, insert_leases(dialect), insert_new, first_name="new_lease") if leased else [insert_new]


def _insert_messages(
    connection: Connection, bulk: Charge, messages: Sequence[Content], payer: Payer, *, cause: str
) -> None:
    """Write the charges of a bulk job's messages. No other job has ids like theirs, so none of them is known."""
    rows = [
        {"job_id": bulk_message_id(bulk.job_id, place), "credits": message.cost, "content": message.fields}
        for place, message in enumerate(messages)
    ]
    shared = {
        "org_id": bulk.org_id,
        "task": bulk.task,
        "kind": bulk.kind,
        "sender": bulk.sender,
        "owner_version": payer.owner_version,
        "digest": bulk.digest,
        "bulk_id": bulk.job_id,
        "account_id": payer.account.account_id,
        "charged_by": cause,
    }
    for group in in_groups(rows, _characters, STATEMENT_MAX):
        parameters = {**rows_param(connection, group, "new_messages"), **shared, "now": bulk.created_at}
        connection.execute(_insert_waiting(connection.dialect.name), parameters)


def _characters(row: Json) -> int:
    """Return how long a message is."""
    return sum(len(text) for text in row["content"].values() if isinstance(text, str))


@functools.cache
def _insert_waiting(dialect: str) -> Executable:
    columns = ("job_id", "credits", "content")
    shared = ("org_id", "task", "kind", "sender", "owner_version", "digest", "bulk_id", "account_id", "charged_by")
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


# -- paying -----------------------------------------------------------------------------------------------------------


def _debit(
    connection: Connection, new: Sequence[Charge], payers: Mapping[str, Payer], *, cause: str, now: datetime
) -> dict[JobKey, Charge]:
    """Debit each account once for all its new charges. Returns those that it cannot pay, refused."""
    by_account: defaultdict[AccountKey, list[Charge]] = defaultdict(list)
    for charge in new:
        by_account[payers[charge.sender].account].append(charge)
    moves = [_move(account, _paid(paid), cause) for account, paid in by_account.items()]
    moved = ledger.post(connection, moves, now)
    if len(moved) == len(moves):
        return {}
    return _debit_what_fits(connection, {key: by_account[key] for key in by_account.keys() - moved}, cause, now)


def _debit_what_fits(
    connection: Connection, by_account: Mapping[AccountKey, Sequence[Charge]], cause: str, now: datetime
) -> dict[JobKey, Charge]:
    """Debit accounts that cannot pay everything for what they can pay, in job order. Returns the rest, refused."""
    balances = ledger.lock_accounts(connection, by_account.keys())
    moves, refused = [], []
    for account, charged in by_account.items():
        available = balances[account].available
        fitting = []
        for charge in charged:
            if charge.credits <= available:
                available -= charge.credits
                fitting.append(charge)
            else:
                refused.append((charge, _too_little(charge, available)))
        if fitting:
            moves.append(_move(account, _paid(fitting), cause))
    ledger.post(connection, moves, now)
    return _refuse(connection, refused, now)


def _move(account: AccountKey, paid: Sequence[Paid], cause: str) -> Move:
    amount = -sum(one.credits for one in paid)
    return Move(account=account, amount=amount, cause_kind="charge", cause_id=cause, content=content_of(paid))


def _paid(charged: Iterable[Charge]) -> list[Paid]:
    return [Paid(charge.job_id, charge.digest, charge.sender, charge.credits) for charge in charged]


def _refuse(connection: Connection, unaffordable: Sequence[tuple[Charge, str]], now: datetime) -> dict[JobKey, Charge]:
    """Turn charges that this transaction has written into refusals for lack of credits, each with its sentence."""
    if not unaffordable:
        return {}
    rows = [{"org_id": charge.org_id, "job_id": charge.job_id, "detail": detail} for charge, detail in unaffordable]
    parameters = {**rows_param(connection, rows, "unaffordable"), "now": now}
    connection.execute(_refuse_charges(connection.dialect.name), parameters)
    return {
        charge.key: replace(charge, state=State.REFUSED, reason=Reason.INSUFFICIENT_CREDITS, detail=detail, attempts=0,
                            content=None, final_at=now, payer=None, is_new=False)
        for charge, detail in unaffordable
    }  # fmt: skip


@functools.cache
def _refuse_charges(dialect: str) -> Executable:
    types = {name: charges.c[name].type for name in ("org_id", "job_id", "detail")}
    unaffordable: FromClause = rows_from(dialect, types, "unaffordable")
    nothing = dict.fromkeys(("account_id", "charged_by", "owner_version", "lease_until", "due_at", "content"))
    return (
        update(charges)
        .where(charges.c.org_id == unaffordable.c.org_id, charges.c.job_id == unaffordable.c.job_id)
        .values(
            **nothing,
            state=State.REFUSED,
            reason=Reason.INSUFFICIENT_CREDITS,
            detail=unaffordable.c.detail,
            attempts=0,
            final_at=bindparam("now", type_=UtcDateTime),
        )
    )


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
