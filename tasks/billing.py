"""Purchases and corrections, changes of owner, and the saving of users, roles and plans: one short transaction each."""

from celery import shared_task
from sqlalchemy import Connection

from models.messages.base import Json
from models.messages.billing import Adjustment, Purchase, Reversal, SavePlan, SaveRole, SaveUser, SetOwner
from models.money import ledger
from models.money.adjustments import adjust_credits
from models.money.orders import place_order, upsert_plan
from models.money.reversals import reverse_order
from models.sends.charges import adopt_refused
from models.users.roles import upsert_role
from models.users.sharing import set_credit_owner
from models.users.users import take_user_locks, upsert_user
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


def reverse(context: Context, reversal: Reversal) -> Json:
    """Take back the credits of an order that was paid back."""
    taken = context.database.write(lambda connection: reverse_order(connection, reversal, context.now(connection)))
    return {"reversal_id": reversal.reversal_id} | _done(
        order_id=taken.order_id,
        kind=taken.kind,
        buyer=taken.buyer_id,
        owner=taken.owner_id,
        credits={"email": taken.email, "sms": taken.sms},
        debt={"email": taken.email_debt, "sms": taken.sms_debt},
    )


def adjust(context: Context, adjustment: Adjustment) -> Json:
    """Correct by hand what a credit owner holds."""
    made = context.database.write(lambda connection: adjust_credits(connection, adjustment, context.now(connection)))
    return {"adjustment_id": adjustment.adjustment_id} | _done(
        actor=made.actor_id, owner=made.owner_id, credits={"email": made.email, "sms": made.sms}
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
            take_user_locks(connection, [user.user_id], to_change=True)  # charges that have not seen them end before
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


@shared_task(name="credits.reverse", base=PostageTask)
def credits_reverse(context: Context, message: Reversal) -> Json:
    """A refund or a chargeback of a purchase."""
    return reverse(context, message)


@shared_task(name="credits.adjust", base=PostageTask)
def credits_adjust(context: Context, message: Adjustment) -> Json:
    """A correction by hand."""
    return adjust(context, message)


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
