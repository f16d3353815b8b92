"""The screens, in the order of the navigation. A new one is a module here, a template, and its sentences."""

from worker.console.screen import Screen
from worker.console.screens import (
    billing,
    changes,
    credit_owner,
    entry,
    message,
    messages,
    orders,
    overview,
    plans,
    roles,
    statement,
    usage,
    user,
    users,
)

SCREENS: tuple[Screen, ...] = (
    overview.SCREEN,
    usage.SCREEN,
    statement.SCREEN,
    entry.SCREEN,
    messages.SCREEN,
    message.SCREEN,
    orders.SCREEN,
    plans.SCREEN,
    billing.SCREEN,
    users.SCREEN,
    user.SCREEN,
    credit_owner.SCREEN,
    roles.SCREEN,
    changes.SCREEN,
)
