"""What can be bought. Plans belong to no organization: everybody sees the same."""

from sqlalchemy import Connection, select

from models.database.schema import plans
from models.messages.base import Json


def plans_for_sale(connection: Connection) -> list[Json]:
    """Return all plans with their terms, the cheapest of each currency first. Prices are in minor units."""
    found = connection.execute(select(plans).order_by(plans.c.currency, plans.c.price, plans.c.id))
    return [
        {
            "plan": row.id,
            "name": row.name,
            "credits": {"email": row.email, "sms": row.sms},
            "price": row.price,
            "currency": row.currency,
        }
        for row in found
    ]
