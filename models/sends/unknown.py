"""Unknown jobs, which the carrier may or may not have taken: a person decides, and the decision is stored."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection, select

from models.database.paging import SortKey, fetch_page
from models.database.schema import accounts, charges, decisions, organizations
from models.database.statements import insert
from models.ids import new_id
from models.messages.answer import iso_time
from models.messages.base import Json
from models.sends.charges import Charge, JobKey, State, find_charges, lock_unknown, restart
from models.sends.outcomes import content_for_resend, settlement_of_refund
from models.sends.settling import settle, settled_charge

Decision = Literal["refund", "resend"]


def list_unknown(connection: Connection, cursor: str | None = None) -> tuple[list[Json], str | None]:
    """Return one page of unknown jobs, the longest unknown first, and the cursor of the next page."""
    query = (
        select(
            organizations.c.name.label("organization"),
            charges.c.org_id,
            charges.c.unknown_since,
            charges.c.job_id,
            charges.c.kind,
            charges.c.sender,
            accounts.c.owner_id,
            charges.c.credits,
            charges.c.attempts,
            charges.c.handover_started_at,
            charges.c.detail,
        )
        .join(accounts, (accounts.c.org_id == charges.c.org_id) & (accounts.c.id == charges.c.account_id))
        .join(organizations, organizations.c.id == charges.c.org_id)
        .where(charges.c.unknown_since.is_not(None))
    )
    names = ("unknown_since", "org_id", "job_id")
    page = fetch_page(connection, query, {name: SortKey(charges.c[name]) for name in names}, cursor)
    rows = [
        {
            "organization": row.organization,
            "job_id": row.job_id,
            "kind": row.kind,
            "sender": row.sender,
            "paid_by": row.owner_id,
            "credits": row.credits,
            "attempts": row.attempts,
            "handed_at": iso_time(row.handover_started_at),
            "detail": row.detail,
        }
        for row in page.rows
    ]
    return rows, page.next


def unknown_keys(
    connection: Connection, job_ids: Collection[str] | None = None, org_id: int | None = None
) -> list[JobKey]:
    """Return the keys of unknown jobs, in order: all, or those with these ids, or those of one organization."""
    query = (
        select(charges.c.org_id, charges.c.job_id)
        .where(charges.c.unknown_since.is_not(None))
        .order_by(charges.c.org_id, charges.c.job_id)
    )
    if job_ids is not None:
        query = query.where(charges.c.job_id.in_(job_ids))
    if org_id is not None:
        query = query.where(charges.c.org_id == org_id)
    return [JobKey(*row) for row in connection.execute(query)]


def refund_unknown(
    connection: Connection,
    jobs: Iterable[JobKey],
    *,
    operator: str,
    note: str | None = None,
    now: datetime,
    keep_dead: bool = True,
) -> list[Charge]:
    """End unknown jobs as failed, with their credits back at the payer. Returns them as they stand then.

    An email that earlier attempts handed to some of its recipients ends as sent, and those stay charged. Jobs that are
    not unknown (any more) are left alone, so this may be run twice, and by several people at once. `keep_dead` says
    whether a letter is kept of jobs that failed.
    """
    unknown = lock_unknown(connection, jobs)
    _record_decision(connection, "refund", unknown, operator=operator, note=note, now=now)
    settlements = [settlement_of_refund(charge) for charge in unknown]
    counted = settle(connection, settlements, now, keep_dead=keep_dead, state_before=State.UNKNOWN)
    return [settled_charge(settlement, now) for settlement in counted]


def resend_unknown(
    connection: Connection, jobs: Iterable[JobKey], *, operator: str, note: str | None = None, now: datetime
) -> list[Charge]:
    """Let the sweeper send unknown jobs again, with all attempts before them. Returns them as they stand then.

    Like `refund_unknown`, it leaves jobs alone that are not unknown.
    """
    unknown = lock_unknown(connection, jobs)
    for charge in unknown:
        restart(connection, charge, content_for_resend(charge), now)
    _record_decision(connection, "resend", unknown, operator=operator, note=note, now=now)
    return list(find_charges(connection, [charge.key for charge in unknown]).values())


def _record_decision(
    connection: Connection,
    decision: Decision,
    unknown: Sequence[Charge],
    *,
    operator: str,
    note: str | None,
    now: datetime,
) -> None:
    """Store who decided what about these jobs."""
    made = {"decision": decision, "operator": operator, "note": note, "at": now}
    rows = [{"id": new_id(), **charge.key._asdict(), **made} for charge in unknown]
    if rows:
        connection.execute(insert(connection, decisions), rows)
