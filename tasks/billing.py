"""credits.purchase, credits.set_owner, and the saving of users, roles and plans: one short transaction each."""

from celery import shared_task

from models import orders, sharing, users
from models.messages import Purchase, SavePlan, SaveRole, SaveUser, SetOwner
from tasks.context import Context, Json
from tasks.door import Door


def purchase(context: Context, order: Purchase) -> Json:
    """Credit an order to the buyer's credit owner, with the buyer's own billing information on it."""
    digest = order.digest("credits.purchase")
    made = context.database.transact(lambda connection: orders.purchase(connection, order, digest, context.now()))
    return {
        "order_id": order.order_id,
        "status": "done",
        "reason": None,
        "detail": None,
        "buyer": made.buyer_id,
        "paid_by": made.buyer_id,
        "owner": made.owner_id,
        "credits": {"email": made.email, "sms": made.sms},
        "amount": made.amount,
        "currency": made.currency,
    }


def set_owner(context: Context, change: SetOwner) -> Json:
    """Make a user spend another's credits from now on, or their own again."""
    digest = change.digest("credits.set_owner")
    context.database.transact(lambda connection: sharing.set_owner(connection, change, digest, context.now()))
    return {
        "change_id": change.change_id,
        "status": "done",
        "reason": None,
        "detail": None,
        "user": change.user,
        "owner": change.owner,
    }


def save_user(context: Context, user: SaveUser) -> Json:
    """Make or change a user."""
    context.database.transact(lambda connection: users.save_user(connection, user, context.now()))
    return {"status": "done", "reason": None, "detail": None, "user_id": user.user_id}


def save_role(context: Context, role: SaveRole) -> Json:
    """Make or change a role."""
    context.database.transact(lambda connection: users.save_role(connection, role))
    return {"status": "done", "reason": None, "detail": None, "organization": role.organization, "role": role.role}


def save_plan(context: Context, plan: SavePlan) -> Json:
    """Make or change a plan."""
    context.database.transact(lambda connection: orders.save_plan(connection, plan))
    return {"status": "done", "reason": None, "detail": None, "plan": plan.plan}


@shared_task(name="credits.purchase", base=Door)
def credits_purchase(context: Context, message: Purchase) -> Json:
    """A purchase."""
    return purchase(context, message)


@shared_task(name="credits.set_owner", base=Door)
def credits_set_owner(context: Context, message: SetOwner) -> Json:
    """A change of credit owner."""
    return set_owner(context, message)


@shared_task(name="users.save", base=Door)
def users_save(context: Context, message: SaveUser) -> Json:
    """A user."""
    return save_user(context, message)


@shared_task(name="roles.save", base=Door)
def roles_save(context: Context, message: SaveRole) -> Json:
    """A role."""
    return save_role(context, message)


@shared_task(name="plans.save", base=Door)
def plans_save(context: Context, message: SavePlan) -> Json:
    """A plan."""
    return save_plan(context, message)
