"""The part of a story that is about credits: whose they were and why, what came back, and by which entries."""

from typing import Any

from sqlalchemy import Connection, Row, func, select

from models.database.schema import accounts, charges, entries, owner_changes
from models.messages.answer import iso_time
from models.messages.base import Json
from models.reports.rollup import same_account
from models.reports.story_event import StoryEvent, StoryScope, counted, said_time
from models.sends.charges import Charge, State, is_job, is_message_of


def find_paid(connection: Connection, charge: Charge) -> Row[Any] | None:
    """Return what was paid by which entry, and given back; None if nothing was. A bulk job is paid by one entry."""
    paid_by = (charges.c.org_id, charges.c.account_id, charges.c.charged_by, charges.c.owner_version,
               accounts.c.owner_id.label("payer"))  # fmt: skip
    return connection.execute(
        select(
            *paid_by,
            func.sum(charges.c.credits).label("credits"),
            func.sum(charges.c.refunded).label("refunded"),
            func.max(charges.c.refunded_at).label("refunded_at"),
            func.max(charges.c.refunded_by).label("refunded_by"),
            func.count(charges.c.refunded_by.distinct()).label("refunds"),
            func.count(charges.c.refunded_by).label("messages_refunded"),
            func.count().label("messages"),
        )
        .join_from(charges, accounts, same_account(charges))
        .where(is_message_of(charge.key) if charge.state is State.BULK else is_job(charge.key))
        .group_by(*paid_by)
    ).one_or_none()


def charged_event(connection: Connection, charge: Charge, paid: Row[Any], scope: StoryScope) -> StoryEvent:
    """Return whose credits were paid, how many, why theirs, and by which entry."""
    change = _owner_change(connection, charge, paid.owner_version)
    entry = _entry(connection, paid, "charge", paid.charged_by)
    credits_ = counted(int(paid.credits), f"{charge.kind} credit")
    return StoryEvent(
        kind="charged",
        at=charge.created_at,
        text=f"{paid.payer} paid {credits_}{_why(charge.sender, change)}{_by(charge, entry, scope)}.",
        fields={
            "credits": int(paid.credits),
            "paid_by": paid.payer,
            "owner_change": _change_fields(change),
            **_fields(charge, entry, scope),
        },
    )


def refunded_event(connection: Connection, charge: Charge, paid: Row[Any], scope: StoryScope) -> StoryEvent:
    """Return what went back in all. Of a bulk job that may have been by several entries."""
    entry = _entry(connection, paid, "refund", paid.refunded_by) if paid.refunds == 1 else None
    by = _by(charge, entry, scope) if paid.refunds == 1 else f", by {paid.refunds} entries"
    credits_ = counted(int(paid.refunded), f"{charge.kind} credit")
    return StoryEvent(
        kind="refunded",
        at=paid.refunded_at,
        text=f"{credits_} went back to {paid.payer}, for {_for_what(charge, paid)}{by}.",
        fields={"credits": int(paid.refunded), "paid_by": paid.payer, **_fields(charge, entry, scope)},
    )


def _for_what(charge: Charge, paid: Row[Any]) -> str:
    if paid.refunded == paid.credits:
        return "all of it"
    if charge.state is State.BULK:
        return f"{paid.messages_refunded} of {paid.messages} messages"
    return f"{paid.refunded} of {paid.credits} recipients"


def _owner_change(connection: Connection, charge: Charge, version: int) -> Row[Any] | None:
    """Return the change by which the sender got the credit owner who has paid; None if there was none."""
    return connection.execute(
        select(owner_changes).where(
            owner_changes.c.org_id == charge.org_id,
            owner_changes.c.user_id == charge.sender,
            owner_changes.c.version == version,
        )
    ).one_or_none()


def _why(sender: str, change: Row[Any] | None) -> str:
    if change is None:
        return " of their own"
    whose = "their own again" if change.new_owner_id == sender else f"those of {change.new_owner_id}"
    since = f"since {said_time(change.at)} ({change.change_id}, by {change.actor_id})"
    return f", because {sender} spent {whose} {since}"


def _change_fields(change: Row[Any] | None) -> Json | None:
    if change is None:
        return None
    by = {"change_id": change.change_id, "actor": change.actor_id}
    return {**by, "owner": change.new_owner_id, "at": iso_time(change.at)}


def _entry(connection: Connection, paid: Row[Any], cause_kind: str, cause_id: str) -> Row[Any] | None:
    return connection.execute(
        select(entries).where(
            entries.c.org_id == paid.org_id,
            entries.c.account_id == paid.account_id,
            entries.c.cause_kind == cause_kind,
            entries.c.cause_id == cause_id,
        )
    ).one_or_none()


def _fields(charge: Charge, entry: Row[Any] | None, scope: StoryScope) -> Json:
    shown = entry if scope.sees_pool else None
    return {
        "entry": None if entry is None else f"{charge.kind}/{entry.seq}",
        "entry_amount": None if shown is None else shown.amount,
        "balance_after": None if shown is None else shown.balance_after,
    }


def _by(charge: Charge, entry: Row[Any] | None, scope: StoryScope) -> str:
    if entry is None:
        return ""
    left = f", which left {entry.balance_after}" if scope.sees_pool else ""
    return f"; entry {charge.kind}/{entry.seq}{left}"
