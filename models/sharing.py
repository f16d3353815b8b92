"""Who spends whose credits: the one move, and its rules."""

from datetime import datetime

from sqlalchemy import Connection, func, select, update

from models.database import insert
from models.errors import Reason, Refused
from models.messages import SetOwner
from models.tables import owner_changes, users
from models.users import Person, fence, has_rights, unknown


def set_owner(connection: Connection, change: SetOwner, digest: str, now: datetime) -> None:
    """Make `change.user` spend the credits of `change.owner` from this moment on; themselves ends the sharing.

    Everybody named is locked first, so that the rules hold at the moment of the change and a charge sees either the
    old owner or the new one. A change that was made before is not made again.

    Raises
    ------
    Refused
        `conflicting_job`, `unknown_user`, `not_permitted`, `other_organization`, `owner_is_credit_user` or
        `user_has_credit_users`.

    """
    people = fence(connection, {change.actor, change.user, change.owner}, to_change=True)
    if _made_before(connection, change, digest):
        return
    actor, user, owner = (_known(people, named) for named in (change.actor, change.user, change.owner))
    _require_one_organization(actor, user, owner)
    _require_rights(connection, actor)
    if owner.id != user.id:
        _require_free_to_share(connection, user, owner)
    connection.execute(
        update(users).where(users.c.id == user.id).values(credit_owner_id=owner.id, is_owner=owner.id == user.id)
    )
    connection.execute(
        insert(connection, owner_changes).values(
            change_id=change.change_id,
            digest=digest,
            actor_id=actor.id,
            user_id=user.id,
            old_owner_id=user.owner,
            new_owner_id=owner.id,
            at=now,
        )
    )


def _made_before(connection: Connection, change: SetOwner, digest: str) -> bool:
    known = connection.execute(
        select(owner_changes.c.digest).where(owner_changes.c.change_id == change.change_id)
    ).scalar()
    if known is not None and known != digest:
        sentence = f"The change_id {change.change_id} was used for another change: give this one an id of its own."
        raise Refused(Reason.CONFLICTING_JOB, sentence)
    return known is not None


def _known(people: dict[str, Person], named: str) -> Person:
    if named not in people:
        raise unknown(named)
    return people[named]


def _require_one_organization(actor: Person, user: Person, owner: Person) -> None:
    if not actor.organization == user.organization == owner.organization:
        sentence = "Actor, user and owner must belong to one organization: credits are not shared beyond it."
        raise Refused(Reason.OTHER_ORGANIZATION, sentence)


def _require_rights(connection: Connection, actor: Person) -> None:
    if not has_rights(connection, actor, "view_user_list", "edit_user", to_change=True):
        sentence = (
            f"The role {actor.role} of {actor.id} does not hold both rights view_user_list and edit_user, "
            "which setting a credit owner needs: ask somebody whose role does."
        )
        raise Refused(Reason.NOT_PERMITTED, sentence)


def _require_free_to_share(connection: Connection, user: Person, owner: Person) -> None:
    if owner.shares:
        sentence = f"{owner.id} uses the credits of {owner.owner} and has none to share: choose {owner.owner} instead."
        raise Refused(Reason.OWNER_IS_CREDIT_USER, sentence)
    credit_users = connection.execute(
        select(func.count()).where(users.c.credit_owner_id == user.id, users.c.id != user.id)
    ).scalar_one()
    if credit_users:
        sentence = (
            f"{credit_users} other{'s use' if credit_users > 1 else ' uses'} the credits of {user.id}: "
            "set their credit owner back to themselves first."
        )
        raise Refused(Reason.USER_HAS_CREDIT_USERS, sentence)
