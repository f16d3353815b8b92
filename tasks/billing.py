"""`credits.purchase`, `credits.set_owner`, and the saving of users, roles and plans: one short transaction each."""

from celery import shared_task
from sqlalchemy import Connection

from models.messages.base import Json
from models.messages.billing import Purchase, SavePlan, SaveRole, SaveUser, SetOwner
from models.money import ledger
from models.money.orders import place_order, upsert_plan
from models.sends.charges import adopt_refused
from models.users.roles import upsert_role
from models.users.sharing import set_credit_owner
from models.users.users import upsert_user
from tasks.base import PostageTask
from tasks.context import Context


def purchase(context: Context, order: Purchase) -> Json:
    """Credit an order to the buyer's credit owner, with the buyer's own billing information on it."""
    placed = context.database.write(lambda connection: place_order(connection, order, context.now(connection)))
    return {"order_id": order.order_id} | _done(
        buyer=placed.buyer_id,
        paid_by=placed.buyer_id,
        owner=placed.owner_id,
        credits={"email": placed.email, "sms": placed.sms},
        amount=placed.amount,
        currency=placed.currency,
    )


def set_owner(context: Context, change: SetOwner) -> Json:
    """Let a user spend another's credits from now on, or their own again."""
    context.database.write(lambda connection: set_credit_owner(connection, change, context.now(connection)))
    return {"change_id": change.change_id} | _done(user=change.user, owner=change.owner)


def save_user(context: Context, user: SaveUser) -> Json:
    """Make a user with empty accounts, or change one."""

    def save(connection: Connection) -> None:
        now = context.now(connection)
        org_id = upsert_user(connection, user, now)
        if org_id is not None:
            ledger.open_accounts(connection, org_id, user.user_id, now)
            adopt_refused(connection, org_id, user.user_id)

    context.database.write(save)
    return _done(user_id=user.user_id)


def save_role(context: Context, role: SaveRole) -> Json:
    """Make or change a role."""
    context.database.write(lambda connection: upsert_role(connection, role, context.now(connection)))
    return _done(organization=role.organization, role=role.role)


def save_plan(context: Context, plan: SavePlan) -> Json:
    """Make or change a plan."""
    context.database.write(lambda connection: upsert_plan(connection, plan, context.now(connection)))
    return _done(plan=plan.plan)


def _done(**fields: object) -> Json:
    return {"status": "done", "reason": None, "detail": None, **fields}


@shared_task(name="credits.purchase", base=PostageTask)
def credits_purchase(context: Context, message: Purchase) -> Json:
    """A purchase."""
    return purchase(context, message)


@shared_task(name="credits.set_owner", base=PostageTask)
def credits_set_owner(context: Context, message: SetOwner) -> Json:
    """A change of credit owner."""
    return set_owner(context, message)


@shared_task(name="users.save", base=PostageTask)
def users_save(context: Context, message: SaveUser) -> Json:
    """A user."""
    return save_user(context, message)


@shared_task(name="roles.save", base=PostageTask)
def roles_save(context: Context, message: SaveRole) -> Json:
    """A role."""
    return save_role(context, message)


@shared_task(name="plans.save", base=PostageTask)
def plans_save(context: Context, message: SavePlan) -> Json:
    """A plan."""
    return save_plan(context, message)
