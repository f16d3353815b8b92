"""Jobs whose outcome nobody here can know: a person looks at them, and decides. Each decision is kept."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, select

from models import charges as charging
from models import dead, ledger
from models.answers import iso
from models.charges import Charge, State
from models.database import insert
from models.judging import content_to_resend, judge_refund
from models.paging import page_of
from models.tables import accounts, charges, decisions

Json = dict[str, Any]
Decision = Literal["refund", "resend"]


def listed(connection: Connection, page: int = 1) -> tuple[list[Json], bool]:
    """The unknown jobs of one page, those that were handed over first, first; and whether there are more."""
    query = (
        select(
            charges.c.job_id,
            charges.c.kind,
            charges.c.sender,
            accounts.c.owner_id,
            charges.c.credits,
            charges.c.attempts,
            charges.c.handed_at,
            charges.c.detail,
        )
        .join(accounts, accounts.c.id == charges.c.account_id)
        .where(charges.c.unknown_since.is_not(None))
        .order_by(charges.c.handed_at, charges.c.job_id)
    )
    found, more = page_of(connection, query, page)
    rows = [
        {
            "job_id": row.job_id,
            "kind": row.kind,
            "sender": row.sender,
            "paid_by": row.owner_id,
            "credits": row.credits,
            "attempts": row.attempts,
            "handed_at": iso(row.handed_at),
            "detail": row.detail,
        }
        for row in found
    ]
    return rows, more


def all_ids(connection: Connection) -> list[str]:
    """Every unknown job, by id."""
    query = select(charges.c.job_id).where(charges.c.unknown_since.is_not(None)).order_by(charges.c.job_id)
    return list(connection.execute(query).scalars())


def refund(
    connection: Connection,
    job_ids: Collection[str],
    *,
    operator: str,
    note: str | None = None,
    now: datetime,
    keep_dead: bool = True,
) -> list[Charge]:
    """End unknown jobs as failed, their credits back with who paid. Returns them as they stand then.

    An email that earlier attempts handed to some of its recipients ends as sent, and those stay charged. Ids that are
    not unknown (any more) are left alone, so that this may be run twice, and by several at once. `keep_dead` says
    whether a job that failed is kept for a replay.
    """
    settlements = [judge_refund(charge) for charge in charging.lock_unknown(connection, job_ids)]
    counted = ledger.settle(connection, settlements, now, before=State.UNKNOWN)
    if keep_dead:
        dead.keep_failed(connection, counted, now)
    return _decided(connection, "refund", [one.charge.job_id for one in counted], operator=operator, note=note, now=now)


def resend(
    connection: Connection, job_ids: Collection[str], *, operator: str, note: str | None = None, now: datetime
) -> list[Charge]:
    """Let unknown jobs be sent again, by the sweeper, as if nobody had tried before. Returns them as they stand then.

    Like `refund` it leaves alone what is not unknown.
    """
    unknown = charging.lock_unknown(connection, job_ids)
    for charge in unknown:
        charging.begin_anew(connection, charge, content_to_resend(charge), now)
    return _decided(connection, "resend", [charge.job_id for charge in unknown], operator=operator, note=note, now=now)


def _decided(
    connection: Connection,
    decision: Decision,
    job_ids: Sequence[str],
    *,
    operator: str,
    note: str | None,
    now: datetime,
) -> list[Charge]:
    """Keep who decided what, and give the jobs as they stand."""
    if not job_ids:
        return []
    made = {"decision": decision, "operator": operator, "note": note, "at": now}
    connection.execute(insert(connection, decisions), [{"job_id": job_id, **made} for job_id in job_ids])
    return charging.read_in_order(connection, job_ids)
