"""Credit sharing: the one change, who may make it, and the rules that it must keep."""

from datetime import datetime

from sqlalchemy import Connection, func, select, update

from models.database.schema import owner_changes, users
from models.database.statements import insert
from models.errors import Reason, Refused
from models.messages.billing import SetOwner
from models.users.changes import record_change
from models.users.users import User, erased_user, lock_users, require_rights, unknown_user


def set_credit_owner(connection: Connection, change: SetOwner, now: datetime) -> None:
    """Let `change.user` spend the credits of `change.owner` from now on. Their own id ends the sharing.

    All users named are locked first, so the rules hold at the moment of the change. The actor's rights come before
    anything else is looked up, so that somebody without them learns nothing. A change that was made before is not made
    again.

    Raises
    ------
    Refused
        `conflicting_job`, `unknown_user`, `not_permitted`, `other_organization`, `owner_is_credit_user` or
        `user_has_credit_users`.

    """
    named = lock_users(connection, {change.actor, change.user, change.owner}, to_change=True)
    actor = _require_known(named, change.actor)
    earlier = _digest_before(connection, actor, change)
    if earlier is not None and change.has_digest(earlier):  # the very same change, by the same actor
        return
    require_rights(connection, actor, "view_user_list", "edit_user", what="setting a credit owner")
    if earlier is not None:
        sentence = f"The change_id {change.change_id} was used for another change: give this one an id of its own."
        raise Refused(Reason.CONFLICTING_JOB, sentence)
    user, owner = (_require_known(named, one) for one in (change.user, change.owner))
    _require_one_organization(actor, user, owner)
    if owner.id != user.id:
        _require_eligible(connection, user, owner)
    version = user.owner_version + 1
    connection.execute(
        update(users)
        .where(users.c.id == user.id)
        .values(credit_owner_id=owner.id, is_owner=owner.id == user.id, owner_version=version)
    )
    connection.execute(
        insert(connection, owner_changes).values(
            org_id=actor.org_id,
            change_id=change.change_id,
            digest=change.digest(),
            actor_id=actor.id,
            user_id=user.id,
            version=version,
            old_owner_id=user.owner,
            new_owner_id=owner.id,
            at=now,
        )
    )
    record_change(connection, "owner", user.id, org_id=user.org_id, actor=actor.id, old={"owner": user.owner},
                  new={"owner": owner.id}, now=now)  # fmt: skip


def _digest_before(connection: Connection, actor: User, change: SetOwner) -> str | None:
    """Return the digest of the change that was made under this id in the actor's organization."""
    return connection.execute(
        select(owner_changes.c.digest).where(
            owner_changes.c.org_id == actor.org_id, owner_changes.c.change_id == change.change_id
        )
    ).scalar()


def _require_known(users_by_id: dict[str, User], user_id: str) -> User:
    if user_id not in users_by_id:
        raise unknown_user(user_id)
    return users_by_id[user_id]


def _require_one_organization(actor: User, user: User, owner: User) -> None:
    if not actor.org_id == user.org_id == owner.org_id:
        sentence = "Actor, user and owner must belong to one organization: credits are not shared beyond it."
        raise Refused(Reason.OTHER_ORGANIZATION, sentence)


def _require_eligible(connection: Connection, user: User, owner: User) -> None:
    """Make sure that sharing stays one level deep, and that neither was erased."""
    for named in (user, owner):
        if named.is_erased:
            raise erased_user(named.id)
    if owner.is_credit_user:
        sentence = f"{owner.id} uses the credits of {owner.owner} and has none to share: choose {owner.owner} instead."
        raise Refused(Reason.OWNER_IS_CREDIT_USER, sentence)
    require_no_credit_users(connection, user)


def require_no_credit_users(connection: Connection, user: User) -> None:
    """Make sure that nobody else spends the credits of a user who is locked.

    Raises
    ------
    Refused
        `user_has_credit_users`.

    """
    credit_users = connection.execute(
        select(func.count()).where(users.c.credit_owner_id == user.id, users.c.id != user.id)
    ).scalar_one()
    if credit_users:
        sentence = (
            f"{credit_users} other{'s use' if credit_users > 1 else ' uses'} the credits of {user.id}: "
            "set their credit owner back to themselves first."
        )
        raise Refused(Reason.USER_HAS_CREDIT_USERS, sentence)
