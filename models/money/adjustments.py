"""Adjustments: corrections by hand of what a credit owner holds, each kept with who made it and why."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from models.database.schema import adjustments
from models.database.statements import insert
from models.errors import Reason, Refused
from models.messages.billing import Adjustment
from models.messages.fields import KINDS, Kind
from models.money import ledger
from models.money.accounts import accounts_of
from models.money.chain import content_of_fields
from models.money.ledger import Move
from models.users.changes import record_change
from models.users.users import User, lock_users, require_rights, unknown_user


def adjust_credits(connection: Connection, adjustment: Adjustment, now: datetime) -> Row[Any]:
    """Give credits to an owner or take some away, once, and note what changed. Returns the adjustment's row.

    The accounts are those of `adjustment.owner`, also while they spend somebody else's credits. A debt stays: purchases
    pay it. The actor's right comes before anything else is looked up, so that somebody without it learns nothing.

    Raises
    ------
    Refused
        `unknown_user`, `not_permitted`, `conflicting_job`, `other_organization`, or `insufficient_credits` if the
        balance would be below zero. Nothing was done, so the same adjustment may come again.

    """
    named = lock_users(connection, {adjustment.actor, adjustment.owner})
    actor = named.get(adjustment.actor)
    if actor is None:
        raise unknown_user(adjustment.actor)
    earlier = _find_adjustment(connection, actor, adjustment)
    if earlier is not None and adjustment.has_digest(earlier.digest):  # by the same actor
        return earlier
    require_rights(connection, actor, "adjust_credits", what="adjusting a balance")
    if earlier is not None:
        sentence = (
            f"The adjustment_id {adjustment.adjustment_id} was used for another adjustment: give this one its own."
        )
        raise Refused(Reason.CONFLICTING_JOB, sentence)
    _require_colleague(actor, named.get(adjustment.owner), adjustment)
    made = connection.execute(
        insert(connection, adjustments)
        .values(
            org_id=actor.org_id,
            adjustment_id=adjustment.adjustment_id,
            digest=adjustment.digest(),
            actor_id=actor.id,
            owner_id=adjustment.owner,
            email=adjustment.credits.email,
            sms=adjustment.credits.sms,
            reason=adjustment.reason,
            at=now,
        )
        .on_conflict_do_nothing()
        .returning(*adjustments.c)
    ).one_or_none()
    if made is None:  # the same adjustment was made at the same time
        return adjust_credits(connection, adjustment, now)
    _move(connection, made, now)
    return made


def _find_adjustment(connection: Connection, actor: User, adjustment: Adjustment) -> Row[Any] | None:
    """Return the adjustment that was made under this id in the actor's organization."""
    return connection.execute(
        select(adjustments).where(
            adjustments.c.org_id == actor.org_id, adjustments.c.adjustment_id == adjustment.adjustment_id
        )
    ).one_or_none()


def _require_colleague(actor: User, owner: User | None, adjustment: Adjustment) -> None:
    if owner is None:
        raise unknown_user(adjustment.owner)
    if owner.org_id != actor.org_id:
        sentence = "Actor and owner must belong to one organization: nobody adjusts credits beyond it."
        raise Refused(Reason.OTHER_ORGANIZATION, sentence)


def _move(connection: Connection, adjustment: Row[Any], now: datetime) -> None:
    """Move the owner's accounts, and note their balances before and after."""
    keys = accounts_of(connection, adjustment.org_id, adjustment.owner_id)
    amounts: dict[Kind, int] = {kind: adjustment._mapping[kind] for kind in KINDS if adjustment._mapping[kind]}  # noqa: SLF001  public
    balances = ledger.lock_accounts(connection, [keys[kind] for kind in amounts])
    old: dict[str, int] = {kind: balances[keys[kind]].available for kind in amounts}
    new: dict[str, int] = {kind: old[kind] + amount for kind, amount in amounts.items()}
    for kind, amount in amounts.items():
        if new[kind] < 0:
            raise _too_few(adjustment.owner_id, kind, old[kind], -amount)
    moves = [
        Move(
            account=keys[kind],
            amount=amount,
            cause_kind="adjustment",
            cause_id=adjustment.adjustment_id,
            content=adjustment_content(adjustment),
        )
        for kind, amount in amounts.items()
    ]
    ledger.post(connection, moves, now)
    record_change(connection, "credits", adjustment.owner_id, org_id=adjustment.org_id, actor=adjustment.actor_id,
                  old=old, new=new, now=now)  # fmt: skip


def _too_few(owner: str, kind: Kind, available: int, asked: int) -> Refused:
    sentence = f"{owner} holds {available} {kind} credits, so {asked} cannot be taken: take {available} at most."
    return Refused(Reason.INSUFFICIENT_CREDITS, sentence)


def adjustment_content(adjustment: Row[Any]) -> str:
    """Return the digest of an adjustment by which its entries name it."""
    return content_of_fields(adjustment.adjustment_id, adjustment.digest, adjustment.actor_id, adjustment.owner_id,
                             adjustment.email, adjustment.sms)  # fmt: skip
