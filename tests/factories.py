"""People, purchases and jobs as tests need them: say what matters, the rest is filled in."""

import itertools
from datetime import datetime
from typing import Any

from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import accounts
from models.messages.billing import Purchase, SaveRole, SaveUser, SetOwner
from models.messages.bulk import SendMany
from models.messages.sends import Content, SendEmail, SendOne, SendSms
from models.messages.wire import parse
from models.money.ledger import open_accounts
from models.money.orders import place_order
from models.sends.charges import JobKey, SendJob
from models.users.roles import upsert_role
from models.users.sharing import set_credit_owner
from models.users.users import upsert_user
from tasks import sending
from tests.fakes import NOON

Json = dict[str, Any]

ACME, OTHER = 1, 2
"""The organizations that `save_people` makes, by their numbers."""
BILLING = {"name": "Acme Ltd", "country": "NL"}
_numbers = itertools.count(1)


def save_people(database: Database, now: datetime = NOON) -> None:
    """Make john, an admin with both rights, and the members peter and mary of `acme`, and olga, an admin of `other`.

    John and olga have billing information, peter has his own, mary has none.
    """
    with database.engine.begin() as connection:
        for organization in ("acme", "other"):
            rights: Any = ["view_user_list", "edit_user"]
            upsert_role(connection, SaveRole(organization=organization, role="admin", rights=rights), now)
            upsert_role(connection, SaveRole(organization=organization, role="member", rights=[]), now)
        for person in (
            _person("john", role="admin", billing=BILLING),
            _person("peter", billing={"name": "Peter"}),
            _person("mary"),
            _person("olga", organization="other", role="admin", billing={"name": "Olga"}),
        ):
            org_id = upsert_user(connection, person, now)
            assert org_id is not None
            open_accounts(connection, org_id, person.user_id, now)


def _person(
    user_id: str, *, organization: str = "acme", role: str = "member", billing: dict[str, str] | None = None
) -> SaveUser:
    return SaveUser(
        user_id=user_id,
        organization=organization,
        name=user_id.capitalize(),
        email=f"{user_id}@{organization}.test",
        role=role,
        billing=billing,
    )


def buy(
    database: Database, buyer: str, *, email: int = 0, sms: int = 0, order_id: str | None = None, now: datetime = NOON
) -> str:
    """Buy credits for the buyer's credit owner; returns the order's id."""
    order = purchase_order(order_id=order_id or f"order-of-test-{next(_numbers)}", buyer=buyer, email=email, sms=sms)
    message = Purchase.model_validate(order)
    with database.engine.begin() as connection:
        place_order(connection, message, now)
    return message.order_id


def share(database: Database, user: str, owner: str, *, actor: str = "john", now: datetime = NOON) -> None:
    """Let `user` spend the credits of `owner` from now on."""
    change = SetOwner(change_id=f"change-of-test-{next(_numbers)}", actor=actor, user=user, owner=owner)
    with database.engine.begin() as connection:
        set_credit_owner(connection, change, now)


def stock(database: Database, *, email: int = 0, sms: int = 0) -> Database:
    """Save people, of whom john owns these credits and peter uses them; gives the database."""
    save_people(database)
    buy(database, "john", email=email, sms=sms)
    share(database, "peter", "john")
    return database


def balance(database: Database, owner: str, kind: str = "email") -> int:
    """Give what an owner's account holds."""
    with database.snapshot() as connection:
        available: int = connection.execute(
            select(accounts.c.available).where(accounts.c.owner_id == owner, accounts.c.kind == kind)
        ).scalar_one()
        return available


def email_job(job_id: str | None = "job-1", sender: str = "john", **fields: Any) -> Json:
    """Give the object of `email.send`."""
    job = {"sender": sender, "to": "ada@example.test", "subject": "Hello", "text": "Hello Ada", **fields}
    return job if job_id is None else {"job_id": job_id, **job}


def sms_job(job_id: str | None = "job-1", sender: str = "john", **fields: Any) -> Json:
    """Give the object of `sms.send`."""
    job = {"sender": sender, "to": "+31612345678", "text": "Hello Ada", **fields}
    return job if job_id is None else {"job_id": job_id, **job}


def purchase_order(
    order_id: str = "order-1", buyer: str = "john", *, email: int = 0, sms: int = 0, **fields: Any
) -> Json:
    """Give the object of `credits.purchase`, with billing information of its own."""
    return {
        "order_id": order_id,
        "buyer": buyer,
        "credits": {"email": email, "sms": sms},
        "amount": 1000,
        "currency": "EUR",
        "billing": BILLING,
        **fields,
    }


def acme(*job_ids: str) -> list[JobKey]:
    """Give the keys of jobs of `acme`."""
    return [JobKey(ACME, job_id) for job_id in job_ids]


def content_of(message: SendOne) -> Content:
    """Give what is stored of a message."""
    return message.content(message.given())


def cost_of(message: SendOne) -> int:
    """Give what a message costs, in credits."""
    return content_of(message).cost


def ledger_job(given: Json) -> SendJob:
    """Give an email's or a text message's object as the ledger takes it."""
    task = "email.send" if "subject" in given else "sms.send"
    message = parse(task, given)
    assert isinstance(message, SendEmail | SendSms)
    return sending.as_send_job(message)


def messages_of(bulk: SendMany) -> list[SendOne]:
    """Give the single messages of a bulk job; what is kept of each must be what is kept of that message sent alone."""
    messages: list[SendOne] = []
    for content in bulk.each():
        given = {name: value for name, value in content.fields.items() if name not in ("recipients", "segments")}
        message = parse(f"{bulk.kind}.send", {"sender": bulk.sender, **given})
        assert isinstance(message, SendEmail | SendSms)
        assert content_of(message) == content
        messages.append(message)
    return messages
