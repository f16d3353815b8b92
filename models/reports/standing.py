"""What stands of the thing that a message would make or change: compared before and after, it is the change."""

from typing import Any

from sqlalchemy import Connection, Row, Select, select

from models.database.schema import orders, organizations, plans, roles, users
from models.messages.base import Json, TaskMessage
from models.messages.billing import Purchase, SavePlan, SaveRole, SaveUser, SetOwner
from models.users.roles import RIGHTS
from models.users.users import find_user


def find_standing(connection: Connection, message: TaskMessage) -> Json | None:
    """Return the role, plan, user, credit owner or order that `message` names as it stands, or None if there is none.

    Raises
    ------
    TypeError
        For any other message.

    """
    match message:
        case SaveRole():
            return _role(connection, message)
        case SavePlan():
            return _fields(connection, select(*_but_id(plans.c)).where(plans.c.id == message.plan))
        case SaveUser():
            named = users.c.name, users.c.email, users.c.role, users.c.billing, users.c.version
            return _fields(connection, select(*named).where(users.c.id == message.user_id))
        case SetOwner():
            user = find_user(connection, message.user)
            return None if user is None else {"owner": user.owner}
        case Purchase():
            return _order(connection, message)
        case _:
            raise TypeError(type(message).__name__)


def _role(connection: Connection, role: SaveRole) -> Json | None:
    query = (
        select(roles)
        .join(organizations, organizations.c.id == roles.c.org_id)
        .where(organizations.c.name == role.organization, roles.c.role == role.role)
    )
    found = _fields(connection, query)
    return found and {"rights": [right for right in RIGHTS if found[right]], "version": found["version"]}


def _order(connection: Connection, purchase: Purchase) -> Json | None:
    buyer = find_user(connection, purchase.buyer)
    if buyer is None:
        return None
    shown = (orders.c[name] for name in ("plan", "email", "sms", "amount", "currency", "owner_id"))
    mine = orders.c.org_id == buyer.org_id, orders.c.order_id == purchase.order_id
    return _fields(connection, select(*shown).where(*mine))


def _but_id(columns: Any) -> list[Any]:  # noqa: ANN401  SQLAlchemy's collection
    return [column for column in columns if column.name != "id"]


def _fields(connection: Connection, query: Select[Any]) -> Json | None:
    row: Row[Any] | None = connection.execute(query).one_or_none()
    return None if row is None else dict(row._mapping)  # noqa: SLF001  public
