"""Settling: writing how attempts ended, with refunds and dead letters, in the caller's transaction."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Executable, Integer, String, bindparam, case, func, null, update
from sqlalchemy.types import TypeEngine

from models.database.json_rows import rows_from, rows_param
from models.database.schema import UtcDateTime, charges
from models.database.statements import chained, execute_chain, sql_literal
from models.ids import new_id
from models.messages.base import Json
from models.money import ledger
from models.money.accounts import AccountKey
from models.money.chain import Paid, content_of
from models.money.ledger import Move
from models.sends.attempts import record_tries
from models.sends.charges import FINAL, Charge, JobKey, State
from models.sends.dead_letters import keep_failed
from models.sends.leases import ATTEMPT, LeaseKey, count_by_lease, delete_finished_leases, is_held
from models.sends.outcomes import Settlement

NOTHING_BEFORE: Mapping[LeaseKey, int] = {}


def settle(
    connection: Connection,
    settlements: Sequence[Settlement],
    now: datetime,
    *,
    keep_dead: bool,
    state_before: State = State.SENDING,
    settled_before: Mapping[LeaseKey, int] = NOTHING_BEFORE,
) -> list[Settlement]:
    """Write how attempts ended, give back to the payers what is to be given back, and keep a letter of each failed job.

    Returns the settlements that counted, in their order: an attempt that is no longer the last one of its job changes
    nothing. `state_before` is `unknown` where a person has decided. The lease is
    deleted with its last job; `settled_before` is how many jobs of each lease were settled by earlier calls.
    """
    cause = new_id()
    ended = _end_attempts(connection, settlements, cause, now, state_before=state_before, settled_before=settled_before)
    counted = [one for one in settlements if one.charge.key in ended]
    record_tries(connection, counted, now)
    if keep_dead:
        keep_failed(connection, counted, now)
    ledger.post(connection, _refunds(counted, ended, cause), now)  # last, because it locks accounts
    return counted


def _refunds(counted: Sequence[Settlement], paid_from: Mapping[JobKey, int], cause: str) -> list[Move]:
    """Return the moves that give back: one for each account, for all its jobs together."""
    by_account: defaultdict[AccountKey, list[Paid]] = defaultdict(list)
    for one in counted:
        charge = one.charge
        if one.refund:
            account = AccountKey(charge.org_id, paid_from[charge.key])
            by_account[account].append(Paid(charge.job_id, charge.digest, charge.sender, one.refund))
    return [
        Move(
            account=account,
            amount=sum(one.credits for one in back),
            cause_kind="refund",
            cause_id=cause,
            content=content_of(back),
        )
        for account, back in by_account.items()
    ]


def settled_charge(settlement: Settlement, now: datetime) -> Charge:
    """Bring the charge of a settlement that counted up to date, and return it."""
    charge, is_final = settlement.charge, settlement.state in FINAL
    charge.state = settlement.state
    charge.reason = settlement.reason
    charge.detail = settlement.detail
    charge.refunded = settlement.refund
    charge.due_at = _due_at(settlement, now)
    charge.recipients_refused = settlement.recipients_refused
    charge.carrier_reference = settlement.carrier_reference
    charge.carrier = settlement.carrier
    charge.attempts -= not settlement.counts
    charge.crashes += settlement.crashed
    doubt_since = charge.handover_started_at or settlement.doubt_since or now
    charge.handover_started_at = doubt_since if settlement.in_doubt else None
    charge.final_at = now if is_final else None
    charge.content = None if is_final else settlement.content or charge.content
    charge.is_new = False
    return charge


def _due_at(settlement: Settlement, now: datetime) -> datetime | None:
    return None if settlement.retry_after is None else now + settlement.retry_after


def _end_attempts(
    connection: Connection,
    settlements: Sequence[Settlement],
    cause: str,
    now: datetime,
    *,
    state_before: State,
    settled_before: Mapping[LeaseKey, int],
) -> dict[JobKey, int]:
    """End the attempts that are still the last ones. Returns their jobs, each with the account that paid.

    What they give back is given back by the entry of `cause`.
    """
    rows = [
        {
            "org_id": one.charge.org_id,
            "job_id": one.charge.job_id,
            "attempts": one.charge.attempts,
            "lease_id": one.charge.lease_id,
            **_changes(one, now),
        }
        for one in settlements
    ]
    leased = count_by_lease(one.charge for one in settlements) if state_before is State.SENDING else {}
    settled_leases = [
        {**lease._asdict(), "jobs": settled_before.get(lease, 0) + jobs} for lease, jobs in leased.items()
    ]
    parameters = {
        **rows_param(connection, rows, "settlements"),
        **rows_param(connection, settled_leases, "settled_leases"),
        "state_before": state_before,
        "cause": cause,
        "now": now,
    }
    ended = execute_chain(connection, _end_attempts_and_leases(connection.dialect.name), parameters)
    return {JobKey(org_id, job_id): account_id for org_id, job_id, account_id in ended}


_CHANGED = ("state", "reason", "detail", "refunded", "due_at", "recipients_refused", "carrier", "carrier_reference",
            "crashes", "content", "uncounted", "doubt_since")  # fmt: skip


def _changes(settlement: Settlement, now: datetime) -> Json:
    """Return the columns that a settlement sets. Empty ones are left out to keep the JSON short."""
    values = {
        "state": settlement.state,
        "reason": settlement.reason,
        "detail": settlement.detail,
        "refunded": settlement.refund,
        "due_at": _due_at(settlement, now),
        "recipients_refused": settlement.recipients_refused,
        "carrier": settlement.carrier,
        "carrier_reference": settlement.carrier_reference,
        "crashes": settlement.charge.crashes + settlement.crashed,
        "content": settlement.content,
        "uncounted": int(not settlement.counts),
        "doubt_since": (settlement.doubt_since or now) if settlement.in_doubt else None,
    }
    return {name: value for name, value in values.items() if value}


@functools.cache
def _end_attempts_and_leases(dialect: str) -> Sequence[Executable]:
    names = (*ATTEMPT, *_CHANGED)
    types: dict[str, TypeEngine[Any]] = {name: charges.c[name].type for name in names if name in charges.c}
    more: dict[str, TypeEngine[Any]] = {"uncounted": Integer(), "doubt_since": UtcDateTime()}
    settlement = rows_from(dialect, {**types, **more}, "settlements")
    now = bindparam("now", type_=UtcDateTime)
    is_final = settlement.c.state.in_([sql_literal(state) for state in FINAL])
    doubt_since = func.coalesce(charges.c.handover_started_at, settlement.c.doubt_since)
    values: dict[str, ColumnElement[Any]] = {
        **{name: settlement.c[name] for name in ("state", "reason", "detail", "due_at", "recipients_refused",
                                                 "carrier", "carrier_reference")},
        "refunded": func.coalesce(settlement.c.refunded, sql_literal(0)),
        "refunded_by": case((settlement.c.refunded > sql_literal(0), bindparam("cause", type_=String)), else_=None),
        "refunded_at": case((settlement.c.refunded > sql_literal(0), now), else_=None),
        "attempts": charges.c.attempts - func.coalesce(settlement.c.uncounted, sql_literal(0)),
        "crashes": func.coalesce(settlement.c.crashes, sql_literal(0)),
        "lease_until": null(),
        "handover_started_at": case((settlement.c.doubt_since.is_not(None), doubt_since), else_=None),
        "unknown_since": case((settlement.c.state == sql_literal(State.UNKNOWN), now), else_=None),
        "final_at": case((is_final, now), else_=None),
        "content": case((is_final, None), else_=func.coalesce(settlement.c.content, charges.c.content)),
    }  # fmt: skip
    end_attempts = (
        update(charges)
        .where(is_held(settlement, bindparam("state_before", type_=String)))
        .values(values)
        .returning(charges.c.org_id, charges.c.job_id, charges.c.account_id)
    )
    return chained(dialect, delete_finished_leases(dialect), end_attempts, first_name="finished_leases")
