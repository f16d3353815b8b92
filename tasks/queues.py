"""The queues, and which task goes to which of them."""

import enum
from collections.abc import Mapping


class Queue(enum.StrEnum):
    """One queue for each kind of work, so that a campaign cannot hold up a purchase or a view."""

    EMAIL = "email"
    """Single emails, and further attempts."""
    SMS = "sms"
    """Single text messages, and further attempts."""
    BULK = "bulk"
    """Bulk jobs, which are charged here and sent by the workers of their kind."""
    BILLING = "billing"
    """Purchases, corrections, changes of owner, users, roles and plans, the erasing of users, and cancelling."""
    VIEWS = "views"
    """What users look at."""
    UPKEEP = "upkeep"
    """What beat asks for."""


ROUTES: Mapping[str, Queue] = {
    "email.send": Queue.EMAIL,
    "email.resume": Queue.EMAIL,
    "sms.send": Queue.SMS,
    "sms.resume": Queue.SMS,
    "email.send_many": Queue.BULK,
    "sms.send_many": Queue.BULK,
    "credits.purchase": Queue.BILLING,
    "credits.reverse": Queue.BILLING,
    "credits.adjust": Queue.BILLING,
    "credits.set_owner": Queue.BILLING,
    "users.save": Queue.BILLING,
    "roles.save": Queue.BILLING,
    "plans.save": Queue.BILLING,
    "users.erase": Queue.BILLING,
    "messages.cancel": Queue.BILLING,
    "views.overview": Queue.VIEWS,
    "views.usage": Queue.VIEWS,
    "views.orders": Queue.VIEWS,
    "views.statement": Queue.VIEWS,
    "views.billing": Queue.VIEWS,
    "views.users": Queue.VIEWS,
    "views.message": Queue.VIEWS,
    "views.explain": Queue.VIEWS,
    "views.changes": Queue.VIEWS,
    "upkeep.sweep": Queue.UPKEEP,
    "upkeep.roll_up": Queue.UPKEEP,
    "upkeep.audit": Queue.UPKEEP,
}
